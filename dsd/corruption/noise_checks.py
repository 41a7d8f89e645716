"""Is the noise what the method assumes: white, Gaussian, the same everywhere, unclipped?

Each check has one number, the limit beyond which it matters, and a sentence. It is ``suspicious``
only where the number is beyond the limit by more than chance (three standard errors over images).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, final

import numpy as np
from jaxtyping import Bool, Float64
from scipy.ndimage import maximum_filter, minimum_filter

from dsd.corruption.noise_patches import Half, Patches, Ratio, ratio_of_sums

__all__ = ["ERRORS", "FLAT", "Check", "check_noise", "clipped_pixels", "make_check"]

REMEDIES = {
    "white": (
        "the noise is not white, so its level is not to be trusted: set corrupt.spectrum to auto, "
        "or use images from before any resizing, filtering, demosaicing or compression"
    ),
    "gaussian": (
        "the noise is not Gaussian, or differs between images or places: treat images of one level"
        " and one detector together, and stabilise the variance where it follows the signal"
    ),
    "short reach": (
        "that is more than is estimated: name a file with frames of noise alone in "
        "corrupt.spectrum, or subtract row and column offsets first"
    ),
    "impulses": (
        "there is salt-and-pepper noise or defect pixels, which Gaussian noise does not describe: "
        "map and mend them first (very fine texture can look the same)"
    ),
    "signal-independent": (
        "the noise follows the signal, as photon noise does: stabilise the variance (Anscombe's "
        "transform) before training"
    ),
    "one level": "the images are not equally noisy: train on those of one level at a time",
    "unclipped": (
        "noise was clipped there, which biases what is learned: use values from before clipping"
    ),
    "everywhere": (
        "they look like a border, a mask or a failed channel: crop them away, because the model "
        "takes all pixels to be equally noisy"
    ),
    "fine steps": (
        "that is coarser than the noise, so that rounding is a good part of it: use data of more "
        "bits"
    ),
    "flat spectrum": (
        "either the noise also varies slowly or in stripes, and is stronger than the estimate (use"
        " images from before filtering or interpolation, remove row, column and background "
        "offsets), or no place in the images is free of texture"
    ),
    "equal scale": (
        "the images are not equally noisy, as after scaling each by itself: train on images of one"
        " level, in one unit"
    ),
    "no fixed pattern": (
        "all images share a pattern, which would be learned as part of them: subtract the mean of "
        "dark or flat frames first"
    ),
}
"""What to do where a check is suspicious, by its name."""

FLAT = 1 / 8
"""Share of the patches, the flattest, from which the noise is read."""

ERRORS = 3.0
"""Standard errors by which a number must be beyond its limit."""

_CORRELATION = 0.1
_KURTOSIS = (-0.4, 1.0)
_RATIO = 1.25
_SETTLED = 0.9
_IMPULSES = 0.004
_CLIPPED = 0.001
_CONSTANT = 0.01
_CLASSES = 6
_QUANTILES = np.arange(1, _CLASSES) / _CLASSES


@final
@dataclass(frozen=True)
class Check:
    """One property of the noise."""

    name: str
    verdict: Literal["ok", "suspicious"]
    value: float
    """What was measured; the text says in which unit."""

    text: str
    """What it means and, if suspicious, what to do."""

    @property
    def finding(self) -> str:
        """What was measured, without the remedy."""
        return f"{self.name}: {self.text.partition('; ')[0]}"


def check_noise(
    images: Float64[np.ndarray, " n c h w"],
    patches: Patches,
    halves: Sequence[Half],
    clipped: Bool[np.ndarray, " n c h w"],
    sigma: float,
) -> tuple[Check, ...]:
    """Check the noise of some images.

    Args:
        images: In data units.
        patches: Their patches.
        halves: The patches in quiet and loud directions.
        clipped: Pixels at a bound of the recording (:func:`clipped_pixels`).
        sigma: The estimated level, in data units.
    """
    return (
        _white(patches, halves),
        _gaussian(halves),
        _impulses(images, sigma),
        _independent_of_the_signal(halves),
        _same_in_all_images(halves),
        _unclipped(clipped),
        _everywhere(patches, clipped),
        _fine_steps(images, sigma),
    )


def make_check(name: str, suspicious: bool, value: float, found: str) -> Check:
    """Make a check whose text ends with the remedy only if there is something to remedy."""
    if suspicious:
        return Check(name, "suspicious", value, f"{found}; {REMEDIES[name]}")
    return Check(name, "ok", value, found)


def _flat_sums(halves: Sequence[Half], forms: Sequence[np.ndarray]) -> Float64[np.ndarray, " n"]:
    """For each image, the sum over its flat patches of a quadratic form in quiet coordinates."""
    parts = []
    for half, form in zip(halves, forms, strict=True):
        values = np.einsum("nmi,ij,nmj->nm", half.quiet, form, half.quiet, optimize=True)
        parts.append((values * half.flattest(FLAT)).sum(1))
    return np.concatenate(parts)


def _white(patches: Patches, halves: Sequence[Half]) -> Check:
    """Correlation of neighbouring pixels and of channels, from the quiet covariance.

    That covariance is fitted, by least squares, as ``B' (v I + v rho_1 A_1 + ...) B`` with the
    quiet directions B and one adjacency matrix A for each kind of neighbour.
    """
    kinds = _neighbours(patches.channels, patches.size)
    forms = [_least_squares(half.basis, list(kinds.values())) for half in halves]
    variance = _flat_sums(halves, [form[0] for form in forms])
    found = {
        kind: ratio_of_sums(_flat_sums(halves, [form[number] for form in forms]), variance)
        for number, kind in enumerate(kinds, 1)
    }
    worst = max(found, key=lambda kind: abs(found[kind].value) - ERRORS * found[kind].error)
    value, error = found[worst].value, found[worst].error
    return make_check(
        "white",
        abs(value) - ERRORS * error > _CORRELATION,
        value,
        f"{worst} correlate by {value:+.2f} +- {error:.2f}",
    )


def _neighbours(channels: int, size: int) -> dict[str, Float64[np.ndarray, " d d"]]:
    """Which pixels of a patch are neighbours of which, by kind."""
    number = np.arange(channels * size * size).reshape(channels, size, size)
    pairs = {
        "neighbours in a row": [(number[:, :, :-1], number[:, :, 1:])],
        "neighbours in a column": [(number[:, :-1], number[:, 1:])],
        "channels": list(combinations(number, 2)),
    }
    return {kind: _adjacency(number.size, found) for kind, found in pairs.items() if found}


def _adjacency(
    count: int, pairs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Float64[np.ndarray, " d d"]:
    matrix = np.zeros((count, count))
    for one, other in pairs:
        matrix[one, other] = matrix[other, one] = 1
    return matrix


def _least_squares(
    basis: Float64[np.ndarray, " d k"], adjacencies: Sequence[np.ndarray]
) -> Float64[np.ndarray, " f k k"]:
    """Quadratic forms whose means over patches are the coefficients of the fit."""
    k = basis.shape[1]
    model = np.stack([np.eye(k), *(basis.T @ matrix @ basis for matrix in adjacencies)])
    forms: Float64[np.ndarray, " f k k"] = np.linalg.pinv(model.reshape(len(model), -1).T)
    return forms.reshape(len(model), k, k)


def _gaussian(halves: Sequence[Half]) -> Check:
    """Excess kurtosis of single pixels in flat patches, after their loud part is taken off."""
    kurtosis = _kurtosis(halves)
    low, high = _KURTOSIS
    value, margin = kurtosis.value, ERRORS * kurtosis.error
    return make_check(
        "gaussian",
        value - margin > high or value + margin < low,
        value,
        f"excess kurtosis {value:+.2f} +- {kurtosis.error:.2f} (Gaussian noise has 0)",
    )


def _kurtosis(halves: Sequence[Half]) -> Ratio:
    """Excess kurtosis of independent pixel noise behind the residual's own.

    The residual of a pixel is a sum over the patch with weights P = B B', so that its excess
    kurtosis is the noise's times ``sum(P_ij ** 4) / P_ii ** 2``.
    """
    fourth, second, count, shares = [], [], [], []
    for half in halves:
        projection = half.basis @ half.basis.T
        spread = np.diag(projection)
        flat = half.flattest(FLAT)
        residual = half.quiet @ half.basis.T / np.sqrt(np.maximum(spread, 1e-12))
        square = np.square(residual)
        fourth.append((np.square(square).mean(-1) * flat).sum(1))
        second.append((square.mean(-1) * flat).sum(1))
        count.append(flat.sum(1))
        shares.append(np.mean((projection**4).sum(1) / spread**2))
    fourth_moment = ratio_of_sums(np.concatenate(fourth), np.concatenate(count))
    variance = ratio_of_sums(np.concatenate(second), np.concatenate(count))
    share, square_mean = float(np.mean(shares)), variance.value**2
    excess = fourth_moment.value / square_mean - 3
    influence = fourth_moment.influence / square_mean
    influence = influence - 2 * (excess + 3) * variance.influence / variance.value
    return Ratio(excess / share, influence / share)


def _impulses(images: Float64[np.ndarray, " n c h w"], sigma: float) -> Check:
    """Pixels that stand out from all eight neighbours, as salt and pepper or dead pixels do."""
    ring = np.ones((1, 1, 3, 3), bool)
    ring[..., 1, 1] = False
    low = minimum_filter(images, footprint=ring, mode="nearest")
    high = maximum_filter(images, footprint=ring, mode="nearest")
    distance = np.maximum(images - high, low - images)
    share = float(np.mean((distance > 4 * sigma) & (distance > high - low)))
    return make_check(
        "impulses",
        share > _IMPULSES,
        share,
        f"{share:.2%} of the pixels stand out from all their neighbours",
    )


def _independent_of_the_signal(halves: Sequence[Half]) -> Check:
    """Noise in flat dark patches against flat bright ones."""
    edges = np.quantile(np.concatenate([half.mean[half.usable] for half in halves]), _QUANTILES)
    return _same_in_all_classes(
        "signal-independent",
        halves,
        [np.digitize(half.mean, edges) for half in halves],
        "between dark and bright patches",
    )


def _same_in_all_images(halves: Sequence[Half]) -> Check:
    """Noise in calm images against restless ones.

    Every other patch tells which image is calm, the rest is measured: no image is called noisy for
    the very noise that is then measured.
    """
    calm = [np.median(_energy(half)[:, ::2], axis=1, keepdims=True) for half in halves]
    edges = np.quantile(np.concatenate(calm), _QUANTILES)
    classes = []
    for half, level in zip(halves, calm, strict=True):
        one = np.repeat(np.digitize(level, edges), half.mean.shape[1], axis=1)
        one[:, ::2] = -1
        classes.append(one)
    return _same_in_all_classes("one level", halves, classes, "between images")


def _same_in_all_classes(
    name: str, halves: Sequence[Half], classes: Sequence[np.ndarray], where: str
) -> Check:
    """Noise in flat patches of one class (a number for each patch) against those of others."""
    found = [_settled_variance(halves, [one == k for one in classes]) for k in range(_CLASSES)]
    known = [one for one in found if one is not None]
    if len(known) < 2:
        return make_check(name, False, 1.0, f"unknown: too few flat patches {where}")
    levels = [variance.value for variance, _ in known]
    ratio = float(np.sqrt(max(levels) / min(levels)))
    lowest = min(variance.value + margin for variance, margin in known)
    highest = max(variance.value - margin for variance, margin in known)
    text = f"the noise of flat patches differs by a factor {ratio:.2f} {where}"
    return make_check(name, highest > _RATIO**2 * lowest, ratio, text)


def _settled_variance(
    halves: Sequence[Half], among: Sequence[np.ndarray]
) -> tuple[Ratio, float] | None:
    """Quiet variance in the flattest of some patches, and its margin; None where it has texture.

    Classes of patches differ in texture, too. Texture shows itself: the variance then goes on
    falling as the choice of patches becomes stricter.
    """
    flat = [
        [half.flattest(share, one) for half, one in zip(halves, among, strict=True)]
        for share in (4 * FLAT, FLAT)
    ]
    if min(part.sum() for parts in flat for part in parts) == 0:
        return None
    loose, strict = (_quiet_variance(halves, parts) for parts in flat)
    if strict.value < _SETTLED * loose.value:
        return None
    return strict, ERRORS * strict.error + abs(loose.value - strict.value)


def _quiet_variance(halves: Sequence[Half], flat: Sequence[np.ndarray]) -> Ratio:
    energy = [(_energy(half) * one).sum(1) for half, one in zip(halves, flat, strict=True)]
    return ratio_of_sums(np.concatenate(energy), np.concatenate([one.sum(1) for one in flat]))


def _energy(half: Half) -> Float64[np.ndarray, " n m"]:
    """Mean square in the quieter half of the quiet directions."""
    energy: Float64[np.ndarray, " n m"]
    energy = np.square(half.quiet[..., : max(1, half.quiet.shape[-1] // 2)]).mean(-1)
    return energy


def clipped_pixels(images: Float64[np.ndarray, " n c h w"]) -> Bool[np.ndarray, " n c h w"]:
    """Pixels at the smallest or largest value of all, where many have exactly that value."""
    clipped = np.zeros(images.shape, bool)
    for bound in (images.min(), images.max()):
        at_bound = images == bound
        if at_bound.mean() > _CLIPPED:
            clipped |= at_bound
    return clipped


def _unclipped(clipped: Bool[np.ndarray, " n c h w"]) -> Check:
    share = float(clipped.mean())
    return make_check(
        "unclipped",
        share > 0,
        share,
        f"{share:.2%} of the pixels lie exactly at the smallest or largest value",
    )


def _everywhere(patches: Patches, clipped: Bool[np.ndarray, " n c h w"]) -> Check:
    share = float(1 - patches.usable.mean()) if not clipped.any() else 0.0
    return make_check(
        "everywhere",
        share > _CONSTANT,
        share,
        f"{share:.2%} of the patches are constant, without any noise",
    )


def _fine_steps(images: Float64[np.ndarray, " n c h w"], sigma: float) -> Check:
    step = _step(images)
    return make_check(
        "fine steps",
        step > sigma,
        step,
        f"values lie {step:.3g} apart" if step else "values are continuous",
    )


def _step(images: Float64[np.ndarray, " n c h w"]) -> float:
    """Distance between neighbouring values of quantised images; 0 for continuous ones."""
    some = images.ravel()[:: max(1, images.size // 100_000)]
    values = np.unique(some.astype(np.float32))
    return float(np.median(np.diff(values))) if 1 < len(values) < len(some) / 20 else 0.0
