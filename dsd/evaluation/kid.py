"""Kernel distance (KID): the squared maximum mean discrepancy of a polynomial kernel.

    k(x, y) = (x . y / d + 1)^3
    KID = mean_(i != j) k(x_i, x_j) + mean_(i != j) k(y_i, y_j) - 2 mean_(i, j) k(x_i, y_j)

It is unbiased at any number of images, so that small runs can be compared with large ones; it can
be negative. Inception features of photographs give values of 1e-3 to 1e-1.

Reference:
    Binkowski et al. 2018, "Demystifying MMD GANs" (arXiv:1801.01401).
    Gretton et al. 2012, "A kernel two-sample test", Lemma 6, for the unbiased estimate.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dsd.metrics.checks import checked_pair
from dsd.metrics.fewest import KERNEL

__all__ = ["Estimate", "kernel_distance"]

BLOCK = 5000
"""Vectors of each set whose pairs are all used."""

_CHUNK_ENTRIES = 2**20
"""Kernels at a time: 8 MiB, which stay near the processor."""


class Estimate(NamedTuple):
    """A value with its standard error."""

    value: float
    standard_error: float


def kernel_distance(
    a: Float[Tensor, " n d"], b: Float[Tensor, " m _"], *, seed: int, block: int = BLOCK
) -> Estimate:
    """KID of two sets with its standard error.

    All pairs are used up to ``block`` vectors in the smaller set. Larger sets are shuffled and
    split into blocks of about that size, whose estimates, made of different images, are averaged.

    Args:
        a: One set.
        b: The other set.
        seed: Of the shuffling.
        block: Fewest vectors in each block; time depends on it, memory does not.

    Returns:
        The distance and its standard error, from the variance of the kernel's means over one set.
        The error is up to 1.5 times too large where both sets have one distribution.

    Raises:
        DataError: A set has fewer than 2 vectors, a feature is NaN or infinite, lengths differ.

    Reference:
        Serfling 1980, "Approximation theorems of mathematical statistics", section 5.3, for the
        variance.
    """
    a, b = checked_pair(a, b, at_least=KERNEL, metric="a kernel distance")
    count = max(1, min(len(a), len(b)) // block)
    if count > 1:
        generator = torch.Generator().manual_seed(seed)
        a, b = (x[torch.randperm(len(x), generator=generator).to(x.device)] for x in (a, b))
    parts = zip(a.tensor_split(count), b.tensor_split(count), strict=True)
    values, errors = zip(*(_all_pairs(x, y) for x, y in parts), strict=True)
    return Estimate(sum(values) / count, sum(error**2 for error in errors) ** 0.5 / count)


def _all_pairs(a: Float64[Tensor, " n d"], b: Float64[Tensor, " m d"]) -> Estimate:
    within_a, within_b = _others_mean(a), _others_mean(b)
    a_to_b, b_to_a = _mean_kernels(a, b)
    value = within_a.mean() + within_b.mean() - 2 * a_to_b.mean()
    variances = [
        (within - across).var() / len(within)
        for within, across in ((within_a, a_to_b), (within_b, b_to_a))
    ]
    return Estimate(float(value), 2 * float(sum(variances)) ** 0.5)


def _others_mean(x: Float64[Tensor, " n d"]) -> Float64[Tensor, " n"]:
    """Mean kernel of each vector and all others of its set."""
    own = (x.square().sum(dim=1) / x.shape[1] + 1) ** 3
    return (len(x) * _mean_kernels(x, x)[0] - own) / (len(x) - 1)


def _mean_kernels(
    x: Float64[Tensor, " n d"], y: Float64[Tensor, " m d"]
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " m"]]:
    """Mean kernel of each ``x`` and all ``y``, and of each ``y`` and all ``x``."""
    of_x, sum_of_y = [], torch.zeros_like(y[:, 0])
    for chunk in x.split(max(1, _CHUNK_ENTRIES // len(y))):
        kernels = (chunk @ y.T).div_(x.shape[1]).add_(1).pow_(3)
        of_x.append(kernels.mean(dim=1))
        sum_of_y += kernels.sum(dim=0)
    return torch.cat(of_x), sum_of_y / len(x)
