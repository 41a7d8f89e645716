"""Opening any file of images that is read, as an array with named axes."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsd.sources.finders.folders import list_folder, suffix_of
from dsd.sources.formats.arrays import ARRAY_SUFFIXES, ARRAYS, readable
from dsd.sources.formats.pictures import SUFFIXES, open_file, stack_in
from dsd.sources.formats.stack import Stack, UnusableError, axes_of, count_pages, pages
from dsd.sources.source import read_file, require_regular
from dsd.utils.errors import DataError, one_line

__all__ = ["Layout", "files_in", "layout_of", "pages_of", "put"]

_KNOWN = frozenset({*SUFFIXES, *ARRAY_SUFFIXES} - {".zarr"})


def files_in(place: Path) -> dict[str, Path]:
    """Files of images by their names below a folder; of a file, itself.

    Raises:
        DataError: There is none.
    """
    if not place.exists():
        msg = f"{one_line(place)}: it does not exist. Name a file or a folder of images"
        raise DataError(msg)
    if suffix_of(place.name) == ".zarr" or not place.is_dir():
        return {place.name: place}
    content = list_folder(place, _KNOWN)
    found = {name: path for name, path in sorted(content.taken.items()) if ".zarr/" not in name}
    found |= {one.relative_to(place).as_posix(): one for one in sorted(place.rglob("*.zarr"))}
    if not found:
        msg = f"{one_line(place)}: it holds no images. Name a file or a folder of images"
        raise DataError(msg)
    return found


class Layout(NamedTuple):
    """What a file holds."""

    shape: tuple[int, ...]
    axes: str
    """A letter for each axis."""

    dtype: np.dtype
    """Type of its numbers, also complex."""

    harm: str
    """Whether compression changed pixels."""

    @property
    def pages(self) -> int:
        """Images: all but the axes Y, X and C are unrolled."""
        return self._product(lambda letter: letter not in "YXCS")

    @property
    def channels(self) -> int:
        """Of an image; complex ones count twice."""
        return self._product(lambda letter: letter in "CS") * (1 + (self.dtype.kind == "c"))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.shape[self.axes.index("Y")], self.shape[self.axes.index("X")]

    def _product(self, counts: Callable[[str], bool]) -> int:
        lengths = zip(self.axes, self.shape, strict=True)
        return math.prod(length for letter, length in lengths if counts(letter))


def layout_of(path: Path, key: str | None, axes: str | None) -> Layout:
    """Look into a file; its first page is read.

    Raises:
        DataError: It is damaged, of no format that is read, or its axes are others.
    """
    with _opened(path, key, axes) as (stack, named):
        shape = tuple(map(int, stack.data.shape))
        count_pages(shape, named)
        page = next(pages(stack, named))
        layout = Layout(shape, named, page.dtype, stack.harm)
        if len(page) == 2 * layout.channels:
            layout = layout._replace(dtype=np.result_type(page.dtype, np.complex64))
        return layout


def pages_of(path: Path, key: str | None, axes: str | None) -> Iterator[np.ndarray]:
    """Read all pages [c, h, w] in order; complex channels as pairs of real ones.

    Raises:
        DataError: The file is damaged, or a number is NaN or infinite.
    """
    with _opened(path, key, axes) as (stack, named):
        for number, page in enumerate(pages(stack, named)):
            if page.dtype.kind == "f" and not np.isfinite(page).all():
                bad = int((~np.isfinite(page)).sum())
                msg = f"has {bad} pixels in frame {number} that are NaN or infinite; repair it"
                raise UnusableError(msg)
            yield page


@contextmanager
def _opened(path: Path, key: str | None, axes: str | None) -> Iterator[tuple[Stack, str]]:
    """Open a file, and name its axes.

    Raises:
        DataError: It is damaged, of no format that is read, or its axes are others.
    """
    suffix = suffix_of(path.name)
    kind = ARRAY_SUFFIXES.get(suffix)
    try:
        if kind is not None:
            with readable(ARRAYS[kind].name, ARRAYS[kind].open(path, key)) as stack:
                yield stack, axes_of(stack.data.shape, axes, stack.axes)[0]
            return
        if suffix not in SUFFIXES:
            msg = f"is a file {suffix}, which is not read; save it as TIFF"
            raise ValueError(msg)
        require_regular(path)
        opener = stack_in(path)
        if opener is None:
            yield _picture(path), "CYX"
            return
        with opener() as stack:
            yield stack, axes_of(stack.data.shape, axes, stack.axes)[0]
    except ValueError as error:
        raise DataError(f"{one_line(path)}: it {error}") from error


def _picture(path: Path) -> Stack:
    pixels, encoding = open_file(read_file(path), deep=True).read(0)
    return Stack(pixels, encoding.name, axes="CYX", harm="none")


def put(page: np.ndarray, into: np.ndarray, axes: str, number: int) -> None:
    """Write page ``number``, as :func:`dsd.sources.formats.stack.pages` counts and shapes them.

    Args:
        page: Channels, height and width; complex channels as pairs of real ones.
        into: The whole array.
        axes: A letter for each of its axes.
        number: Of the page.
    """
    loops = [place for place, letter in enumerate(axes) if letter not in "YXCS"]
    index = np.unravel_index(number, tuple(into.shape[place] for place in loops) or (1,))
    where: list[int | slice] = [slice(None)] * into.ndim
    for place, at in zip(loops, index, strict=False):
        where[place] = int(at)
    kept = "".join(letter for letter in axes if letter in "YXCS")
    channels = [place for place, letter in enumerate(kept) if letter in "CS"]
    if into.dtype.kind == "c":
        page = page[0::2] + 1j * page[1::2]
    view = into[tuple(where)].transpose(*channels, kept.index("Y"), kept.index("X"))
    view[...] = page.reshape(view.shape)
