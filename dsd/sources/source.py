"""What every kind of source gives: images that are found, not decoded yet."""

import contextlib
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from dsd.sources.config import Data
from dsd.sources.decoding import MAX_BYTES
from dsd.sources.formats.stack import OpenStack

__all__ = [
    "CORRECT",
    "PICTURES",
    "Item",
    "Items",
    "Reading",
    "Source",
    "read_file",
    "require_regular",
]

CORRECT = "correct data.path in params.yaml"


@final
@dataclass(frozen=True)
class Reading:
    """How numbers are read: the keys of ``data`` of the same names."""

    measured: bool = False
    """Whether numbers of any type are read (``data.intensity``), or pictures of 8 bits alone."""

    axes: str | None = None
    key: str | None = None
    column: str = "image"
    pages: int | None = None
    """First pages of each array that are read; None reads all."""

    gaps: bool = False
    """Whether images may lack pixels, which are NaN or infinite (``data.invalid``)."""

    @classmethod
    def of(cls, data: Data) -> "Reading":
        """As the section ``data`` says."""
        return cls(
            measured=data.intensity is not None,
            axes=data.axes,
            key=data.key,
            column=data.column,
            gaps=data.invalid == "mask",
        )


PICTURES = Reading()
"""Pictures of 8 bits."""


@final
@dataclass(frozen=True)
class Item:
    """One image of a source, or several in one file, not decoded yet."""

    name: str
    """For messages: which file or row."""

    content: bytes | Path | np.ndarray | OpenStack | None
    """Encoded bytes, the file that has them, pixels [c, h, w], or what opens an array; None where
    a table is empty. Encoded bytes may hold several images."""


def require_regular(path: Path) -> None:
    """Refuse what is no file; a device or a pipe might never end, or never begin.

    Raises:
        ValueError: It is none, or cannot be looked at.
    """
    with _told(path):
        if not stat.S_ISREG(path.stat().st_mode):
            msg = "cannot be read: it is no regular file"
            raise ValueError(msg)


def read_file(path: Path) -> bytes:
    """All bytes of a regular file.

    Raises:
        ValueError: It cannot be read, or is not of a picture's size.
    """
    require_regular(path)
    with _told(path):
        status = path.stat()
        if status.st_size > MAX_BYTES:
            msg = f"has {status.st_size} bytes, more than {MAX_BYTES}; split or crop it"
            raise ValueError(msg)
        return path.read_bytes()


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn errors of the system into a ValueError that says what is wrong."""
    try:
        yield
    except OSError as error:
        dangling = isinstance(error, FileNotFoundError) and path.is_symlink()
        msg = "is a link that leads nowhere" if dangling else f"cannot be read: {error.strerror}"
        raise ValueError(msg) from error


@final
@dataclass(frozen=True)
class Items(Iterable[Item]):
    """Items that are made while they are gone through."""

    begin: Callable[[], Iterator[Item]]

    def __iter__(self) -> Iterator[Item]:
        return self.begin()


@final
@dataclass(frozen=True)
class Source:
    """Images that were found."""

    count: int
    """How many images there are, broken ones included; the pages of TIFF files count."""

    items: Iterable[Item]
    """What holds the images, always in the same order, as often as it is asked."""

    notes: tuple[str, ...] = ()
    """Short sentences: what was taken, by folder and suffix, and what was left out."""

    square: bool = False
    """Whether to cut each image to its central square (CelebA: 178 x 218 to 178 x 178)."""
