"""Small patches of noisy images, split into loud directions (texture) and quiet ones (noise).

The principal components of patches are fitted on one half of the images and applied to the other.
White Gaussian noise is independent in loud and quiet directions. So flat patches can be chosen by
their loud energy without choosing those whose quiet noise happens to be small: the quiet variance
of the chosen ones is the noise's, plus whatever texture is left.

Reference:
    The smallest principal components of patches as noise: Pyatykh, Hesser and Zheng 2013 (IEEE
    Trans. Image Processing 22(2)), Chen, Zhu and Heng 2015 (ICCV). **Deviates**: an archive of
    images instead of one; flatness and noise are measured in disjoint directions that other images
    have chosen, so that neither the choice of patches nor that of directions favours little noise.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float64, Real

__all__ = ["Half", "Patches", "Ratio", "cross_fit", "cut_patches", "ratio_of_sums"]


@final
@dataclass(frozen=True)
class Patches:
    """Square patches on a grid without overlap, in data units."""

    values: Float64[np.ndarray, " n m d"]
    """Pixels (channel, row, column), less each channel's mean over the patch."""

    mean: Float64[np.ndarray, " n m"]
    """Brightness: mean over all pixels and channels."""

    usable: Bool[np.ndarray, " n m"]
    """False where a channel is constant or a pixel is clipped: there is no honest noise there."""

    size: int
    """Height and width in pixels."""

    channels: int

    grid: tuple[int, int]
    """Rows and columns of patches in an image; m counts along rows first."""

    def of(self, images: slice) -> "Patches":
        """The patches of some images."""
        values, mean, usable = self.values[images], self.mean[images], self.usable[images]
        return replace(self, values=values, mean=mean, usable=usable)


@final
@dataclass(frozen=True)
class Half:
    """Patches of one half of the images, in directions that the other half has chosen."""

    quiet: Float64[np.ndarray, " n m k"]
    """Coordinates in the quiet directions, the quietest first."""

    basis: Float64[np.ndarray, " d k"]
    """The quiet directions, orthonormal columns."""

    loud: Float64[np.ndarray, " n m l"]
    """Coordinates in the loud directions, the loudest last."""

    loudness: Float64[np.ndarray, " n m"]
    """Energy in the loud directions, weighted by how much of it is texture."""

    mean: Float64[np.ndarray, " n m"]
    """Brightness of the patches."""

    usable: Bool[np.ndarray, " n m"]

    grid: tuple[int, int]
    """As of :class:`Patches`."""

    def flattest(
        self, share: float, among: Bool[np.ndarray, " n m"] | None = None
    ) -> Bool[np.ndarray, " n m"]:
        """The flattest usable patches: ``share`` of all, or of those in ``among``."""
        candidates = self.usable if among is None else self.usable & among
        if not candidates.any():
            return candidates
        flat: Bool[np.ndarray, " n m"] = candidates & (
            self.loudness <= np.quantile(self.loudness[candidates], share)
        )
        return flat


class Ratio(NamedTuple):
    """A ratio of sums over images, and what each image contributed to its error."""

    value: float
    influence: Float64[np.ndarray, " n"]

    @property
    def error(self) -> float:
        """Standard error over images, however the patches of one image depend on each other."""
        return float(np.sqrt(np.square(self.influence).sum()))


def ratio_of_sums(above: Float64[np.ndarray, " n"], below: Real[np.ndarray, " n"]) -> Ratio:
    """``sum(above) / sum(below)`` with the linearised jackknife over images."""
    total = below.sum()
    value = above.sum() / total
    return Ratio(float(value), (above - value * below) / total)


def cut_patches(
    images: Float64[np.ndarray, " n c h w"], size: int, clipped: Bool[np.ndarray, " n c h w"]
) -> Patches:
    """All whole patches of ``size`` x ``size`` pixels, from the upper left corner.

    Args:
        images: In data units.
        size: Height and width of a patch.
        clipped: Pixels whose value is a bound of the recording, not a measurement.
    """
    pixels = _blocks(images, size)
    by_channel = pixels.mean(-1, keepdims=True)
    constant = np.ptp(pixels, axis=-1) == 0
    usable = ~(constant.any(-1) | _blocks(clipped, size).any((-2, -1)))
    values = (pixels - by_channel).reshape(*pixels.shape[:2], -1)
    grid = images.shape[2] // size, images.shape[3] // size
    return Patches(values, by_channel.mean((-2, -1)), usable, size, images.shape[1], grid)


def _blocks(images: np.ndarray, size: int) -> np.ndarray:
    """Pixels [n, patches, channels, size * size] of the patches of [n, channels, h, w]."""
    n, c, h, w = images.shape
    rows, columns = h // size, w // size
    grid = images[:, :, : rows * size, : columns * size].reshape(n, c, rows, size, columns, size)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, c, size * size)


def cross_fit(patches: Patches) -> tuple[Half, Half]:
    """Every patch in the directions chosen by the half of the images to which it does not belong.

    Even and odd images are the halves.
    """
    even, odd = patches.of(slice(0, None, 2)), patches.of(slice(1, None, 2))
    return _project(even, odd), _project(odd, even)


def _project(patches: Patches, other: Patches) -> Half:
    variance, directions = _components(other.values[other.usable], patches.channels)
    k = len(variance) // 2
    loud = patches.values @ directions[:, k:]
    return Half(
        quiet=patches.values @ directions[:, :k],
        basis=directions[:, :k],
        loud=loud,
        loudness=np.square(loud) @ _texture_share(variance, k),
        mean=patches.mean,
        usable=patches.usable,
        grid=patches.grid,
    )


def _components(
    values: Float64[np.ndarray, " p d"], channels: int
) -> tuple[Float64[np.ndarray, " e"], Float64[np.ndarray, " d e"]]:
    """Variances, ascending, and directions; without those of the channels' means, which are 0."""
    variance, directions = np.linalg.eigh(values.T @ values / len(values))
    return variance[channels:], directions[:, channels:]


def _texture_share(variance: Float64[np.ndarray, " e"], k: int) -> Float64[np.ndarray, " loud"]:
    """How much of each loud direction's energy is texture, with the quietest ones as the noise."""
    noise = variance[: max(1, k // 4)].mean()
    loud = np.maximum(variance[k:], np.finfo(np.float64).tiny)
    share: Float64[np.ndarray, " loud"] = np.maximum(loud - noise, 0) / loud
    return share
