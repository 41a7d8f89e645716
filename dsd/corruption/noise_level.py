"""How noisy are these images? The level of white Gaussian noise, with an interval and checks.

Texture can only add to the noise that flat patches show, so that an estimate errs upwards. How
much is not known, but estimates that feel texture differently disagree by about as much. The
interval is therefore the estimate, plus and minus chance (over images) and that disagreement.

A level slightly too high is the safer one. With the adjusted objective at ``sigma_hat`` each
eigenvalue of the learned covariance is off by ``sigma ** 2 - sigma_hat ** 2``: a level too low
leaves noise of level ``sqrt(sigma ** 2 - sigma_hat ** 2)`` in every image, one too high shrinks
faint directions. Hence the recommendation: the upper end of the interval.

Limits: texture that is as white as noise (sand, JPEG rounding) is noise to this estimator, and
where no patch is flat the whole interval may lie too high.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.stats import chi2, norm
from torch import Tensor

from dsd.corruption.noise_checks import FLAT, Check, check_noise, clipped_pixels
from dsd.corruption.noise_patches import (
    Half,
    Patches,
    Ratio,
    cross_fit,
    cut_patches,
    ratio_of_sums,
)
from dsd.corruption.noise_structure import check_structure
from dsd.operators.operator import gaps_of
from dsd.storage.image_store import ImageStore
from dsd.utils.errors import DataError
from dsd.utils.random import derive_seed

__all__ = [
    "NEGLIGIBLE",
    "Check",
    "NoNoiseError",
    "NoiseEstimate",
    "choose_sample",
    "estimate_noise",
    "shortage",
    "take_sample",
]

CONFIDENCE = 0.95
"""Of the statistical part of the interval."""

PATCH = 4
"""Height and width of the patches that give the estimate, in pixels."""

NEGLIGIBLE = 0.01
"""A level that rounding and compression of clean images reach: below it nothing is compared."""

SECOND_PATCH = 5
"""Another size, to see how much the estimate depends on it."""

_FACTOR = 1.3
_MIN_SIDE = 8
_MIN_IMAGES = 20
_MIN_PATCHES = 512
_MAX_CLIPPED = 0.1
_ROUNDING = 1e-13
_MAX_SIDE = 64
_MAX_NUMBERS = 2**22
_CHUNK = 256


@final
class NoNoiseError(DataError):
    """The images are constant, or have no noise beyond the rounding of numbers."""


@final
@dataclass(frozen=True)
class NoiseEstimate:
    """The level of the noise in some images, in data units."""

    sigma: float
    low: float
    high: float
    """The interval: chance and systematic error together."""

    error: float
    """Standard error of ``sigma`` over images: chance alone."""

    alternatives: dict[str, float]
    """The same level by other means; their disagreement is the systematic error."""

    confidence: float
    images: int
    patches: int
    """Images and flat patches behind ``sigma``."""

    checks: tuple[Check, ...]

    @property
    def recommended(self) -> float:
        """The level to train with: the upper end of the interval."""
        return self.high

    @property
    def bracket(self) -> tuple[float, ...]:
        """Levels worth a try, for choosing by Proximal FID or by eye."""
        return self.low, self.high, 1.1 * self.high, 1.25 * self.high

    def contradicts(self, level: float) -> bool:
        """Whether a given level lies outside the interval by more than a factor 1.3."""
        return level > _FACTOR * self.high or level < self.low / _FACTOR

    @property
    def suspicious(self) -> tuple[Check, ...]:
        """The checks that say that the estimate or the method's assumptions are in doubt."""
        return tuple(check for check in self.checks if check.verdict == "suspicious")

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {**asdict(self), "recommended": self.recommended, "bracket": list(self.bracket)}


