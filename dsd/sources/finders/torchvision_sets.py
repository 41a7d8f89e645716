"""Sets of torchvision by name: their training parts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from dsd.sources.source import Item, Source
from dsd.utils.errors import DataError, one_line

__all__ = ["TORCHVISION_SETS", "find_set", "preview_set"]


@final
@dataclass(frozen=True)
class TorchvisionSet:
    """The training part of a set."""

    class_name: str
    part: dict[str, Any]
    count: int
    shape: tuple[int, int, int]
    """Channels, height and width of an image, of CelebA's after it is cut to a square."""


TORCHVISION_SETS = {
    "cifar10": TorchvisionSet("CIFAR10", {"train": True}, 50_000, (3, 32, 32)),
    "fashion-mnist": TorchvisionSet("FashionMNIST", {"train": True}, 60_000, (1, 28, 28)),
    "celeba": TorchvisionSet("CelebA", {"split": "train"}, 162_770, (3, 178, 178)),
}


def preview_set(name: str) -> Source:
    """Stand in for a set without downloading it: one black image for all of them."""
    known = TORCHVISION_SETS[name]
    return Source(known.count, [Item(name, np.zeros(known.shape, np.uint8))])


def find_set(path: Path, name: str) -> Source:
    """Open a set, fetched into ``path`` unless it is there.

    Raises:
        DataError: It cannot be fetched, or files there are not torchvision's.
    """
    pickled = path / "FashionMNIST" / "processed"
    if name == "fashion-mnist" and pickled.exists():
        msg = (
            f"{pickled} is of an old torchvision, which pickled; it would be read instead "
            "of the images beside it: delete that folder"
        )
        raise DataError(msg)
    try:
        dataset = _load(path, name)
    except ModuleNotFoundError as error:
        msg = (
            f"{name}: the package {error.name} is missing. Install it: pip install 'dsd[features]'"
        )
        raise DataError(msg) from error
    # torchvision lets through whatever its download tools raise.
    except Exception as error:
        reason = one_line(" ".join(str(error).split()))
        msg = (
            f"torchvision's {name} is not in {path} and cannot be downloaded ({reason}): "
            "connect to the network once, or copy torchvision's files there"
        )
        raise DataError(msg) from error
    if name == "celeba":
        folder = path / dataset.base_folder / "img_align_celeba"
        items = [Item(str(folder / file), folder / file) for file in dataset.filename]
        return Source(len(items), items, square=True)
    pixels = np.asarray(dataset.data)
    if pixels.dtype != np.uint8 or pixels.ndim not in {3, 4}:
        msg = f"torchvision's files of {name} in {path} hold no pictures: delete them"
        raise DataError(msg)
    planes = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    items = [Item(f"{name}, image {i}", image) for i, image in enumerate(planes)]
    return Source(len(items), items)


def _load(path: Path, name: str) -> Any:  # noqa: ANN401 - torchvision is untyped
    # Importing torchvision takes a second that the other sources need not pay.
    from torchvision import datasets

    path.mkdir(parents=True, exist_ok=True)
    known = TORCHVISION_SETS[name]
    return getattr(datasets, known.class_name)(path, download=True, **known.part)
