"""Micrographs, stacks and volumes of MRC files."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mrcfile
from mrcfile import utils

from dsd.sources.stack import RawFrames, Stack, UnusableError

__all__ = ["open_mrc"]

_HEADER = 1024


@contextmanager
def open_mrc(path: Path, key: str | None) -> Iterator[Stack]:
    """Open the images of a file, whose header may have the usual small mistakes.

    Raises:
        ValueError: It is damaged, packed, or of a type of numbers that is not known.
    """
    if key is not None:
        msg = "holds one array; set data.key to null"
        raise UnusableError(msg)
    with path.open("rb") as file:
        if file.read(2) in {b"\x1f\x8b", b"BZ"}:
            msg = "is packed; unpack it"
            raise UnusableError(msg)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mrcfile.open(path, mode="r", permissive=True, header_only=True) as file:
            header = file.header
            dtype = utils.data_dtype_from_header(header)
            shape = tuple(map(int, utils.data_shape_from_header(header)))
            start = _HEADER + int(header.nsymbt)
    if min(shape) < 1 or start < _HEADER:
        msg = f"has a damaged header (lengths {shape}, extended header of {start - _HEADER} bytes)"
        raise UnusableError(msg)
    axes = {2: "YX", 3: "ZYX", 4: "TZYX"}[len(shape)]
    yield Stack(RawFrames(path, start, dtype, shape), "MRC image", axes=axes)
