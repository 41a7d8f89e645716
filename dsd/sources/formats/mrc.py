"""Micrographs, stacks and volumes of MRC files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mrcfile import utils
from mrcfile.dtypes import HEADER_DTYPE

from dsd.sources.formats.stack import RawFrames, Stack, UnusableError

__all__ = ["open_mrc"]

_HEADER = 1024
_LARGEST_MODE = 101


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
        header = _header(file.read(_HEADER))
    dtype = utils.data_dtype_from_header(header)
    shape = tuple(map(int, utils.data_shape_from_header(header)))
    start = _HEADER + int(header.nsymbt)
    if min(shape) < 1 or start < _HEADER:
        msg = f"has a damaged header (lengths {shape}, extended header of {start - _HEADER} bytes)"
        raise UnusableError(msg)
    axes = {2: "YX", 3: "ZYX", 4: "TZYX"}[len(shape)]
    yield Stack(RawFrames(path, start, dtype, shape), "MRC image", axes=axes)


def _header(content: bytes) -> Any:  # noqa: ANN401 - a record of NumPy's
    """The fields of a header; its stamp of the machine is often wrong, its mode never large."""
    if content[:2] in {b"\x1f\x8b", b"BZ"}:
        msg = "is packed; unpack it"
        raise UnusableError(msg)
    if len(content) < _HEADER:
        msg = f"is cut off: it has {len(content)} bytes of a header of {_HEADER}"
        raise UnusableError(msg)
    for order in "<>":
        (header,) = np.frombuffer(content, HEADER_DTYPE.newbyteorder(order)).view(np.recarray)
        if 0 <= header.mode <= _LARGEST_MODE:
            return header
    msg = f"is no MRC file (its mode is {header.mode})"
    raise UnusableError(msg)
