r"""The spectrum of correlated noise in images of unknown content, with intervals.

Half the mean squared difference of pixels a lag l apart, the variogram g(l), needs no mean to be
subtracted. In flat windows it is r(0) - r(l), r the noise's covariance, and r(0) itself beyond
the noise's reach. So

    r(0) = mean of g(l) over lags beyond the reach,      r(l) = r(0) - g(l),

and the spectrum is the Fourier transform of r. Windows are called flat by the variance of the
pixels *around* them, which chooses no window for its own little noise.

Texture in flat windows adds to the variogram, and more so where the choice of windows is less
strict. Estimates by stricter and laxer choices therefore disagree by about as much as texture
matters. The interval is chance (over images) plus that disagreement.

Limits: noise that is correlated beyond the reach (stripes, slow drifts) is seen, not estimated.
Where no place is flat, the whole interval may lie off.

Reference:
    Cressie 1993, "Statistics for Spatial Data", section 2.4, for the variogram.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.stats import norm

from dsd.corruption.noise_checks import ERRORS, Check, clipped_pixels, make_check
from dsd.corruption.noise_kernel import kernel_of
from dsd.corruption.noise_level import CONFIDENCE, NoiseEstimate
from dsd.utils.errors import DataError

__all__ = ["SpectrumEstimate", "estimate_spectrum"]

_WINDOWS = {24: 8, 48: 12}
"""Side of the windows by the least side of the images; three fit, so that each has others around
it."""

_SHARE = 1 / 8
"""Of the windows, the flattest, that give the estimate."""

_OTHER_SHARES = (1 / 4, 1 / 16)
_FEWEST = 50
"""Windows behind each estimate, at least."""

_OUTLIER = 8.0
"""Median deviations above the median from which a window's variance is an object in it."""

_FAR = 0.1
"""Correlation beyond the reach, along a row or a column, that matters."""


@final
@dataclass(frozen=True, eq=False)
class SpectrumEstimate:
    """The covariance and spectrum of the noise in some images, channel by channel."""

    level: NoiseEstimate
    """Of single pixels."""

    covariance: Float64[np.ndarray, " c k k"]
    """r(l) in squared data units, the lag 0 in the middle."""

    spectrum: Float64[np.ndarray, " c f f"]
    """Power at the frequencies of the discrete Fourier transform of as many pixels as there are
    lags, in squared data units."""

    half_width: Float64[np.ndarray, " c f f"]
    """Of the interval of each; all of them together hold the spectrum with the confidence of the
    level."""

    @property
    def reach(self) -> int:
        """Largest lag at which the noise may be correlated, in pixels."""
        return int(self.covariance.shape[-1]) // 2

    @cached_property
    def kernel(self) -> Float[np.ndarray, " c m m"]:
        """The kernel that gives white noise this spectrum."""
        return kernel_of(self.covariance)

    @property
    def neighbours(self) -> str:
        """How neighbouring pixels correlate, in words."""
        middle = self.reach
        mean = self.covariance.mean(0)
        row, column = (mean[middle, middle + 1], mean[middle + 1, middle]) / mean[middle, middle]
        return f"{row:+.2f} along a row, {column:+.2f} along a column"

    def contains(self, spectrum: Float64[np.ndarray, " c f f"]) -> bool:
        """Whether a spectrum lies within all intervals."""
        return bool((np.abs(spectrum - self.spectrum) <= self.half_width).all())


def estimate_spectrum(images: Float[np.ndarray, " n c h w"]) -> SpectrumEstimate:
    """Estimate the covariance of stationary noise in images of unknown content.

    Args:
        images: Noisy images in data units, from 24 x 24 pixels; some hundreds or thousands.

    Raises:
        DataError: The images are too small or too few.
    """
    side = max((w for least, w in _WINDOWS.items() if min(images.shape[2:]) >= least), default=0)
    if side == 0:
        msg = (
            f"the noise's spectrum cannot be estimated from images of {images.shape[3]} x "
            f"{images.shape[2]}: {min(_WINDOWS)} x {min(_WINDOWS)} pixels are needed. Name a file "
            "with its kernel, or with frames of noise alone, in corrupt.spectrum"
        )
        raise DataError(msg)
    values = images.astype(np.float64)
    windows, flatness = _windows(values, side)
    count = int(np.isfinite(flatness).sum() * _OTHER_SHARES[-1])
    if count < _FEWEST:
        msg = (
            f"the noise's spectrum cannot be estimated: only {count} windows of {side} x {side} "
            f"pixels are flat, and {_FEWEST} are needed. Use more images, or name a file with its "
            "kernel or with frames of noise alone in corrupt.spectrum"
        )
        raise DataError(msg)
    found = {
        share: _Variogram.of(windows, flatness, share, side) for share in (_SHARE, *_OTHER_SHARES)
    }
    return _estimate(found, len(images))


