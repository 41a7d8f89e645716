"""Images of FITS files, with BSCALE, BZERO and BLANK applied."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning

from dsd.sources.formats.stack import Stack, UnusableError

__all__ = ["open_fits"]

_BLOCK = 2880
"""Bytes to a multiple of which FITS files are filled up."""


@contextmanager
def open_fits(path: Path, key: str | None) -> Iterator[Stack]:
    """Open the extension ``key`` (a name or a number), or the first one that holds an image.

    Raises:
        ValueError: There is no such image, or the file is cut off or packed as a whole.
    """
    with path.open("rb") as file:
        if file.read(6) != b"SIMPLE":
            msg = "is no FITS file (FITS begins with SIMPLE; unpack .gz files)"
            raise UnusableError(msg)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Cut off files.
        warnings.simplefilter("error", AstropyUserWarning)
        with fits.open(path, mode="readonly", memmap=False, lazy_load_hdus=True) as units:
            unit = _chosen(units, key)
            shape = tuple(map(int, unit.shape))
            _check_size(path, unit)
            yield Stack(_Sections(unit, shape), "FITS image")


def _chosen(units: Any, key: str | None) -> Any:  # noqa: ANN401 - astropy is untyped
    if key is not None:
        try:
            unit = units[int(key) if key.isdigit() else key]
        except (KeyError, IndexError) as error:
            msg = f"has no extension {key}; correct data.key"
            raise UnusableError(msg) from error
        if not _is_image(unit):
            msg = f"has no image in the extension {key}; correct data.key"
            raise UnusableError(msg)
        return unit
    for unit in units:
        if _is_image(unit):
            return unit
    msg = "holds no image of two axes or more"
    raise UnusableError(msg)


def _is_image(unit: Any) -> bool:  # noqa: ANN401
    return bool(unit.is_image) and len(unit.shape) >= 2


def _check_size(path: Path, unit: Any) -> None:  # noqa: ANN401
    """Raise ValueError where the file is shorter than its header says."""
    place = unit.fileinfo()
    # The last block may lack its padding.
    needed, there = place["datLoc"] + place["datSpan"] - (_BLOCK - 1), path.stat().st_size
    if needed > there:
        msg = f"is cut off: it has {there} bytes of {needed}; fetch it again"
        raise UnusableError(msg)


@final
@dataclass(frozen=True)
class _Sections:
    """Parts of an image, read where they are asked for."""

    unit: Any
    shape: tuple[int, ...]

    def __getitem__(self, where: Any) -> np.ndarray:  # noqa: ANN401
        return np.asarray(self.unit.section[where])
