"""Where images come from: the section ``data``."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from dsd.utils.config import Count, Finite, NonNegative, Positive, Section, _auto_or_number
from dsd.utils.functions import is_function_name

__all__ = [
    "TORCHVISION_NAMES",
    "CameraMap",
    "Data",
    "IntensityConfig",
    "Patches",
    "Percentiles",
    "Range",
]

AutoGain = Annotated[
    Annotated[Positive, Tag("number")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(_auto_or_number),
]
AutoOffset = Annotated[
    Annotated[Finite, Tag("number")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(_auto_or_number),
]
AutoReadNoise = Annotated[
    Annotated[NonNegative, Tag("number")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(_auto_or_number),
]

_WITH_KEYS = ("array", "hdf5", "zarr", "fits")
"""Sources whose files may hold several arrays."""

TORCHVISION_NAMES = ("cifar10", "fashion-mnist", "celeba")


class Patches(Section):
    """Training images that are cut from larger pictures of any size."""

    size: Annotated[int, Field(ge=4, le=1024)]
    """Height and width of a patch, in pixels."""

    stride: Count | None
    """Pixels from one patch of a grid to the next; null: ``size``. What is left at the right and
    lower border is not used."""

    per_image: Count | None
    """Patches at random places of each picture instead of a grid; the places depend on the
    picture's number alone. null: the grid."""

    min_contrast: NonNegative
    """Leave out patches of less contrast, such as empty background: the standard deviation, in
    data units, of the means over blocks of (size / 8)^2 pixels, which holds little noise. 0 keeps
    all."""

    @model_validator(mode="after")
    def _a_grid_or_random_places(self) -> "Patches":
        if self.stride is not None and self.per_image is not None:
            msg = (
                "data.patches has both stride and per_image: a grid has a stride, random places "
                "have a number; set one of the two to null"
            )
            raise ValueError(msg)
        return self


class Range(Section):
    """Raw values that become -1 and +1."""

    low: Finite
    """Raw value that becomes -1, in the units of the files."""

    high: Finite
    """Raw value that becomes +1."""

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low >= self.high:
            msg = (
                f"data.intensity.low {self.low:g} must be below data.intensity.high {self.high:g}"
            )
            raise ValueError(msg)
        return self


class Percentiles(Section):
    """Percentiles of all images together that become -1 and +1."""

    percentiles: Annotated[
        list[Annotated[float, Field(ge=0, le=100)]], Field(min_length=2, max_length=2)
    ]
    """Percentiles of the raw values of all images together that become -1 and +1, such as
    [0.1, 99.9]."""

    @model_validator(mode="after")
    def _ordered(self) -> "Percentiles":
        if self.percentiles[0] >= self.percentiles[1]:
            msg = "data.intensity.percentiles must be in ascending order"
            raise ValueError(msg)
        return self


class CameraNumbers(Section):
    """Noise of a camera, in raw units; ``auto`` is estimated from flat places of the images."""

    gain: AutoGain
    """Raw units for each photon (electron) that was counted."""

    offset: AutoOffset
    """Mean raw value without light. Give it where it is known: images alone do not tell offset
    and read noise apart."""

    read_noise: AutoReadNoise
    """Standard deviation without light."""


class CameraMap(Percentiles):
    """As :class:`Percentiles`, of the generalised Anscombe transform of the raw values."""

    camera: CameraNumbers


def _which_map(value: object) -> str:
    for name, kind in (("camera", CameraMap), ("percentiles", Percentiles)):
        if isinstance(value, kind) or (isinstance(value, dict) and name in value):
            return name
    return "range"


IntensityConfig = Annotated[
    Annotated[Range, Tag("range")]
    | Annotated[Percentiles, Tag("percentiles")]
    | Annotated[CameraMap, Tag("camera")],
    Discriminator(_which_map),
]