def _windows(
    images: Float64[np.ndarray, " n c h w"], side: int
) -> tuple[Float64[np.ndarray, " n m c s s"], Float64[np.ndarray, " n m"]]:
    """Windows with windows on all sides, and the variance of these (infinite if clipped)."""
    n, c, h, w = images.shape
    rows, columns = h // side, w // side
    grid = images[:, :, : rows * side, : columns * side].reshape(n, c, rows, side, columns, side)
    bad = clipped_pixels(images)[:, :, : rows * side, : columns * side]
    bad = np.any(bad.reshape(n, c, rows, side, columns, side), axis=(1, 3, 5))
    moments = np.stack([grid.mean((3, 5)), np.square(grid).mean((3, 5))])
    total = np.sum(
        [
            moments[..., 1 + i : rows - 1 + i, 1 + j : columns - 1 + j]
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
            if (i, j) != (0, 0)
        ],
        axis=0,
    )
    mean, square = total / 8
    # A pattern that is the same everywhere must not hide in the strongest channel.
    variance = square - np.square(mean)
    scale = np.median(variance, axis=(0, 2, 3), keepdims=True)
    flatness = (variance / np.maximum(scale, np.finfo(float).tiny)).sum(1).reshape(n, -1)
    own = grid[:, :, 1:-1, :, 1:-1].transpose(0, 2, 4, 1, 3, 5).reshape(n, -1, c, side, side)
    clipped = bad[:, 1:-1, 1:-1].reshape(n, -1)
    constant = (np.ptp(own, axis=(-2, -1)) == 0).any(-1)
    return own, np.where(clipped | constant, np.inf, flatness)


@final
@dataclass(frozen=True, eq=False)
class _Variogram:
    """The covariance that flat windows show, and what each image contributed to its error."""

    covariance: Float64[np.ndarray, " c k k"]
    influence: Float64[np.ndarray, " n c k k"]
    far: Float64[np.ndarray, " axes"]
    """Correlation beyond the reach along a row and along a column, the mean over channels."""

    far_error: Float64[np.ndarray, " axes"]
    windows: int

    @classmethod
    def of(
        cls,
        windows: Float64[np.ndarray, " n m c s s"],
        flatness: Float64[np.ndarray, " n m"],
        share: float,
        side: int,
    ) -> "_Variogram":
        """Measure the flattest of the windows.

        Args:
            windows: Of each image.
            flatness: Of each window, the least is the flattest.
            share: How many of them to use.
            side: Of a window, in pixels.
        """
        usable = np.isfinite(flatness)
        flat = usable & (flatness <= np.quantile(flatness[usable], share))
        flat &= _without_objects(windows, flat)
        image, _ = np.nonzero(flat)
        sums, pairs = _squared_differences(windows[flat], side)
        by_image = np.zeros((len(windows), *sums.shape[1:]))
        np.add.at(by_image, image, sums)
        counts = np.bincount(image, minlength=len(windows)).astype(float)[:, None, None, None]
        total = counts.sum()
        variogram = by_image.sum(0) / (total * pairs)
        influence = (by_image / pairs - variogram * counts) / total
        covariance, far = _covariance(variogram, pairs, side)
        errors, far_errors = _covariance(influence, pairs, side)
        level = _middle(covariance).mean()
        far_error = np.sqrt(np.square(far_errors.mean(1)).sum(0))
        return cls(covariance, errors, far.mean(0) / level, far_error / level, int(flat.sum()))

    @property
    def spectrum(self) -> Float64[np.ndarray, " c f f"]:
        return _spectrum(self.covariance)


def _covariance(
    variogram: Float64[np.ndarray, " *n c l l"], pairs: Float64[np.ndarray, " l l"], side: int
) -> tuple[Float64[np.ndarray, " *n c k k"], Float64[np.ndarray, " *n c axes"]]:
    """Covariance up to the reach, and beyond it along a row and along a column."""
    reach = side // 2 - 1
    lag = np.abs(np.fft.fftfreq(2 * side, 1 / (2 * side)))
    distance = np.maximum(lag[:, None], lag[None, :])
    beyond = pairs * ((distance > reach) & (distance < side))
    level = (variogram * beyond / beyond.sum()).sum((-2, -1), keepdims=True)
    covariance = np.fft.fftshift(level - variogram, axes=(-2, -1))
    near = slice(side - reach, side + reach + 1)
    # The last lags have few pairs.
    far = slice(reach + 1, side - 2)
    row = (level[..., 0] - variogram[..., 0, far]).mean(-1)
    column = (level[..., 0] - variogram[..., far, 0]).mean(-1)
    return covariance[..., near, near], np.stack([row, column], axis=-1)


