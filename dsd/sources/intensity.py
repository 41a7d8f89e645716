"""The intensity map of a set of images: settled before they are stored, and watched while."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Shaped

from dsd.sources.config import Data, Range
from dsd.sources.reader import reader_for
from dsd.sources.source import Source
from dsd.utils.errors import DataError
from dsd.utils.intensity import PIXELS, Intensity

__all__ = ["SHORT_TYPES", "Watch", "limits_of", "windows_of"]

_SAMPLE = 2**24
"""Raw numbers from which percentiles are computed, about; fewer are all used."""

SHORT_TYPES = ("uint8", "uint16", "int16")
"""Types that are stored as they are; of others, data units."""

_MOST_BITS = 16

_WINDOW = 64
_MOST_NUMBERS = 2**22
"""In the windows from which a camera's noise is estimated, about."""


def limits_of(data: Data, source: Source) -> tuple[float, float]:
    """Raw values that become -1 and +1; percentiles take a pass over the whole source.

    Raises:
        DataError: The images cannot be read, or the percentiles are the same.
    """
    chosen, patches = data.intensity, data.patches
    if chosen is None:
        return PIXELS.low, PIXELS.high
    if isinstance(chosen, Range):
        return chosen.low, chosen.high
    if patches is not None:
        # Before any are left out, because contrast is compared in data units.
        patches = patches.model_copy(update={"min_contrast": 0.0})
    reader = reader_for(data.model_copy(update={"patches": patches}), source)
    parts: list[np.ndarray] = []
    for block in reader.blocks():
        step = max(1, reader.total * block.size // (len(block) * _SAMPLE))
        if reader.pictures:
            step *= max(reader.pictures)
        while math.gcd(step, block.shape[-1]) > 1:
            step += 1
        some = block.reshape(-1)[::step]
        parts.append(some[np.isfinite(some)])
    low, high = map(float, np.percentile(np.concatenate(parts), chosen.percentiles))
    if low == high:
        msg = (
            f"the percentiles {chosen.percentiles} of the raw values are both {low:g}: set "
            "data.intensity to {low: .., high: ..}, or use percentiles farther apart"
        )
        raise DataError(msg)
    return low, high


def windows_of(data: Data, source: Source) -> Shaped[np.ndarray, " n c h w"]:
    """Raw windows without overlap, of at most 64 x 64 pixels, from all over a source.

    Raises:
        DataError: The images cannot be read.
    """
    patches = data.patches
    if patches is not None:
        update = {"stride": None, "per_image": None, "min_contrast": 0.0}
        data = data.model_copy(update={"patches": patches.model_copy(update=update)})
    kept: list[np.ndarray] = []
    step, seen = 1, 0
    for block in reader_for(data, source).blocks():
        for window in _windows(block):
            if not np.isfinite(window).all():
                continue
            if seen % step == 0:
                kept.append(window.copy())
            seen += 1
            if len(kept) * window.size > 2 * _MOST_NUMBERS:
                kept, step = kept[::2], 2 * step
    if not kept:
        msg = "no window of 64 x 64 pixels is free of NaN: give data.intensity.camera as numbers"
        raise DataError(msg)
    return np.stack(kept)


def _windows(block: Shaped[np.ndarray, " n c h w"]) -> Iterator[np.ndarray]:
    height, width = (min(side, _WINDOW) for side in block.shape[2:])
    for image in block:
        for top in range(0, image.shape[1] - height + 1, height):
            for left in range(0, image.shape[2] - width + 1, width):
                yield image[:, top : top + height, left : left + width]


@final
@dataclass
class Watch:
    """Counts what a map and a sensor do to the images that pass by.

    Args:
        intensity: The map.
    """

    intensity: Intensity
    numbers: int = 0
    below: int = 0
    above: int = 0
    """Numbers outside of ``low`` to ``high``, which pictures and features show clipped."""

    missing: int = 0
    """Numbers that are NaN or infinite."""

    largest: float = -math.inf
    at_largest: int = 0

    def passes(self, block: Shaped[np.ndarray, "*d"]) -> None:
        """Count a block of raw images."""
        valid = block[np.isfinite(block)] if block.dtype.kind == "f" else block
        self.numbers += valid.size
        self.missing += block.size - valid.size
        if valid.size == 0:
            return
        block = valid
        smallest, largest = float(block.min()), float(block.max())
        if smallest < self.intensity.low:
            self.below += int(np.count_nonzero(block < self.intensity.low))
        if largest > self.intensity.high:
            self.above += int(np.count_nonzero(block > self.intensity.high))
        if largest > self.largest:
            self.largest, self.at_largest = largest, 0
        if largest == self.largest:
            self.at_largest += int(np.count_nonzero(block == largest))

    @property
    def saturated(self) -> int:
        """Whole numbers at the largest value of a sensor of 8 to 16 bits, if there are several."""
        bits = math.log2(self.largest + 1) if self.largest > 0 else 0.0
        full = (bits.is_integer() and 8 <= bits <= _MOST_BITS) or self.largest == 2**15 - 1
        return self.at_largest if full and self.intensity.dtype[0] in "ui" else 0

    def notes(self) -> Iterator[str]:
        """Say what was counted."""
        low, high = self.intensity.low, self.intensity.high
        yield f"raw values {low:.6g} to {high:.6g} ({self.intensity.dtype}) became -1 to 1"
        if self.intensity.camera is not None:
            yield (
                f"noise of a camera (gain {self.intensity.camera.gain:.4g}, offset "
                f"{self.intensity.camera.offset:.4g}, read noise "
                f"{self.intensity.camera.read_noise:.4g}) became white and of the level "
                f"{self.intensity.scale:.4g} in data units"
            )
        outside = (self.below + self.above) / self.numbers
        if outside:
            yield (
                f"{outside:.2%} of the numbers lie outside of that ({self.below} below, "
                f"{self.above} above); pictures and features show them clipped"
            )
        if self.missing:
            share = self.missing / (self.missing + self.numbers)
            yield f"{share:.2%} of the numbers are NaN or infinite; these pixels are masked"
        if self.saturated:
            yield (
                f"{self.saturated} pixels ({self.saturated / self.numbers:.2%}) are saturated at "
                f"{self.largest:g}: their noise is cut off"
            )