class Data(Section):
    """Where the images come from and how they are brought to one layout."""

    source: Literal[
        "parquet",
        "folder",
        "file",
        "zip",
        "array",
        "hdf5",
        "zarr",
        "fits",
        "mrc",
        "nifti",
        "dicom",
        "torchvision",
        "function",
    ]
    """Kind of source: Parquet files with encoded pictures; a folder of pictures or TIFF files, or
    one such file; a ZIP archive of pictures; arrays in one file or a folder of files (``array``:
    .npy and .npz); a torchvision set; a function of your own."""

    path: Annotated[str, Field(min_length=1)]
    """The file or the folder of files; for torchvision the folder that holds (or will hold) its
    downloads; for a function its argument."""

    name: Annotated[str, Field(min_length=1)] | None
    """Which torchvision set (cifar10, fashion-mnist, celeba), or the function
    ``package.module:function`` that yields arrays; null for the other sources."""

    column: Annotated[str, Field(min_length=1)]
    """Column of Parquet files that holds the encoded pictures."""

    key: Annotated[str, Field(min_length=1)] | None
    """Which array of a file, where there are several: its name in .npz, its path in HDF5 and Zarr,
    the name or number of an extension in FITS; null takes the only one (FITS: the first; OME-Zarr:
    the full resolution)."""

    variance: Annotated[str, Field(min_length=1)] | None
    """Array of the same file, named as in ``key`` and of the same axes, with the variance of the
    noise of each pixel, in squared raw units, as telescopes' pipelines write it. It is the noise
    level of noisy images (set corrupt.sigma to auto); training raises all pixels to one level.
    null: the levels are those of corrupt."""

    axes: Annotated[str, Field(pattern=r"^[A-Z]{2,8}$")] | None
    """Axes of the arrays, such as ``YX``, ``CYX``, ``TZCYX`` or ``YXC``: all but Y, X and C
    (channels) are unrolled into images. null: as the file says, else from the shape, which
    ``prepare`` says."""

    content: Literal["clean", "noisy"]
    """``clean`` images get noise in ``corrupt``; ``noisy`` ones are taken as observations of level
    corrupt.sigma."""

    intensity: IntensityConfig | None
    """One map to data units for all images, from raw values ``low`` and ``high`` or from
    ``percentiles``. It is linear; with ``camera`` it makes the noise of photons and read-out white
    and of one level (docs/data.md). It is stored with the images. null: pictures of 8 bits, 0 to
    255; other numbers are then refused."""

    patches: Patches | None
    """Cut training images from larger pictures; null uses pictures whole."""

    pad: Annotated[int, Field(ge=0, le=64)]
    """Black border added on each side before resizing, in pixels."""

    resolution: Annotated[int, Field(ge=4, le=1024)] | None
    """Height and width after area averaging; null keeps the size as found."""

    on_error: Literal["raise", "skip"]
    """An image that cannot be used, or is of another size or colour than most, either refuses the
    whole source or is skipped and listed."""

    invalid: Literal["refuse", "mask"]
    """NaN and infinite pixels of noisy images (FITS: BLANK). ``refuse``: such an image cannot be
    used. ``mask``: these pixels were not observed, as with the operator ``mask``, in all channels;
    the others are used."""

    max_images: Count | None
    """Number of images, the first ones, to use; null uses all."""

    shard_size: Count
    """Images in one file of the prepared layout."""

    phase: Literal["none", "smooth"]
    """``smooth`` makes grey images complex, as in magnetic resonance: brightness in [0, 1] times a
    phase that varies slowly, in two channels (real, imaginary); ``none`` leaves them alone."""

    @model_validator(mode="after")
    def _name_goes_with_its_source(self) -> "Data":
        named = {
            "torchvision": self.name in TORCHVISION_NAMES,
            "function": self.name is not None and is_function_name(self.name),
        }
        if not named.get(self.source, self.name is None):
            msg = (
                f"data.name is {self.name!r} while data.source is {self.source!r}: set it to one "
                f"of {', '.join(TORCHVISION_NAMES)} for torchvision, to package.module:function "
                "for function, and to null for the other sources"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _a_camera_has_noise_and_pixels(self) -> "Data":
        if not isinstance(self.intensity, CameraMap):
            return self
        if self.content == "clean":
            msg = (
                "data.intensity.camera is set while data.content is clean: images without noise "
                "need no transform of it; set content to noisy, or leave camera out"
            )
            raise ValueError(msg)
        if self.resolution is not None:
            msg = (
                f"data.resolution is {self.resolution} while data.intensity.camera is set: means "
                "of pixels have other noise than pixels; set resolution to null, and cut patches "
                "where images are too large"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _gaps_are_of_measured_pixels(self) -> "Data":
        if self.invalid == "refuse":
            return self
        wrong = {
            "intensity is null": self.intensity is None,
            "content is clean": self.content == "clean",
            "resolution is set": self.resolution is not None,
        }
        for problem, there in wrong.items():
            if there:
                msg = (
                    f"data.invalid is mask while data.{problem}: gaps are masked in noisy images "
                    "of measured numbers whose pixels are kept; set invalid to refuse, or set "
                    "intensity, content to noisy and resolution to null"
                )
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _what_goes_together(self) -> "Data":
        if self.patches is not None and (self.pad or self.resolution is not None):
            key = "pad" if self.pad else "resolution"
            msg = (
                f"data.{key} is {getattr(self, key)} while data.patches is set: patches have the "
                "pixels of the pictures; set data.pad to 0 and data.resolution to null"
            )
            raise ValueError(msg)
        if self.pad and self.intensity is not None:
            msg = (
                f"data.pad is {self.pad} while data.intensity is set: a border is for pictures of "
                "8 bits; set data.pad to 0"
            )
            raise ValueError(msg)
        if self.variance is not None:
            self._check_variance()
        if self.phase != "none" and self.intensity is not None:
            msg = (
                "data.phase is smooth, which needs grey pictures of 8 bits: set data.intensity to "
                "null, or data.phase to none"
            )
            raise ValueError(msg)
        return self

    def _check_variance(self) -> None:
        """Refuse what has no meaning for a variance of each pixel.

        Raises:
            ValueError: A key has another value than it needs.
        """
        contrast = 0.0 if self.patches is None else self.patches.min_contrast
        for met, key, needed in (
            (self.source in _WITH_KEYS, "source", f"one of {', '.join(_WITH_KEYS)}"),
            (self.content == "noisy", "content", "noisy"),
            (
                isinstance(self.intensity, Range | Percentiles),
                "intensity",
                "a linear map, low and high or percentiles: the variance is that of its raw units",
            ),
            (self.invalid == "refuse", "invalid", "refuse, because both planes have to be whole"),
            (self.resolution is None, "resolution", "null, because averages mix levels"),
            (self.on_error == "raise", "on_error", "raise, so that no plane loses its image"),
            (contrast == 0, "patches.min_contrast", "0.0, so that no plane loses its image"),
        ):
            if not met:
                msg = f"data.variance is set: set data.{key} to {needed}"
                raise ValueError(msg)
