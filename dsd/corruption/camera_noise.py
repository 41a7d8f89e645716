r"""Gain, offset and read noise of a camera, from flat places of images of unknown content.

The noise of a camera has the variance

    v = gain (m - offset) + read_noise^2

where the mean is m. Patches are put into classes by how bright the patches around them are, which
chooses none for its own noise. In each class the flattest show m and v (``noise_patches``), and a
line is fitted through them all. Its slope is the gain. Its height at the offset is the square
of the read noise; which point of the line that is, the line does not tell. Without either one
given, the offset is taken to be the darkest class, where the read noise is largest, and its
interval ends where the read noise would be 0. The transform (``Camera.stabilised``) is the same
for all of these.

Intervals are chance (over images, linearised jackknife) plus the disagreement of estimates that
feel texture differently.

Reference:
    Foi, Trimeche, Katkovnik and Egiazarian 2008 (IEEE Trans. Image Processing 17(10)), for the
    line through the variances of flat places. **Deviates**: flatness and noise are measured in
    disjoint principal components of patches, over many images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, final

import numpy as np
from jaxtyping import Bool, Float64, Shaped
from scipy.stats import norm

from dsd.corruption.noise_checks import FLAT, clipped_pixels
from dsd.corruption.noise_patches import Half, cross_fit, cut_patches, ratio_of_sums
from dsd.utils.anscombe import Camera
from dsd.utils.errors import DataError

__all__ = ["CameraEstimate", "Interval", "estimate_camera"]

Given: TypeAlias = float | Literal["auto"]

_CLASSES = 16
_FEWEST = 40
"""Flat patches in a class, at least."""

_MOST_UNUSABLE = 0.1
"""Of a class: clipping leaves only the lesser noise there."""

_PATCH, _SECOND_PATCH = 4, 5
_ROUNDS = 8
_MODEL_ERROR = 0.03
"""Relative error of a class's variance, beside chance, from which its weight falls."""

_Z = float(norm.ppf(0.975))


