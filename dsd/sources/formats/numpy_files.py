"""NumPy's own files: .npy, mapped page by page, and the arrays of .npz. Never a pickle."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from dsd.sources.formats.stack import RawFrames, Stack, UnusableError

__all__ = ["open_numpy"]

MAX_UNPACKED = 2**30
"""Bytes of an array that has to be unpacked as a whole."""


@contextmanager
def open_numpy(path: Path, key: str | None) -> Iterator[Stack]:
    """Open a .npy file, or the array ``key`` of a .npz file.

    Raises:
        ValueError: It is damaged, or holds objects, no such array, or several without ``key``.
    """
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            yield _from_archive(path, key)
            return
        file.seek(0)
        shape, fortran, dtype = _header(file)
        start = file.tell()
    if fortran and len(shape) > 1:
        # Its last axis is the slowest: the same bytes as those of the axes in reverse.
        frames = RawFrames(path, start, dtype, shape[::-1])
        mapped = np.memmap(path, dtype, "r", offset=start, shape=frames.shape)
        yield Stack(mapped.T, "NumPy array")
    else:
        yield Stack(RawFrames(path, start, dtype, shape), "NumPy array")


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:  # noqa: ANN401 - ZipExtFile is no IO
    """Shape, order and type of an array, with the file at its first number."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or dtype.kind not in "buifc":
        msg = f"holds {'Python objects' if dtype.hasobject else dtype}, not numbers; save numbers"
        raise UnusableError(msg)
    return shape, fortran, dtype


def _from_archive(path: Path, key: str | None) -> Stack:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name[-4:] == ".npy"]
        chosen = key or (names[0] if len(names) == 1 else None)
        if chosen not in names:
            msg = f"holds the arrays {', '.join(names[:8])}; set data.key to one of them"
            raise UnusableError(msg)
        with archive.open(f"{chosen}.npy") as file:
            shape, fortran, dtype = _header(file)
            count = math.prod(shape)
            if count * dtype.itemsize > MAX_UNPACKED:
                msg = (
                    f"holds {count * dtype.itemsize} bytes in {chosen}, more than {MAX_UNPACKED}; "
                    "save it as .npy, which is read page by page"
                )
                raise UnusableError(msg)
            content = file.read(count * dtype.itemsize)
        numbers = np.frombuffer(content, dtype, count)
        return Stack(numbers.reshape(shape, order="F" if fortran else "C"), "NumPy array")
