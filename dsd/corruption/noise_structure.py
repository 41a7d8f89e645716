"""Structure that white noise of one level does not have, and that quiet directions do not show.

Noise that varies slowly over an image, stripes, a pattern that is the same in all images, and
levels that differ from image to image all leave the quiet directions of patches white. Each check
here measures its kind of structure where texture is weakest. ``bench/accuracy/noise_level.py``
measures how often each check fires on noise that has the structure and on noise that has not.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64
from scipy.stats import chi2

from dsd.corruption.noise_checks import ERRORS, Check, make_check
from dsd.corruption.noise_patches import Half, Ratio

__all__ = ["check_structure"]

_EXCESS = 1.5
"""Variance of noise in smooth directions relative to the noise level's, at most."""

_SHARES = (1 / 8, 1 / 32, 1 / 64, 1 / 128)
"""Of the patches, by flatness; texture falls with the share, noise does not."""

_FEWEST = 200
"""Patches in such a share, at least."""

_MEDIAN_ERROR = 2.33
"""Relative standard error of a variance that is read from the median square of one number."""

_LEVELS = 0.01
"""Variance over images of the noise variance relative to its squared mean, at most."""

_FEWEST_IMAGES = 20

_PATTERN = 0.03
"""Variance of a fixed pattern relative to the noise's, at most."""

_BARE = 1.15
"""Spread over images, relative to the noise level, of a place that holds next to no texture."""

_FEWEST_PLACES = 32

_CHI2_MEDIAN = float(chi2.ppf(0.5, 1))

Energy: TypeAlias = tuple[Float64[np.ndarray, " p l"], Float64[np.ndarray, " p l"]]
"""For each patch and loud direction, its energy and the energy by which its flatness is judged."""


def check_structure(
    images: Float64[np.ndarray, " n c h w"], halves: Sequence[Half], sigma: float
) -> tuple[Check, ...]:
    """Check for structure beyond neighbouring pixels.

    Args:
        images: In data units, all cut at the same place.
        halves: Their patches in quiet and loud directions.
        sigma: The estimated noise level, in data units.
    """
    return (
        _flat_spectrum(halves, sigma),
        _equal_scale(halves),
        _no_fixed_pattern(images, sigma),
    )


def _flat_spectrum(halves: Sequence[Half], sigma: float) -> Check:
    """Noise in loud, mostly smooth directions against the noise level.

    Texture and noise both add energy there. Each way to choose flat patches therefore gives an
    upper bound of the noise in a direction, and the least bound is compared with the limit.
    """
    if min(halves[0].grid) < 3:
        return make_check("flat spectrum", False, 1.0, "unknown: images are too small")
    bounds, certain = [], []
    for energy_of in (_beside_other_directions, _beside_other_patches):
        parts = [energy_of(half, sigma) for half in halves]
        energy, flatness = (np.concatenate(part) for part in zip(*parts, strict=True))
        for share in _SHARES:
            count = max(_FEWEST, int(share * len(energy)))
            if count <= len(energy):
                bound = _median_in_flattest(energy, flatness, count)
                bounds.append(bound)
                certain.append(bound * (1 - ERRORS * _MEDIAN_ERROR / np.sqrt(count)))
    if not bounds:
        return make_check("flat spectrum", False, 1.0, "unknown: too few patches")
    least = np.min(certain, axis=0)
    value = float(np.min(bounds, axis=0)[least.argmax()])
    text = f"smooth directions hold up to {value:.1f} times the noise variance of rough ones"
    return make_check("flat spectrum", float(least.max()) > _EXCESS, value, text)


def _beside_other_directions(half: Half, sigma: float) -> Energy:
    """Flatness from the other loud directions of the same patch."""
    energy = np.square(half.loud[half.usable]) / sigma**2
    return energy, energy.sum(-1, keepdims=True) - energy


def _beside_other_patches(half: Half, sigma: float) -> Energy:
    """What the four diagonal neighbours do not predict; flatness from them, too.

    Smooth texture goes on from patch to patch, and stripes are not shared by diagonal neighbours.
    """
    rows, columns = half.grid
    loud = half.loud.reshape(-1, rows, columns, half.loud.shape[-1]) / sigma
    usable = half.usable.reshape(-1, rows, columns)
    places = [
        np.s_[:, row : rows - 2 + row, column : columns - 2 + column]
        for row, column in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))
    ]
    together = np.logical_and.reduce([usable[place] for place in places])
    *around, own = (loud[place][together] for place in places)
    innovation = np.square(own - np.mean(around, axis=0)) / (1 + 1 / len(around))
    rest = np.square(own).sum(-1, keepdims=True) - np.square(own)
    loudest = np.max([np.square(other).sum(-1) for other in around], axis=0)
    return innovation, np.maximum(rest, loudest[:, None])


