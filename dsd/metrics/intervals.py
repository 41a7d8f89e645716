"""How sure a Frechet distance is, and what it would be with unlimited generated images.

The reference is *fixed*: its own sampling error is common to all models that are compared with it.
A distance from n images is too large, because the mean and the covariance of few images are off by
chance. With S the covariance of n vectors, S_r = B B^T the reference's and l_i the eigenvalues of
B^T S B, the excess has three parts, which ``frechet_estimate`` removes:

1. tr S / n: the mean's error.
2. The roots of the l_i sum up to less than those of the true eigenvalues. If vectors are linear in
   independent numbers, the sum of the true roots is consistently estimated for n and d large at
   any ratio n / d > 1 (Tiomoko and Couillet 2019). The integral of their method is taken along
   the branch cuts here.
3. Where they are not, the variance of products of two features differs, and the sum again in
   proportion: to first order by sum_ij w_ij (E[z_i^2 z_j^2] - l_i l_j - delta_ij l_i^2) / 2n, with
   w_ij = 1 / (sqrt(l_i l_j) (sqrt(l_i) + sqrt(l_j))) and z = V^T B^T x, V the eigenvectors.

The standard error comes from the distance's expansion to second order in the weights of images,
mean_k psi(x_k) + mean_kl h(x_k, x_l): the variance of both parts matters, because psi vanishes
where the two distributions agree.

Reference:
    Tiomoko and Couillet 2019, "Random matrix-improved estimation of the Wasserstein distance
    between two centered Gaussian distributions" (arXiv:1903.03447).
    Serfling 1980, "Approximation theorems of mathematical statistics", chapters 5 and 6, for the
    expansion and its variance.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dsd.metrics.frechet import Moments, frechet_distance, moments, overlap_matrix

__all__ = ["FrechetEstimate", "frechet_estimate", "sum_of_roots"]

_Z = 1.959963984540054
"""Quantile of the normal distribution that leaves 2.5 % above."""

_NODES = 8
"""Of Chebyshev's quadrature along each cut: more change the sum by less than 1e-6 of it."""

_SPARE = 1.2
"""Images for each feature that varies, at least, for a limit."""


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


class FrechetEstimate(NamedTuple):
    """A Frechet distance and its error."""

    value: float
    """Of the moments as they are, which is too large on average."""

    standard_error: float
    """Standard deviation of both distances over samples of this size."""

    limit: float | None
    """Without bias: of unlimited images; None where there are too few."""

    interval: Interval | None
    """Interval of 95 % for the distance of unlimited images; None where there is no limit."""


def frechet_estimate(features: Float[Tensor, " n d"], reference: Moments) -> FrechetEstimate:
    """The distance, its standard error, and the distance that unlimited images would have.

    Raises:
        DataError: There are fewer than two images, a feature is NaN or infinite, lengths differ.
    """
    generated = moments(features)
    value = frechet_distance(generated, reference)
    count = len(features)
    values, vectors = torch.linalg.eigh(overlap_matrix(generated.cov, reference.factor))
    varies = values > values.sum() * len(values) * torch.finfo(values.dtype).eps
    known = values[varies]
    roots = known.sqrt()
    weights = 1 / (torch.outer(roots, roots) * (roots[:, None] + roots))
    x = features.detach().double().cpu() - generated.mean
    z = x @ (reference.factor.matrix @ vectors[:, varies])
    psi = 2 * x @ (generated.mean - reference.mean) + x.square().sum(dim=1)
    psi = psi - (z.square() / roots).sum(dim=1)
    second = 2 * float(_kernels(z, known, weights).square().mean()) / count**2
    # Each psi holds chance that the images share, which is twice ``second`` in the first variance.
    error = max(float(psi.var()) / count - second, second) ** 0.5
    if count < _SPARE * len(values) + 2:
        return FrechetEstimate(value, error, None, None)
    bias = float(generated.cov.trace()) / count
    bias += 2 * (sum_of_roots(known.numpy(), count - 1) - float(roots.sum()))
    unlike = z.square().T @ z.square() / count
    unlike = unlike - torch.outer(known, known) - known.square().diag()
    third = float((weights * unlike).sum()) / (2 * count)
    limit = value - bias - third
    return FrechetEstimate(value, error, limit, _interval(limit, error**2, second, third))


def _interval(limit: float, variance: float, second: float, third: float) -> Interval:
    """All T with (limit - T)^2 <= z^2 (a T + 2 second + third^2), like Wilson's for shares.

    The first order's variance is proportional to the distance, so that estimates from few images
    are skewed; a is known from the variance at the limit. The second order counts twice, because
    it is skewed like a sum of few squares. The third part of the bias, which is known to first
    order only, counts as an error.
    """
    a = _Z**2 * (variance - second) / (max(limit, second**0.5) or 1.0)
    at_limit = _Z**2 * (2 * second + third**2) + a * max(limit, 0.0)
    half = (at_limit + a**2 / 4) ** 0.5
    return Interval(*(max(0.0, limit + a / 2 + sign * half) for sign in (-1, 1)))


def _kernels(
    z: Float64[Tensor, " n r"],
    values: Float64[Tensor, " r"],
    weights: Float64[Tensor, " r r"],
) -> Float64[Tensor, " n"]:
    """Kernel h of n random pairs: sum_i z_i u_i / sqrt(l_i) + sum_ij w_ij Z_ij U_ij / 2.

    Z is z z^T - diag l, and U the same of u. The first sum is half of the mean's error; the other
    half cancels against the covariance's, which is taken about that mean.
    """
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    z, u = z[order], z[order.roll(1)]
    own = weights.diag() * values
    both = z * u
    products = ((both @ weights) * both).sum(dim=1) + own @ values
    return both @ values.rsqrt() + (products - (z.square() + u.square()) @ own) / 2


def sum_of_roots(values: Float64[np.ndarray, " r"], freedom: int) -> float:
    """Sum of the roots of a covariance's eigenvalues, estimated from those of a sample.

    With l the sample's eigenvalues and x those of diag(l) - sqrt(l) sqrt(l)^T / n, which lie
    between them, it is

        2 n / pi * sum_i integral of |m(t)|^(1/2) dt from x_i to l_i,
        |m(t)| = prod_j |t - x_j| / |t - l_j| / t,

    m being the companion Stieltjes transform of the sample's spectrum.

    Args:
        values: The sample's eigenvalues, all positive.
        freedom: n, the degrees of freedom of the sample's covariance; more than eigenvalues.
    """
    values = np.sort(values)
    roots = np.sqrt(values)
    zeros = np.linalg.eigvalsh(np.diag(values) - np.outer(roots, roots) / freedom).clip(min=0)
    cuts = values - zeros
    total = 0.0
    for angle in (np.arange(_NODES) + 0.5) * np.pi / (2 * _NODES):
        # t = x_i + sin^2 (l_i - x_i) takes the ends' singularities out of the integrand.
        t = zeros + np.sin(angle) ** 2 * cuts
        ratios = np.abs((t[:, None] - zeros) / (t[:, None] - values))
        np.fill_diagonal(ratios, 1.0)
        total += float((cuts * np.sin(angle) ** 2 * np.sqrt(ratios.prod(axis=1) / t)).sum())
    return 2 * freedom * total / _NODES
