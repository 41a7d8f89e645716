"""Images of DICOM files, with rescale slope and intercept and MONOCHROME1 applied."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pydicom
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array

from dsd.sources.decoding import MAX_BYTES
from dsd.sources.formats.stack import MAX_NUMBERS, Stack, UnusableError

__all__ = ["open_dicom"]


@contextmanager
def open_dicom(path: Path, key: str | None) -> Iterator[Stack]:
    """Open the frames of a file.

    Raises:
        ValueError: It holds no pixels, is damaged or too large, or its compression needs a
            package that is missing.
    """
    if key is not None:
        msg = "holds one array; set data.key to null"
        raise UnusableError(msg)
    if path.stat().st_size > MAX_BYTES:
        msg = f"has more than {MAX_BYTES} bytes; split it"
        raise UnusableError(msg)
    with warnings.catch_warnings(action="ignore"):
        yield _frames(path)


def _frames(path: Path) -> Stack:
    dataset = pydicom.dcmread(path)
    if "PixelData" not in dataset and "FloatPixelData" not in dataset:
        msg = "holds no pixels"
        raise UnusableError(msg)
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.SamplesPerPixel)
    shape = (frames, int(dataset.Rows), int(dataset.Columns), samples)
    if min(shape) < 1 or math.prod(shape[1:]) > MAX_NUMBERS:
        msg = f"has a damaged header (frames, rows, columns, channels: {shape})"
        raise UnusableError(msg)
    colour = str(dataset.PhotometricInterpretation)
    if colour.startswith("PALETTE"):
        msg = "has a palette of colours; save it as grey or RGB"
        raise UnusableError(msg)
    lossy = dataset.get("LossyImageCompression") == "01"
    return Stack(
        _DicomFrames(dataset, shape, colour == "MONOCHROME1"),
        "DICOM image",
        axes="TYXC",
        harm="lossy" if lossy else "none",
    )


@final
@dataclass(frozen=True)
class _DicomFrames:
    """Frames, decoded one by one."""

    dataset: Any
    shape: tuple[int, ...]
    inverted: bool

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        numbers = range(self.shape[0])[where[0]]
        return np.stack([self._frame(number) for number in numbers])

    def _frame(self, number: int) -> np.ndarray:
        stored = pixel_array(self.dataset, index=number)
        if self.inverted:
            # Its smallest number is white.
            signed, bits = bool(self.dataset.PixelRepresentation), int(self.dataset.BitsStored)
            stored = -1 - stored if signed else np.asarray(2**bits - 1 - stored, stored.dtype)
        values = np.asarray(apply_modality_lut(stored, self.dataset))
        return values.reshape(self.shape[1:])