class Interval(NamedTuple):
    """An estimate with its 95 % interval; of a given number, three times this number."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.4g} (given)"
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


@final
@dataclass(frozen=True)
class CameraEstimate:
    """The noise of a camera, in raw units."""

    gain: Interval
    offset: Interval
    read_noise: Interval

    @property
    def camera(self) -> Camera:
        """What to stabilise with."""
        return Camera(
            gain=self.gain.value, offset=self.offset.value, read_noise=self.read_noise.value
        )

    def __str__(self) -> str:
        return f"gain {self.gain}, offset {self.offset}, read noise {self.read_noise}"


class _Line(NamedTuple):
    """v = gain m + intercept, and how uncertain that is."""

    gain: float
    intercept: float
    covariance: Float64[np.ndarray, " 2 2"]

    def at(self, mean: float) -> float:
        return self.gain * mean + self.intercept

    def error(self, mean: float) -> float:
        """Standard error of the variance at a mean."""
        x = np.array([mean, 1.0])
        return float(np.sqrt(x @ self.covariance @ x))


class _Classes(NamedTuple):
    """Mean and variance of classes of flat patches, and what each image adds to their errors."""

    mean: Float64[np.ndarray, " k"]
    variance: Float64[np.ndarray, " k"]
    relative_error: Float64[np.ndarray, " k"]
    mean_influence: Float64[np.ndarray, " k n"]
    variance_influence: Float64[np.ndarray, " k n"]


def estimate_camera(
    raw: Shaped[np.ndarray, " n c h w"],
    *,
    gain: Given = "auto",
    offset: Given = "auto",
    read_noise: Given = "auto",
) -> CameraEstimate:
    """Estimate what is not given of the noise of a camera.

    Args:
        raw: Noisy images in raw units, from 8 x 8 pixels; hundreds or more. All channels are of
            one camera.
        gain: Raw units for each photon, if known.
        offset: Mean raw value without light, if known.
        read_noise: Standard deviation without light, if known.

    Raises:
        DataError: There are too few flat places of different brightness, or the noise does not
            grow with brightness.
    """
    images = raw.reshape(-1, 1, *raw.shape[2:]).astype(np.float64)
    clipped = clipped_pixels(images)
    through = None
    if isinstance(offset, float) and isinstance(read_noise, float):
        through = offset, read_noise**2

    def line_of(size: int, share: float, *, quietest: bool) -> tuple[_Line, _Classes]:
        patches = cut_patches(images, size, clipped)
        if patches.usable[::2].sum() < 512 or patches.usable[1::2].sum() < 512:
            raise _refusal("too few patches are neither constant nor clipped")
        halves = cross_fit(patches)
        classes = _classes(halves, share, quietest=quietest)
        return _fit(classes, gain, through), classes

    line, classes = line_of(_PATCH, FLAT, quietest=True)
    others = [
        line_of(_PATCH, 2 * FLAT, quietest=True)[0],
        line_of(_PATCH, FLAT, quietest=False)[0],
    ]
    if min(images.shape[2:]) >= 2 * _SECOND_PATCH:
        others.append(line_of(_SECOND_PATCH, FLAT, quietest=True)[0])

    def interval(of: Callable[[_Line], float], error: float) -> Interval:
        value = of(line)
        wide = _Z * error + max(abs(of(other) - value) for other in others)
        return Interval(value, value - wide, value + wide)

    slope = interval(lambda one: one.gain, float(np.sqrt(line.covariance[0, 0])))
    if slope.low <= 0:
        raise _refusal(
            f"the noise does not grow with brightness (gain {slope}), as a camera's would"
        )
    if isinstance(gain, float):
        slope = Interval(gain, gain, gain)
    zero, read = _split(line, interval, offset, read_noise, classes)
    return CameraEstimate(slope, zero, read)


def _refusal(problem: str) -> DataError:
    return DataError(
        f"the camera's noise cannot be estimated: {problem}. Give data.intensity.camera as "
        "numbers, or set data.intensity to {percentiles: [0.1, 99.9]} if the noise is of one level"
    )


def _split(
    line: _Line,
    interval: Callable[[Callable[[_Line], float], float], Interval],
    offset: Given,
    read_noise: Given,
    classes: _Classes,
) -> tuple[Interval, Interval]:
    """Offset and read noise: which point of the line is without light."""
    if isinstance(read_noise, float):
        read = Interval(read_noise, read_noise, read_noise)
        if isinstance(offset, float):
            return Interval(offset, offset, offset), read
        at = (read_noise**2 - line.intercept) / line.gain
        zero = interval(
            lambda one: (read_noise**2 - one.intercept) / one.gain, line.error(at) / line.gain
        )
        return zero, read
    dark = float(classes.mean[0])
    at = offset if isinstance(offset, float) else dark
    square = interval(lambda one: one.at(at), line.error(at))
    low, value, high = np.sqrt(np.maximum([square.low, square.value, square.high], 0)).tolist()
    if isinstance(offset, float):
        return Interval(offset, offset, offset), Interval(value, low, high)
    lightless = dark - max(square.high, 0.0) / line.gain
    error = float(np.sqrt(np.square(classes.mean_influence[0]).sum()))
    return Interval(dark, lightless, dark + _Z * error), Interval(value, 0.0, high)


def _brightness_around(half: Half) -> Float64[np.ndarray, " n m"]:
    """Mean over the four patches beside each patch."""
    grid = half.mean.reshape(-1, *half.grid)
    wide = np.pad(grid, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    around = wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1] + wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]
    mean: np.ndarray = around.reshape(half.mean.shape) / 4
    return mean


def _classes(halves: Sequence[Half], share: float, *, quietest: bool) -> _Classes:
    """Mean and variance in flat patches of each class of brightness."""
    around = [_brightness_around(half) for half in halves]
    together = np.concatenate([one.ravel() for one in around])
    low, high = np.quantile(together, [0.001, 0.999])
    # Even steps in the root, because noise grows like the root.
    edges = low + (high - low) * np.linspace(0, 1, _CLASSES + 1)[1:-1] ** 2
    classes = [np.digitize(one, edges) for one in around]
    rows = []
    for number in range(_CLASSES):
        chosen = [one == number for one in classes]
        unusable = sum(
            int((one & ~half.usable).sum()) for one, half in zip(chosen, halves, strict=True)
        )
        if unusable <= _MOST_UNUSABLE * sum(int(one.sum()) for one in chosen):
            row = _class(halves, chosen, share, quietest=quietest)
            rows += [] if row is None else [row]
    if len(rows) < 3:
        raise _refusal("there are too few flat places of different brightness")
    return _Classes(*(np.array(column) for column in zip(*rows, strict=True)))


def _class(
    halves: Sequence[Half],
    chosen: Sequence[Bool[np.ndarray, " n m"]],
    share: float,
    *,
    quietest: bool,
) -> tuple[float, float, float, np.ndarray, np.ndarray] | None:
    k = halves[0].quiet.shape[-1]
    used = max(1, k // 2) if quietest else k
    flat = [half.flattest(share, one) for half, one in zip(halves, chosen, strict=True)]
    count = np.concatenate([one.sum(1) for one in flat])
    if count.sum() < _FEWEST:
        return None
    energy, total = [], []
    for half, one in zip(halves, flat, strict=True):
        energy.append((np.square(half.quiet[..., :used]).mean(-1) * one).sum(1))
        total.append((half.mean * one).sum(1))
    variance = ratio_of_sums(np.concatenate(energy), count)
    mean = ratio_of_sums(np.concatenate(total), count)
    error = float(np.sqrt(2 / (used * count.sum())))
    return mean.value, variance.value, error, mean.influence, variance.influence


def _fit(classes: _Classes, gain: Given, through: tuple[float, float] | None) -> _Line:
    """Weighted least squares; a class far off the line for its errors, as texture is, weighs less.

    Args:
        classes: The points.
        gain: The slope, if known.
        through: Mean and variance at a known point of the line.
    """
    mean, variance = classes.mean, classes.variance
    x0, y0 = through if through is not None else (0.0, 0.0)
    columns = [] if isinstance(gain, float) else [mean - x0]
    columns += [] if through is not None else [np.ones_like(mean)]
    if not columns:
        assert isinstance(gain, float)
        return _Line(gain, y0 - gain * x0, np.zeros((2, 2)))
    design = np.stack(columns, axis=1)
    target = variance - y0 - (gain * (mean - x0) if isinstance(gain, float) else 0)
    expected = variance
    robust = np.ones_like(mean)
    for _ in range(_ROUNDS):
        error = np.abs(expected) * np.hypot(classes.relative_error, _MODEL_ERROR)
        weights = robust / error**2
        solve = np.linalg.pinv(design.T @ (weights[:, None] * design)) @ (design.T * weights)
        coefficients = solve @ target
        residual = target - design @ coefficients
        expected = np.maximum(variance - residual, 0.05 * variance)
        robust = 1 / np.maximum(1, np.abs(residual) / (1.5 * error))
    found = list(coefficients)
    slope = gain if isinstance(gain, float) else float(found.pop(0))
    intercept = y0 - slope * x0 if through is not None else float(found.pop(0))
    influence = solve @ (classes.variance_influence - slope * classes.mean_influence)
    covariance = np.zeros((2, 2))
    free = [
        index for index, one in enumerate((not isinstance(gain, float), through is None)) if one
    ]
    covariance[np.ix_(free, free)] = influence @ influence.T
    if through is not None and not isinstance(gain, float):
        spread = np.array([1.0, -x0])
        covariance = covariance[0, 0] * np.outer(spread, spread)
    return _Line(slope, intercept, covariance)
