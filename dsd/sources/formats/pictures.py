"""The formats of image files: one module and one entry of ``FORMATS`` for each."""

import mmap
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from dsd.sources.decoding import MAX_BYTES, Content, Frames, PictureFile
from dsd.sources.formats.arrays import readable
from dsd.sources.formats.stack import OpenStack, Stack

__all__ = ["FORMATS", "SUFFIXES", "Format", "count_in", "is_tiff", "open_file", "stack_in"]


class Format(NamedTuple):
    """How files of one format are found, recognised and read."""

    name: str
    suffixes: frozenset[str]
    """In small letters, with the dot."""

    begins: Callable[[Content], bool]
    """Whether a file is of this format, whatever its name."""

    open: Callable[[bytes], Frames]
    """Read the headers of a whole file of 8-bit pictures; ValueError says what is wrong."""

    count_images: Callable[[Content], int] | None = None
    """Images in a file, from its headers alone; None where each holds one."""

    open_stack: Callable[[Path | bytes], AbstractContextManager[Stack]] | None = None
    """Open a file of numbers of any type; None where each holds one picture."""


def is_tiff(content: Content) -> bool:
    """Whether a file begins as TIFF or BigTIFF do, in either order of bytes."""
    return content[:2] in {b"II", b"MM"} and content[2:4] in {b"*\0", b"\0*", b"+\0", b"\0+"}


def _open_tiff(content: bytes) -> Frames:
    from dsd.sources.formats.tiff import TiffPictures  # tifffile, which other formats do not need

    return TiffPictures(content)


def _count_in_tiff(content: Content) -> int:
    from dsd.sources.formats.tiff import count_images

    return count_images(content)


def _open_tiff_stack(source: Path | bytes) -> AbstractContextManager[Stack]:
    from dsd.sources.formats.tiff_stack import open_tiff

    return open_tiff(source)


FORMATS = (
    Format(
        "TIFF", frozenset({".tif", ".tiff"}), is_tiff, _open_tiff, _count_in_tiff, _open_tiff_stack
    ),
    Format(
        "picture",
        frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"}),
        lambda content: True,
        PictureFile,
    ),
)
"""The first that fits is taken; the last one fits all, and refuses what it does not know."""

SUFFIXES = frozenset[str]().union(*(one.suffixes for one in FORMATS))


def _format_of(content: Content) -> Format:
    return next(one for one in FORMATS if one.begins(content))


def open_file(content: bytes, *, deep: bool = False) -> Frames:
    """Read the headers of an image file; ``deep`` allows pictures of 16 bits.

    Raises:
        ValueError: It is too large, damaged, of another format, or not 8-bit grey or RGB.
    """
    if len(content) > MAX_BYTES:
        msg = f"has {len(content)} bytes, more than {MAX_BYTES}; split or crop it"
        raise ValueError(msg)
    if deep:
        return PictureFile(content, deep=True)
    return _format_of(content).open(content)


def stack_in(content: bytes | Path) -> OpenStack | None:
    """What opens a file as an array; None for a single picture.

    Raises:
        OSError: It cannot be read.
    """
    if isinstance(content, Path):
        with content.open("rb") as file:
            begin = file.read(16)
    else:
        begin = content[:16]
    form = _format_of(begin)
    opener = form.open_stack
    if opener is None:
        return None
    return lambda: readable(form.name, opener(content))


def count_in(path: Path) -> int:
    """Images in a file; 1 where that is unknown, and reading it will say why."""
    if not path.is_file():
        return 1
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            count = _format_of(content).count_images
            return 1 if count is None else count(content)
    except (OSError, ValueError):
        return 1
