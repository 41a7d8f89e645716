"""Names for tensor types: what the letters in a signature mean.

``b`` counts images, ``c h w`` are channels, height and width, ``d`` is a feature dimension. The
types are documentation in production and are executed in tests (jaxtyping's import hook with
beartype).
"""

from typing import TypeAlias

from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["Features", "Level", "PerSample", "Pixels", "State"]

State: TypeAlias = Float[Tensor, " b *d"]
"""Data, observations or diffused states: any shape behind the batch, in data units."""

Level: TypeAlias = Float[Tensor, " b"]
"""A noise level for each sample, in data units."""

PerSample: TypeAlias = Float[Tensor, " b"]
"""One value, a loss for example, for each sample."""

Pixels: TypeAlias = UInt8[Tensor, " b c h w"]
"""Images as they are saved: 8 bit."""

Features: TypeAlias = Float[Tensor, " b d"]
"""Feature vectors of images."""
