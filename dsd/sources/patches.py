"""Training images cut from larger pictures: a grid, or random places, with some contrast."""

import numpy as np
from jaxtyping import Bool, Shaped
from numpy.lib.stride_tricks import sliding_window_view

from dsd.sources.config import Patches

__all__ = ["count_patches", "cut_patches", "with_contrast"]

_KEY_WORD = 0x7A7C
"""Keeps places independent of other draws for the same number."""

_BLOCKS = 8
"""Blocks along each side of a patch over which its contrast is measured."""


def count_patches(patches: Patches, height: int, width: int) -> int:
    """Count the patches of a picture before any is left out for its contrast."""
    if min(height, width) < patches.size:
        return 0
    if patches.per_image is not None:
        return patches.per_image
    stride = patches.stride or patches.size
    return ((height - patches.size) // stride + 1) * ((width - patches.size) // stride + 1)


def cut_patches(
    picture: Shaped[np.ndarray, " c h w"], patches: Patches, number: int
) -> Shaped[np.ndarray, " n c s s"]:
    """Cut the patches of a picture that is at least as large as one.

    Args:
        picture: Its numbers, raw.
        patches: Where to cut.
        number: Of the picture in its source; alone decides random places.
    """
    size = patches.size
    windows = sliding_window_view(picture, (size, size), axis=(1, 2))
    if patches.per_image is not None:
        key = np.array([_KEY_WORD, number], np.uint64)
        random = np.random.Generator(np.random.Philox(key=key))
        rows = random.integers(windows.shape[1], size=patches.per_image)
        columns = random.integers(windows.shape[2], size=patches.per_image)
        return np.ascontiguousarray(windows[:, rows, columns].swapaxes(0, 1))
    stride = patches.stride or size
    grid = windows[:, ::stride, ::stride]
    return grid.transpose(1, 2, 0, 3, 4).reshape(-1, picture.shape[0], size, size)


def with_contrast(
    images: Shaped[np.ndarray, " n c s s"], least: float, scale: float
) -> Bool[np.ndarray, " n"]:
    """Which patches show more than ``least``, in data units, in any of their channels.

    The contrast is the standard deviation of the means over blocks of (size / 8)^2 pixels: these
    hold an eighth of the noise of patches of 64. A threshold on the raw variance would choose the
    noise.

    Args:
        images: Raw patches.
        least: Contrast of what is kept.
        scale: Data units in a raw unit.
    """
    count, channels, size, _ = images.shape
    block = max(1, size // _BLOCKS)
    blocks = size // block
    cut = images[..., : blocks * block, : blocks * block]
    means = cut.reshape(count, channels, blocks, block, blocks, block).mean((3, 5), np.float64)
    kept: np.ndarray = means.std((2, 3)).max(1) * scale >= least
    return kept
