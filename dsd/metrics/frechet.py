"""Frechet distance between the Gaussians that have the moments of two sets of features.

    d^2(a, b) = |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a^(1/2) S_b S_a^(1/2))^(1/2)

With any factor S_b = B B^T, the last trace is the sum of the roots of the eigenvalues of
B^T S_a B. That needs no square root of a matrix, general or symmetric. B comes from a Cholesky
factorisation with pivoting, which finds the rank of a singular covariance and orders its
directions from large to small: the eigenvalues of a matrix so graded keep their digits down to the
smallest, where those of an ungraded one would lose half of them.

Reference:
    Dowson and Landau 1982, "The Frechet distance between multivariate normal distributions".
    Heusel et al. 2017 (arXiv:1706.08500) for its use with Inception features.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from scipy.linalg import lapack
from torch import Tensor

from dsd.metrics.checks import require_count, require_finite, require_same_space
from dsd.metrics.fewest import FRECHET

__all__ = ["Moments", "frechet_distance", "moments", "moments_of_batches"]


class Factor(NamedTuple):
    """Cholesky's factor L of a covariance whose coordinates are in another order."""

    lower: Float64[np.ndarray, " d d"]
    """L, its columns from large to small; those from ``rank`` on mean nothing."""

    order: Int[np.ndarray, " d"]
    """L L^T = cov[order][:, order]"""

    rank: int

    @property
    def matrix(self) -> Float64[Tensor, " d r"]:
        """B with B B^T = cov, in the order of the covariance."""
        return torch.from_numpy(self.lower[self.order.argsort(), : self.rank])


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and unbiased covariance of ``count`` feature vectors, on the CPU."""

    mean: Float64[Tensor, " d"]
    cov: Float64[Tensor, " d d"]
    count: int | None
    """None where a file of statistics does not say."""

    protocol: str | None = None
    """How the features were made; None if that is not known."""

    @cached_property
    def factor(self) -> Factor:
        """Factor of the covariance."""
        lower, pivots, rank, _ = lapack.dpstrf(self.cov.numpy(), lower=1)
        return Factor(np.asfortranarray(np.tril(lower)), pivots - 1, rank)

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about distances to these moments."""
        count, dim = self.count, len(self.mean)
        notes = []
        if count is not None and count <= dim:
            notes.append(
                f"{count} images are too few for {dim} features: the covariance is singular and "
                "the Frechet distance biased upwards; compare at equal numbers of images only"
            )
        if not self.cov.diagonal().any():
            notes.append("all images have the same features: nothing varies")
        return tuple(notes)


def moments(features: Float[Tensor, " b d"], *, protocol: str | None = None) -> Moments:
    """Moments of features that are all in memory; see ``moments_of_batches``."""
    return moments_of_batches([features], protocol=protocol)


def moments_of_batches(
    batches: Iterable[Float[Tensor, " _ d"]], *, protocol: str | None = None
) -> Moments:
    """Moments of features that come batch by batch, in float64 and without keeping them.

    Sums are taken on the features' device. Batches are merged by their own means, so that a mean
    far from 0 costs no digits.

    Raises:
        DataError: A feature is NaN or infinite, or there are fewer than two vectors.

    Reference:
        Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance".
    """
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        n, batch_mean, batch_scatter = _sums(batch)
        if n == 0:
            continue
        shift = batch_mean - mean
        scatter = scatter + batch_scatter + torch.outer(shift, shift) * (count * n / (count + n))
        mean = mean + shift * (n / (count + n))
        count += n
    require_count(count, at_least=FRECHET, metric="a Frechet distance")
    return Moments(mean, scatter / (count - 1), count, protocol)


def _sums(
    batch: Float[Tensor, " b d"],
) -> tuple[int, Float64[Tensor, " d"], Float64[Tensor, " d d"]]:
    """Number, mean and scatter matrix of one batch."""
    require_finite(batch)
    features = batch.detach().double()
    mean = features.mean(dim=0)
    centred = features - mean
    return len(features), mean.cpu(), (centred.T @ centred).cpu()


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Frechet distance, as FID reports it; never below 0.

    Raises:
        DataError: Lengths of features or protocols differ, so they come from different extractors.
        TypeError: One of both is something else than moments.
    """
    for one in (a, b):
        if not isinstance(one, Moments):
            msg = (
                f"frechet_distance: a {type(one).__name__} is given, not Moments. Make these of "
                "features with dsd.metrics.frechet.moments, or call frechet_distance_of_folders"
            )
            raise TypeError(msg)
    require_same_space(len(a.mean), len(b.mean), (a.protocol, b.protocol))
    means = (a.mean - b.mean).square().sum()
    distance = means + a.cov.trace() + b.cov.trace() - 2 * _overlap(a, b)
    return max(float(distance), 0.0)


def _overlap(a: Moments, b: Moments) -> Float64[Tensor, ""]:
    """Trace of (S_a^(1/2) S_b S_a^(1/2))^(1/2)."""
    narrow, wide = sorted((a, b), key=lambda m: m.factor.rank)
    # From the side of lower rank: no eigenvalue is a rounding error of 0, whose root would count.
    values = torch.linalg.eigvalsh(overlap_matrix(wide.cov, narrow.factor))
    overlap: Tensor = values.clamp(min=0).sqrt().sum()
    return overlap


def overlap_matrix(cov: Float64[Tensor, " d d"], factor: Factor) -> Float64[Tensor, " r r"]:
    """L^T S L for a covariance S and a factor of another; only the lower triangle is set."""
    reordered = cov.numpy()[np.ix_(factor.order, factor.order)]
    # Half of a generalised eigenproblem, at a quarter of the cost of two products. The transpose
    # of a symmetric array is the array in LAPACK's order.
    product, _ = lapack.dsygst(reordered.T, factor.lower, itype=2, lower=1)
    return torch.from_numpy(product[: factor.rank, : factor.rank])
