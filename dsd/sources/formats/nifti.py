"""Volumes of NIfTI files, with their slope and intercept applied."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from dsd.sources.formats.stack import Stack, UnusableError

__all__ = ["open_nifti"]

MAX_UNPACKED = 2**30
"""Bytes of a packed volume, which is unpacked as a whole."""


@contextmanager
def open_nifti(path: Path, key: str | None) -> Iterator[Stack]:
    """Open a volume: slices along its third axis, each of Y rows and X columns.

    Raises:
        ValueError: It is damaged, cut off, too large while packed, or holds no numbers.
    """
    if key is not None:
        msg = "holds one array; set data.key to null"
        raise UnusableError(msg)
    image: Any = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):  # Nifti2Image is one too.
        msg = f"is no NIfTI file but {type(image).__name__}"
        raise UnusableError(msg)
    shape = tuple(map(int, image.shape))
    header: Any = image.header
    dtype = header.get_data_dtype()
    if dtype.kind not in "buifc" or min(shape, default=0) < 1:
        msg = f"holds {dtype} of the lengths {shape}, not numbers"
        raise UnusableError(msg)
    size = math.prod(shape) * dtype.itemsize
    data: Any = image.dataobj
    if path.suffix == ".gz":
        if size > MAX_UNPACKED:
            msg = f"holds {size} bytes when unpacked, more than {MAX_UNPACKED}; unpack it"
            raise UnusableError(msg)
        data = np.asanyarray(image.dataobj)
    elif path.stat().st_size < data.offset + size:
        msg = f"is cut off: it has {path.stat().st_size} bytes of {data.offset + size}"
        raise UnusableError(msg)
    yield Stack(data, "NIfTI volume", axes="XYZTUVW"[: len(shape)])
