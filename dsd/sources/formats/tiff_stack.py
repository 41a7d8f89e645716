"""TIFF files of any type of numbers: pages, ImageJ's hyperstacks, OME-TIFF, by their axes.

:mod:`dsd.sources.formats.tiff` reads pictures of 8 bits instead.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import final

import numpy as np
from tifffile import COMPRESSION, TiffFile, TiffPageSeries

from dsd.sources.formats.stack import RawFrames, Sliceable, Stack, UnusableError, count_pages
from dsd.sources.formats.tiff import promised_frames, walk_pages

__all__ = ["open_tiff"]

_COLOURS = frozenset({0, 1, 2, 6, 32803, 34892})
"""PhotometricInterpretation of grey, RGB, YCbCr (decoded as RGB), and raw data of cameras."""

MAX_PAGES = 2**20
"""Directories of one file."""

_LOSSY = re.compile("JPEG|WEBP|JXL|LERC", re.IGNORECASE)
"""Compressions that change pixels, or may."""


@contextmanager
def open_tiff(source: Path | bytes) -> Iterator[Stack]:
    """Open the images of a file, which are all of one shape.

    Raises:
        ValueError: They are of several shapes, some are missing, or the file leads to others.
    """
    with TiffFile(
        source if isinstance(source, Path) else BytesIO(source), _multifile=False
    ) as tif:
        for page in walk_pages(tif, MAX_PAGES):
            _check_colours(int(page.photometric))
        series = tif.series
        if len(series) != 1:
            shapes = ", ".join(str(one.shape) for one in series[:4])
            msg = f"holds images of {len(series)} kinds ({shapes}); save those of a kind as a file"
            raise UnusableError(msg)
        (only,) = series
        shape, axes = tuple(map(int, only.shape)), only.axes
        numbers = np.prod(shape, dtype=object)
        promised = promised_frames(tif)
        if promised * _page_size(only) > numbers:
            msg = f"says that it holds {promised} frames, but has fewer; save it once more"
            raise UnusableError(msg)
        count_pages(shape, axes)
        packed = "" if page.compression == 1 else f" ({COMPRESSION(page.compression).name})"
        lossy = bool(_LOSSY.search(packed))
        yield Stack(
            _data(source, only, shape),
            f"{page.dtype} TIFF{packed}",
            axes=axes,
            harm="lossy" if lossy else "none",
        )


def _page_size(series: TiffPageSeries) -> int:
    return int(np.prod(series.keyframe.shape, dtype=object))


def _check_colours(photometric: int) -> None:
    if photometric not in _COLOURS:
        msg = f"has colours of the kind {photometric} (palette, CMYK, ...); save it as grey or RGB"
        raise UnusableError(msg)


def _data(source: Path | bytes, series: TiffPageSeries, shape: tuple[int, ...]) -> Sliceable:
    """The numbers, mapped where they lie one after the other."""
    assert series.dtype is not None
    if isinstance(source, Path) and series.dataoffset is not None and series.dtype.kind in "uifc":
        dtype = series.dtype.newbyteorder(series.parent.byteorder if series.parent else "=")
        return RawFrames(source, series.dataoffset, dtype, shape)
    return _Pages(series, shape)


@final
@dataclass(frozen=True)
class _Pages:
    """Pages that are decoded where they are asked for.

    A page holds the last axes of a series; those before are spread over pages.
    """

    series: TiffPageSeries
    shape: tuple[int, ...]

    def __getitem__(self, where: tuple[int | slice, ...]) -> np.ndarray:
        inside = len(self.series.keyframe.shape)
        # Axes of length 1 may be left out of a page's shape, or be in it alone.
        while inside and np.prod(self.shape[-inside:]) > _page_size(self.series):
            inside -= 1
        outer = self.shape[: len(self.shape) - inside]
        numbers = np.arange(int(np.prod(outer))).reshape(outer)[where[: len(outer)]]
        decoded = [self._page(int(number), self.shape[-inside:]) for number in np.ravel(numbers)]
        block = np.stack(decoded).reshape(*np.shape(numbers), *self.shape[-inside:])
        return block[(slice(None),) * np.ndim(numbers) + tuple(where[len(outer) :])]

    def _page(self, number: int, shape: tuple[int, ...]) -> np.ndarray:
        page = self.series.pages[number]
        if page is None:
            msg = f"lacks page {number}; save it once more"
            raise UnusableError(msg)
        return np.asarray(page.asarray(maxworkers=1)).reshape(shape)
