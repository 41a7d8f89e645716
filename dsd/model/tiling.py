"""Denoising pictures of any size by overlapping tiles of the size that a network was trained on.

A network's output at a pixel depends mostly on the pixels nearby: on those within its *effective
radius*. Tiles overlap by at least that, and fade into each other, so that no border shows.

Reference:
    Luo et al. 2016 (arXiv:1701.04128) for effective receptive fields.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dsd.utils.shapes import State

__all__ = ["effective_radius", "tile_starts", "tiled"]

_ENERGY = 0.95
"""Share of the squared gradient within the effective radius, without that of the pixel itself."""

_AT_ONCE = 2**16
"""Numbers in a batch of tiles on a CPU, about; more of them leave its cache."""

_AT_ONCE_CUDA = 2**22


def effective_radius(
    denoise: Callable[[State], State], shape: tuple[int, int, int], *, std: float
) -> int:
    """Distance in pixels, of rows or columns, within which an output depends on its input.

    Args:
        denoise: A denoiser at one level, on the CPU.
        shape: Channels, height and width of its images.
        std: Standard deviation of typical noisy images, with which the gradient is taken.
    """
    _, height, width = shape
    generator = torch.Generator().manual_seed(0)
    x = (std * torch.randn(1, *shape, generator=generator)).requires_grad_()
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    distance = torch.maximum(rows[:, None], columns[None, :])
    with torch.enable_grad():
        centre = denoise(x)[0, :, height // 2, width // 2].sum()
        (slope,) = torch.autograd.grad(centre, x)
    energy = slope.square().sum((0, 1)).double()
    rings = torch.bincount(distance.flatten(), weights=energy.flatten())
    # A denoiser at a low level returns most of a pixel as it is, whatever its network sees.
    rings[0] = 0
    return int((rings.cumsum(0) < _ENERGY * rings.sum()).sum())


def tile_starts(length: int, tile: int, overlap: int) -> Int64[Tensor, " n"]:
    """First pixels of the fewest tiles that cover a length with at least an overlap."""
    if length <= tile:
        return torch.zeros(1, dtype=torch.int64)
    count = -(-(length - overlap) // (tile - overlap))
    return torch.linspace(0, length - tile, count, dtype=torch.float64).round().long()


def _fading(tile: int, overlap: int) -> Float[Tensor, " t"]:
    """Weights that grow over the overlap from either end."""
    steps = torch.arange(1, tile + 1)
    share = (torch.minimum(steps, steps.flip(0)) / (overlap + 1)).clamp(max=1)
    # Slowly at first, because the outermost pixels lack the most of what they depend on.
    return share.square() * (3 - 2 * share)


def tiled(
    denoise: Callable[[State], State],
    picture: Float[Tensor, " c h w"],
    tile: tuple[int, int],
    overlap: int,
    done: Callable[[float], None] = lambda share: None,
) -> Float[Tensor, " c h w"]:
    """Denoise a picture by tiles; one smaller than a tile is continued by reflection.

    Args:
        denoise: Takes and returns batches [b, c, *tile].
        picture: On any device.
        tile: Height and width of a tile.
        overlap: Pixels that neighbouring tiles share at least; less than a tile.
        done: Is given the share of the picture that is done, from time to time.
    """
    channels, height, width = picture.shape
    tall, wide = tile
    padded = _reflected(picture, max(tall, height), max(wide, width))
    rows = tile_starts(padded.shape[1], tall, overlap)
    columns = tile_starts(padded.shape[2], wide, overlap)
    fade_y, fade_x = (_fading(size, overlap).to(picture) for size in tile)
    at_once = _AT_ONCE_CUDA if picture.is_cuda else _AT_ONCE
    batch = max(1, at_once // (channels * tall * wide))
    places = torch.cartesian_prod(rows, columns)
    total = torch.zeros_like(padded)
    for number, part in enumerate(places.split(batch)):
        corners = part.tolist()
        tiles = torch.stack([padded[:, y : y + tall, x : x + wide] for y, x in corners])
        out = denoise(tiles.contiguous(memory_format=torch.channels_last))
        out = out * fade_y[:, None] * fade_x
        for (y, x), one in zip(corners, out, strict=True):
            total[:, y : y + tall, x : x + wide] += one
        done(min(1.0, (number + 1) * batch / len(places)))
    weight_y = _summed(rows, fade_y, padded.shape[1])
    weight_x = _summed(columns, fade_x, padded.shape[2])
    return (total / (weight_y[:, None] * weight_x))[:, :height, :width]


def _summed(starts: Int64[Tensor, " n"], fade: Float[Tensor, " t"], length: int) -> Tensor:
    """Sum of the weights of all tiles at each place."""
    total = fade.new_zeros(length)
    for start in starts.tolist():
        total[start : start + len(fade)] += fade
    return total


def _reflected(picture: Float[Tensor, " c h w"], height: int, width: int) -> Tensor:
    """The picture continued to the right and below, by reflections at its ends."""
    for axis, length in ((1, height), (2, width)):
        while picture.shape[axis] < length:
            more = min(length - picture.shape[axis], picture.shape[axis])
            last = picture.flip(axis).narrow(axis, 0, more)
            picture = torch.cat([picture, last], axis)
    return picture