def _without_objects(
    windows: Float64[np.ndarray, " n m c s s"], flat: Bool[np.ndarray, " n m"]
) -> Bool[np.ndarray, " n m"]:
    """Windows without a star, a cell or an edge that those around them do not show."""
    variance = windows.var((-2, -1)).max(-1)
    chosen = variance[flat]
    middle = np.median(chosen)
    spread = 1.4826 * np.median(np.abs(chosen - middle))
    kept: np.ndarray = variance <= middle + _OUTLIER * spread
    return kept


def _squared_differences(
    windows: Float64[np.ndarray, " m c s s"], side: int
) -> tuple[Float64[np.ndarray, " m c l l"], Float64[np.ndarray, " l l"]]:
    """Half the sum of squared differences at each lag of the torus, and how many pairs there are.

    Sums over all pairs of a lag are correlations, which Fourier transforms give for all lags.
    """
    shape = (2 * side, 2 * side)
    centred = windows - windows.mean((-2, -1), keepdims=True)
    ones = np.fft.rfft2(np.ones((side, side)), shape)
    values = np.fft.rfft2(centred, shape)
    squares = np.fft.rfft2(np.square(centred), shape)
    pairs = np.round(np.fft.irfft2(np.abs(ones) ** 2, shape))
    both = np.fft.irfft2(2 * (squares * ones.conj()).real - 2 * np.abs(values) ** 2, shape)
    return both / 2, np.maximum(pairs, 1)


def _spectrum(covariance: np.ndarray) -> np.ndarray:
    shifted = np.fft.ifftshift(covariance, axes=(-2, -1))
    transformed: np.ndarray = np.fft.fft2(shifted).real
    return transformed


def _estimate(found: Mapping[float, _Variogram], images: int) -> SpectrumEstimate:
    best = found[_SHARE]
    others = [found[share] for share in _OTHER_SHARES]
    spectrum = best.spectrum
    free = (best.covariance[0].size + 1) // 2 * len(best.covariance)
    together = float(norm.ppf(1 - (1 - CONFIDENCE) / (2 * free)))
    chance = together * np.sqrt(np.square(_spectrum(best.influence)).sum(0))
    disagreement = np.max([np.abs(other.spectrum - spectrum) for other in others], axis=0)
    return SpectrumEstimate(
        level=_level(found, images),
        covariance=best.covariance,
        spectrum=spectrum,
        half_width=chance + disagreement,
    )


def _level(found: Mapping[float, _Variogram], images: int) -> NoiseEstimate:
    """The level of single pixels, from r(0)."""
    best = found[_SHARE]
    variances = {share: float(_middle(one.covariance).mean()) for share, one in found.items()}
    variance = max(variances[_SHARE], 0.0)
    error = float(np.sqrt(np.square(_middle(best.influence).mean(-1)).sum()))
    chance = float(norm.ppf((1 + CONFIDENCE) / 2)) * error
    half_width = chance + max(abs(variances[share] - variance) for share in _OTHER_SHARES)
    sigma = float(np.sqrt(variance))
    return NoiseEstimate(
        sigma=sigma,
        low=float(np.sqrt(max(variance - half_width, 0.0))),
        high=float(np.sqrt(variance + half_width)),
        error=error / (2 * sigma) if sigma else 0.0,
        alternatives={
            f"flattest 1/{round(1 / share)} of the windows": float(np.sqrt(max(value, 0.0)))
            for share, value in variances.items()
            if share != _SHARE
        },
        confidence=CONFIDENCE,
        images=images,
        patches=best.windows,
        checks=(_within_reach(best),),
    )


def _middle(covariance: np.ndarray) -> np.ndarray:
    middle: np.ndarray = covariance[..., covariance.shape[-2] // 2, covariance.shape[-1] // 2]
    return middle


def _within_reach(variogram: _Variogram) -> Check:
    """Correlation of pixels of a row, and of a column, that are farther apart than the reach."""
    certain = np.abs(variogram.far) - ERRORS * variogram.far_error
    worst = int(certain.argmax())
    value, error = float(variogram.far[worst]), float(variogram.far_error[worst])
    where = ("row", "column")[worst]
    reach = variogram.covariance.shape[-1] // 2
    found = f"pixels of a {where} more than {reach} apart correlate by {value:+.2f} +- {error:.2f}"
    return make_check("short reach", float(certain[worst]) > _FAR, value, found)
