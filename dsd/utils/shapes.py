"""Names for tensor types: what the letters in a signature mean.

``b`` counts images, ``c h w`` are channels, height and width, ``d`` is a feature dimension. The
types are documentation in production and are executed in tests (jaxtyping's import hook with
beartype).
"""

from typing import TypeAlias

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

__all__ = [
    "AnyLevel",
    "Features",
    "Level",
    "NoiseLevels",
    "PerSample",
    "Pixels",
    "State",
    "as_levels",
    "highest",
]

State: TypeAlias = Float[Tensor, " b *d"]
"""Data, observations or diffused states: any shape behind the batch, in data units."""

Level: TypeAlias = Float[Tensor, " b"]
"""A noise level for each sample, in data units."""

AnyLevel: TypeAlias = float | int | Float[Tensor, "..."]
"""One noise level for all samples, or one for each, [b] or [b, 1, ...]."""

NoiseLevels: TypeAlias = Level | Float[Tensor, " b c h w"]
"""A noise level for each observation, or a map of those of its pixels, in data units."""

PerSample: TypeAlias = Float[Tensor, " b"]
"""One value, a loss for example, for each sample."""

Pixels: TypeAlias = UInt8[Tensor, " b c h w"]
"""Images as they are saved: 8 bit."""

Features: TypeAlias = Float[Tensor, " b d"]
"""Feature vectors of images."""


def as_levels(sigma: AnyLevel, samples: Shaped[Tensor, " b *d"]) -> Level:
    """Return a noise level for each sample; levels that are that already stay as they are.

    Args:
        sigma: One level, or one for each sample: [b], or as many axes as the samples have.
        samples: The levels are on their device, and one number is of their type.

    Raises:
        ValueError: A number is negative or NaN, or there are too few or too many levels.
    """
    count = len(samples)
    if not isinstance(sigma, Tensor):
        if not sigma >= 0:
            msg = f"sigma: {sigma} is no noise level. Give a number >= 0"
            raise ValueError(msg)
        dtype = samples.dtype if samples.is_floating_point() else torch.float32
        return torch.full((count,), sigma, dtype=dtype, device=samples.device)
    if sigma.numel() == 1:
        return sigma.reshape(()).expand(count)
    if sigma.numel() != count or len(sigma) != count or sigma.ndim not in (1, samples.ndim):
        msg = f"sigma: levels of shape {[*sigma.shape]} for {count} samples. Give one, or {count}"
        raise ValueError(msg)
    return sigma.flatten()


def highest(sigma: NoiseLevels) -> Level:
    """Noise level of each observation; where that differs between pixels, the highest."""
    return sigma if sigma.ndim == 1 else sigma.flatten(1).amax(1)