def choose_sample(count: int, shape: tuple[int, int, int], seed: int) -> Int64[Tensor, " n"]:
    """Numbers of as many images as the estimate needs, ascending, chosen by ``seed`` alone.

    Args:
        count: How many images there are.
        shape: Their channels, height and width.
        seed: Root of the choice.
    """
    channels, height, width = shape
    size = channels * min(height, _MAX_SIDE) * min(width, _MAX_SIDE)
    generator = torch.Generator().manual_seed(derive_seed(seed, "noise level"))
    enough = max(_MIN_IMAGES, _MAX_NUMBERS // size)
    return torch.randperm(count, generator=generator)[:enough].sort().values


def take_sample(store: ImageStore, seed: int) -> Float[Tensor, " n c h w"]:
    """Images of :func:`choose_sample`; of large ones a window, at the same place in all of them.

    Images that are known to be clean are passed over, unless all are, and those with gaps. One
    place for all shows a pattern that the images share.
    """
    candidates = torch.arange(len(store))
    if store.meta.layout.noisy and store.sigma.any():
        candidates = store.sigma.nonzero()[:, 0]
    chosen = candidates[choose_sample(len(candidates), store.shape, seed)]
    _, height, width = store.shape
    rows, columns = min(height, _MAX_SIDE), min(width, _MAX_SIDE)
    generator = torch.Generator().manual_seed(derive_seed(seed, "noise level", "windows"))
    top = int(torch.randint(height - rows + 1, (), generator=generator))
    left = int(torch.randint(width - columns + 1, (), generator=generator))
    few = max(1, _CHUNK * _MAX_SIDE**2 // (height * width))
    windows = [
        store.take(indices)[:, :, top : top + rows, left : left + columns].clone()
        for indices in chosen.split(few)
    ]
    images = torch.cat(windows)
    if store.meta.info.get("missing"):
        images = images[gaps_of(images).logical_not().flatten(1).all(1)]
    return images


def estimate_noise(images: Float[Tensor, " n c h w"]) -> NoiseEstimate:
    """Estimate the standard deviation of white Gaussian noise in images of unknown content.

    Args:
        images: Noisy images in data units, from 8 x 8 pixels; some hundreds or thousands.

    Raises:
        NoNoiseError: The images are constant, or without any noise.
        DataError: There are too few or too small images, they are not finite, or so many pixels
            are constant or clipped that nothing can be said.
    """
    values = images.numpy().astype(np.float64)
    _check_images(values)
    clipped = clipped_pixels(values)
    _check_clipping(float(clipped.mean()))
    patches = cut_patches(values, PATCH, clipped)
    _check_patches(patches)
    halves = cross_fit(patches)
    variance = _variance(halves, FLAT, quietest=True)
    _check_noise(variance.value, float(values.var()))
    others = {
        "flattest quarter of the patches": _variance(halves, 2 * FLAT, quietest=True).value,
        "all quiet directions": _variance(halves, FLAT, quietest=False).value,
        "median instead of mean": _median_variance(halves),
    }
    if min(values.shape[-2:]) >= 2 * SECOND_PATCH:
        second = cut_patches(values, SECOND_PATCH, clipped)
        needed = _needed(second.channels, second.size) // 2
        if all(second.usable[first::2].sum() >= needed for first in (0, 1)):
            others["larger patches"] = _variance(cross_fit(second), FLAT, quietest=True).value
    return _estimate(values, patches, halves, variance, others, clipped)


def _estimate(
    images: Float64[np.ndarray, " n c h w"],
    patches: Patches,
    halves: Sequence[Half],
    variance: Ratio,
    others: dict[str, float],
    clipped: Bool[np.ndarray, " n c h w"],
) -> NoiseEstimate:
    """Put the interval together, in variances, and check the noise."""
    chance = float(norm.ppf((1 + CONFIDENCE) / 2)) * variance.error
    disagreement = max(abs(other - variance.value) for other in others.values())
    half_width = chance + disagreement
    sigma = float(np.sqrt(variance.value))
    return NoiseEstimate(
        sigma=sigma,
        low=float(np.sqrt(max(variance.value - half_width, 0.0))),
        high=float(np.sqrt(variance.value + half_width)),
        error=variance.error / (2 * sigma) if sigma else 0.0,
        alternatives={name: float(np.sqrt(other)) for name, other in others.items()},
        confidence=CONFIDENCE,
        images=len(images),
        patches=sum(int(half.flattest(FLAT).sum()) for half in halves),
        checks=(
            *check_noise(images, patches, halves, clipped, sigma),
            *check_structure(images, halves, sigma),
        ),
    )


def _flat_energy(
    halves: Sequence[Half], share: float, *, quietest: bool
) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """Quiet energy of each patch, whether it is flat, and of how many directions it is."""
    k = halves[0].quiet.shape[-1]
    used = max(1, k // 2) if quietest else k
    energy = [np.square(half.quiet[..., :used]).sum(-1) for half in halves]
    return energy, [half.flattest(share) for half in halves], used


def _variance(halves: Sequence[Half], share: float, *, quietest: bool) -> Ratio:
    """Mean square in quiet directions over the flattest patches: the noise variance."""
    energy, flat, used = _flat_energy(halves, share, quietest=quietest)
    return ratio_of_sums(
        np.concatenate([(e * f).sum(1) for e, f in zip(energy, flat, strict=True)]),
        used * np.concatenate([f.sum(1) for f in flat]).astype(np.float64),
    )


def _median_variance(halves: Sequence[Half]) -> float:
    """The noise variance from the median energy of a patch, which rare texture does not move."""
    energy, flat, used = _flat_energy(halves, FLAT, quietest=True)
    chosen = np.concatenate([e[f] for e, f in zip(energy, flat, strict=True)])
    return float(np.median(chosen) / chi2.ppf(0.5, used))


def _needed(channels: int, size: int) -> int:
    """Patches without which the principal components mean nothing."""
    return max(_MIN_PATCHES, 16 * channels * size**2)


def shortage(count: int, shape: tuple[int, int, int]) -> str | None:
    """Why no noise level can be estimated from so many images, whatever they show.

    Args:
        count: How many images there are.
        shape: Their channels, height and width.

    Returns:
        The problem and its remedy, or None where there are enough images and pixels.
    """
    channels, height, width = shape
    if min(height, width) < _MIN_SIDE:
        return f"images of {width} x {height} are too small: use {_MIN_SIDE} x {_MIN_SIDE}"
    each = (min(height, _MAX_SIDE) // PATCH) * (min(width, _MAX_SIDE) // PATCH)
    needed = max(_MIN_IMAGES, 2 * -(-_needed(channels, PATCH) // (2 * each)))
    if count < needed:
        return f"there are only {count} images, and {needed} are needed: use more"
    return None


def _check_images(images: Float64[np.ndarray, " n c h w"]) -> None:
    """Raise DataError for images that cannot be measured."""
    count, channels, height, width = images.shape
    problem = shortage(count, (channels, height, width))
    if problem is None and not np.isfinite(images).all():
        problem = "some pixels are NaN or infinite: repair or remove those images"
    if problem is not None:
        raise DataError(f"the noise level cannot be estimated: {problem}")
    if np.ptp(images, axis=(-2, -1)).max() == 0:
        raise NoNoiseError("all images are constant, without any noise: correct their source")


def _check_clipping(share: float) -> None:
    if share > _MAX_CLIPPED:
        msg = (
            f"the noise level cannot be estimated: {share:.0%} of the pixels are clipped (exactly "
            "at the smallest or largest value): use values from before clipping, or give a number"
        )
        raise DataError(msg)


def _check_patches(patches: Patches) -> None:
    """Raise DataError unless each half of the images has the patches that it needs."""
    usable = min(int(patches.usable[first::2].sum()) for first in (0, 1))
    needed = -(-_needed(patches.channels, patches.size) // 2)
    if usable < needed:
        msg = (
            f"the noise level cannot be estimated: half of the images has only {usable} patches "
            f"of {PATCH} x {PATCH} pixels that are neither constant nor clipped, and {needed} are "
            "needed: use more images"
        )
        raise DataError(msg)


def _check_noise(variance: float, total: float) -> None:
    if variance <= _ROUNDING * total:
        msg = "the images have no noise beyond rounding"
        raise NoNoiseError(msg)
