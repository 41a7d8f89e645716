"""What every kind of source gives: images that are found, not decoded yet."""

import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from dsd.sources.decoding import MAX_BYTES

__all__ = ["CORRECT", "Item", "Items", "Source"]

CORRECT = "correct data.path in params.yaml"


@final
@dataclass(frozen=True)
class Item:
    """One image of a source, not decoded yet."""

    name: str
    """For messages: which file or row."""

    content: bytes | Path | np.ndarray | None
    """Encoded bytes, the file that has them, or pixels [c, h, w]; None where a table is empty.
    Encoded bytes may hold several images."""

    def load(self) -> bytes | np.ndarray:
        """The encoded bytes or the pixels.

        Raises:
            ValueError: There are none; or a file cannot be read, or is not of a picture's size.
        """
        if self.content is None:
            msg = "has no bytes"
            raise ValueError(msg)
        return _read(self.content) if isinstance(self.content, Path) else self.content


def _read(path: Path) -> bytes:
    """All bytes of a regular file; a device or a pipe might never end, or never begin."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            msg = "cannot be read: it is no regular file"
            raise ValueError(msg)
        if status.st_size > MAX_BYTES:
            msg = f"has {status.st_size} bytes, more than {MAX_BYTES}; split or crop it"
            raise ValueError(msg)
        return path.read_bytes()
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
