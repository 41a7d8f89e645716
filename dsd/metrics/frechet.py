"""Frechet distance between the Gaussians that have the moments of two sets of features.

    d^2(a, b) = |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a^(1/2) S_b S_a^(1/2))^(1/2)

With any factors S = A A^T, the last trace is the sum of the singular values of A_a^T A_b. That
needs no square root of a non-symmetric matrix, holds for singular covariances too, and keeps full
precision where the eigenvalues of the product would keep half the digits.

Reference:
    Dowson and Landau 1982, "The Frechet distance between multivariate normal distributions".
    Heusel et al. 2017 (arXiv:1706.08500) for its use with Inception features.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dsd.errors import DataError

__all__ = ["Moments", "frechet_distance", "moments", "moments_of_batches"]


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and unbiased covariance of ``count`` feature vectors."""

    mean: Float64[Tensor, " d"]
    cov: Float64[Tensor, " d d"]
    count: int

    @cached_property
    def factor(self) -> Float64[Tensor, " d r"]:
        """A with A A^T = cov and orthogonal columns, one for each direction that varies at all."""
        values, vectors = torch.linalg.eigh(self.cov)
        # What rounding leaves in an empty direction is below this, of either sign.
        varies = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
        factor: Tensor = vectors[:, varies] * values[varies].sqrt()
        return factor


def moments(features: Float[Tensor, " b d"]) -> Moments:
    """Moments of features that are all in memory; see ``moments_of_batches``."""
    return moments_of_batches([features])


def moments_of_batches(batches: Iterable[Float[Tensor, " _ d"]]) -> Moments:
    """Moments of features that come batch by batch, in float64 and without keeping them.

    Batches are merged by their own means, so that a mean far from 0 costs no digits.

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
    if count < 2:
        msg = (
            f"a Frechet distance needs at least 2 images in each set but one has {count}; "
            "raise the number of samples"
        )
        raise DataError(msg)
    return Moments(mean, scatter / (count - 1), count)


def _sums(
    batch: Float[Tensor, " b d"],
) -> tuple[int, Float64[Tensor, " d"], Float64[Tensor, " d d"]]:
    """Number, mean and scatter matrix of one batch."""
    features = batch.detach().double().cpu()
    if not features.isfinite().all():
        broken = int((~features.isfinite().all(dim=1)).sum())
        msg = (
            f"features of {broken} of {len(features)} images are NaN or infinite; "
            "the images or the feature extractor's weights are broken"
        )
        raise DataError(msg)
    mean = features.mean(dim=0)
    centred = features - mean
    return len(features), mean, centred.T @ centred


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Frechet distance, as FID reports it; never below 0.

    Raises:
        DataError: The features have different lengths, so they come from different extractors.
    """
    if a.mean.shape != b.mean.shape:
        msg = (
            f"features of {len(a.mean)} and of {len(b.mean)} numbers cannot be compared; "
            "measure both sets with the same feature extractor"
        )
        raise DataError(msg)
    means = (a.mean - b.mean).square().sum()
    overlap = torch.linalg.svdvals(a.factor.T @ b.factor).sum()
    distance = means + a.cov.trace() + b.cov.trace() - 2 * overlap
    return max(float(distance), 0.0)
