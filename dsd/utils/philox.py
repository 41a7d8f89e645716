"""Noise of single images, keyed by their numbers; without torch, for worker processes."""

import numpy as np
from jaxtyping import Float32, Int64

__all__ = ["noise_of"]


def noise_of(
    seed: int, indices: Int64[np.ndarray, " n"], shape: tuple[int, ...]
) -> Float32[np.ndarray, " n *d"]:
    """Standard normal noise of the images with these numbers: Philox keyed by (seed, number)."""
    noise = np.empty((len(indices), *shape), np.float32)
    for row, index in zip(noise, indices, strict=True):
        key = np.array([seed, index], np.uint64)
        np.random.Generator(np.random.Philox(key=key)).standard_normal(out=row, dtype=np.float32)
    return noise