def _median_in_flattest(
    energy: Float64[np.ndarray, " p l"], flatness: Float64[np.ndarray, " p l"], count: int
) -> Float64[np.ndarray, " l"]:
    """Variance in each direction, from the median over the flattest patches."""
    flattest = np.argpartition(flatness, count - 1, axis=0)[:count]
    chosen = np.take_along_axis(energy, flattest, axis=0)
    variance: Float64[np.ndarray, " l"] = np.median(chosen, axis=0) / _CHI2_MEDIAN
    return variance


def _equal_scale(halves: Sequence[Half]) -> Check:
    """How much the noise variance differs between images that were scaled one by one.

    Two disjoint sets of flat patches of an image have independent chance errors, so that their
    covariance over images is the variance of the level. Texture makes some images look noisier
    and none calmer, so only the calmer half of the images is used. A noisier minority is left to
    the check ``one level``.
    """
    first, second = (
        np.concatenate([_level_of_images(half, parity) for half in halves]) for parity in (0, 1)
    )
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < _FEWEST_IMAGES:
        return make_check("equal scale", False, 0.0, "unknown: too few flat patches")
    one, other = first[both], second[both]
    found = [_spread_among_calm(one, other), _spread_among_calm(other, one)]
    value = max(0.0, float(np.mean([ratio.value for ratio in found])))
    error = float(np.mean([ratio.error for ratio in found]) / np.sqrt(2))
    spread = float(np.sqrt(value))
    text = f"the noise variance differs by {spread:.0%} between images (standard deviation)"
    return make_check("equal scale", value - ERRORS * error > _LEVELS, spread, text)


def _spread_among_calm(
    level: Float64[np.ndarray, " n"], other: Float64[np.ndarray, " n"]
) -> Ratio:
    """Squared relative variation of the level, from the half of the images with the lower one.

    The covariance with the ``other`` measurement is divided by what a cut at the median leaves of
    the variance of a normal quantity.
    """
    calm = level <= np.median(level)
    one, two = level[calm], other[calm]
    product = (one - one.mean()) * (two - two.mean()) / (one.mean() * two.mean())
    product = product / (1 - 2 / np.pi)
    value = float(product.mean())
    return Ratio(value, (product - value) / len(product))


def _level_of_images(half: Half, parity: int) -> Float64[np.ndarray, " n"]:
    """Quiet variance in the flattest quarter of every other patch of each image, or NaN."""
    rows, columns = half.grid
    mine = np.add.outer(np.arange(rows), np.arange(columns)).ravel() % 2 == parity
    count = int(mine.sum()) // 4
    if count == 0:
        return np.full(len(half.usable), np.nan)
    loudness = np.where(half.usable, half.loudness, np.inf)[:, mine]
    flattest = np.argpartition(loudness, count - 1, axis=1)[:, :count]
    usable = np.isfinite(np.take_along_axis(loudness, flattest, axis=1)).all(1)
    used = max(1, half.quiet.shape[-1] // 2)
    energy = np.square(half.quiet[:, mine, :used]).mean(-1)
    level = np.take_along_axis(energy, flattest, axis=1).mean(1)
    return np.where(usable, level, np.nan)


def _no_fixed_pattern(images: Float64[np.ndarray, " n c h w"], sigma: float) -> Check:
    """A pattern that all images share, as of a detector's pixels or columns.

    The median over images of a second difference is the pattern's at that place, with an
    independent error in even and in odd images. Places with texture vary more over images than
    noise does, and are left out.
    """
    found = [_pattern_variance(images, sigma, axis) for axis in (-2, -1)]
    known = [value for value in found if value is not None]
    if not known:
        return make_check("no fixed pattern", False, 0.0, "unknown: texture is everywhere")
    value = max(0.0, *known)
    text = f"a pattern that is the same in all images has {np.sqrt(value):.0%} of the noise level"
    return make_check("no fixed pattern", value > _PATTERN, float(np.sqrt(value)), text)


def _pattern_variance(
    images: Float64[np.ndarray, " n c h w"], sigma: float, axis: int
) -> float | None:
    """Variance of a fixed pattern relative to the noise's; None where texture is everywhere."""
    # Of variance 1 for white noise.
    difference = np.diff(images, n=2, axis=axis) / (np.sqrt(6) * sigma)
    deviation = np.abs(difference - np.median(difference, axis=0))
    bare = np.median(deviation, axis=0) / np.sqrt(_CHI2_MEDIAN) < _BARE
    if bare.sum() < _FEWEST_PLACES:
        return None
    product = np.median(difference[::2], axis=0) * np.median(difference[1::2], axis=0)
    return float(np.median(product[bare]) / _CHI2_MEDIAN)
