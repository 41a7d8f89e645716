"""Where images come from: the section ``data``."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dsd.utils.config import Count, Section


class Data(Section):
    """Where the images come from and how they are brought to one layout."""

    source: Literal["parquet", "folder", "torchvision"]
    """Kind of source: Parquet files with an ``image`` column, a folder of image files, or a
    torchvision set."""

    path: Annotated[str, Field(min_length=1)]
    """The Parquet file or a folder of these, or the folder of image files; for torchvision the
    folder that holds (or will hold) its downloads."""

    name: Literal["cifar10", "fashion-mnist", "celeba"] | None
    """Which torchvision set (``source: torchvision`` only, else null)."""

    content: Literal["clean", "noisy"]
    """``clean`` images get noise in ``corrupt``; ``noisy`` ones are taken as observations of level
    corrupt.sigma."""

    pad: Annotated[int, Field(ge=0, le=64)]
    """Black border added on each side before resizing, in pixels."""

    resolution: Annotated[int, Field(ge=4, le=1024)] | None
    """Height and width after area averaging; null keeps the size as found."""

    on_error: Literal["raise", "skip"]
    """An image that cannot be used, or is of another size or colour than most, either refuses the
    whole source or is skipped and listed."""

    max_images: Count | None
    """Number of images, the first ones, to use; null uses all."""

    shard_size: Count
    """Images in one file of the prepared layout."""

    phase: Literal["none", "smooth"]
    """``smooth`` makes grey images complex, as in magnetic resonance: brightness in [0, 1] times a
    phase that varies slowly, in two channels (real, imaginary); ``none`` leaves them alone."""

    @model_validator(mode="after")
    def _name_goes_with_torchvision(self) -> "Data":
        if (self.source == "torchvision") != (self.name is not None):
            msg = (
                f"data.name is {self.name!r} while data.source is {self.source!r}: "
                "set a name for torchvision and null for the other sources"
            )
            raise ValueError(msg)
        return self
