"""How sure a Frechet distance is, and what it would be with unlimited images.

A Frechet distance from n images is too large by about c / n, because the covariance of few images
is narrow in some directions by chance. All here is about the distance without that bias: from the
law of the generated images to a *fixed* reference. What the reference's own images leave open is
not covered: it is common to all models that are compared with it.

Three ways, from cheap to dear. The standard error follows from how the distance changes with the
weight of each image, in one decomposition. Extrapolation measures the distance for parts of the
images and continues the line in 1 / n to 0: 15 distances. The bootstrap needs hundreds, so it is
for features of moderate length.

All are good from about 10 images for each number of a feature vector. With fewer, the bootstrap's
interval is too wide (resampling repeats images, which exaggerates a lack of them), and the
extrapolated distance too low: by a tenth of the bias removed at 5 images for each, by a quarter at
2 (Gaussian data).
"""

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dsd.errors import DataError
from dsd.metrics.checks import require_same_space
from dsd.metrics.estimate import Estimate, Interval
from dsd.metrics.frechet import Moments, frechet_distance, moments, overlap_matrix

__all__ = ["frechet_at_infinity", "frechet_interval", "frechet_standard_error"]

_SIZES = 5
"""Parts of 1/1 to 1/5 of the images; the latter five times, so 15 distances."""


def frechet_interval(
    features: Float[Tensor, " n d"],
    reference: Moments,
    *,
    seed: int,
    num_resamples: int = 200,
    level: float = 0.95,
) -> Interval:
    """Bootstrap interval for the distance that unlimited generated images would have.

    It is the basic interval, reflected at the measured distance: resampled distances are too large
    by as much as the measured one is, so reflecting removes the bias where percentiles would
    double it. The measured distance is therefore often *above* the interval.

    Args:
        features: Of generated images, which are resampled.
        reference: What they are compared with, taken as it is.
        seed: Of the resampling.
        num_resamples: Distances to compute.
        level: Probability that the interval holds the truth.

    Raises:
        DataError: There are not more images than features, a feature is NaN or infinite, or
            lengths differ.

    Reference:
        Davison and Hinkley 1997, "Bootstrap methods and their application", Eq. 5.6.
    """
    count, dim = features.shape
    _require_more_images_than_features(count, dim, metric="a bootstrap interval")
    measured = frechet_distance(moments(features), reference)
    generator = torch.Generator().manual_seed(seed)
    resampled = []
    features = features.detach().double()  # once, not for each sample
    for _ in range(num_resamples):
        chosen = torch.randint(count, (count,), generator=generator).to(features.device)
        resampled.append(frechet_distance(moments(features[chosen]), reference))
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [1 - tail, tail])
    return Interval(*(max(0.0, float(2 * measured - end)) for end in (low, high)))


def frechet_at_infinity(
    features: Float[Tensor, " n d"], reference: Moments, *, seed: int
) -> Estimate:
    """The distance extrapolated to unlimited generated images, with its standard error.

    For k = 1 to 5 the images are split into k parts, whose distances are averaged, and a line in k
    is continued to k = 0. Each average uses every image once, so that the sampling error of the
    line is that of the distance itself.

    Args:
        features: Of generated images.
        reference: What they are compared with, taken as it is.
        seed: Of the splitting.

    Raises:
        DataError: There are not more images than features, a feature is NaN or infinite, or
            lengths differ.

    Reference:
        Chong and Forsyth 2020, "Effectively unbiased FID and inception score" (arXiv:1911.07023).

    Deviates:
        Parts without overlap instead of random subsets, and a standard error, which the paper
        does not give.
    """
    count, dim = features.shape
    _require_more_images_than_features(count, dim, metric="an extrapolation")
    generator = torch.Generator().manual_seed(seed)
    shuffled = features[torch.randperm(count, generator=generator).to(features.device)]
    sizes = range(1, _SIZES + 1)
    averages = [
        np.mean([frechet_distance(moments(part), reference) for part in shuffled.tensor_split(k)])
        for k in sizes
    ]
    # An average over k parts scatters around the line like sqrt(k).
    line, cov = np.polyfit(sizes, averages, 1, w=np.power(sizes, -0.5), cov=True)
    sampling = frechet_standard_error(features, reference)
    return Estimate(float(line[1]), float(np.hypot(sampling, np.sqrt(cov[1, 1]))))


def frechet_standard_error(features: Float[Tensor, " n d"], reference: Moments) -> float:
    """Standard deviation of the distance over samples of this size, by linearisation.

    Image i moves the distance by psi_i / n with, for x_i less the mean m of all,
    psi_i = 2 (m - m_r) . x_i + |x_i|^2 - x_i^T T x_i - const. T is the matrix of the optimal
    transport from the generated to the reference Gaussian.

    Args:
        features: Of generated images.
        reference: What they are compared with, taken as it is.

    Raises:
        DataError: There are fewer than 2 images, a feature is NaN or infinite, lengths differ.

    Reference:
        Efron 1982, "The jackknife, the bootstrap and other resampling plans", chapter 6, for the
        infinitesimal jackknife.
    """
    generated = moments(features)
    require_same_space(len(generated.mean), len(reference.mean))
    x = features.detach().double().cpu() - generated.mean
    psi = 2 * x @ (generated.mean - reference.mean) + x.square().sum(dim=1)
    psi = psi - (x @ _transport_root(generated, reference)).square().sum(dim=1)
    return float(psi.std() / len(psi) ** 0.5)


def _transport_root(a: Moments, b: Moments) -> Float64[Tensor, " d r"]:
    """W with W W^T = B (B^T S_a B)^(-1/2) B^T, which maps N(0, S_a) to N(0, S_b = B B^T)."""
    if b.factor.rank == 0:
        return b.factor.matrix
    values, vectors = torch.linalg.eigh(overlap_matrix(a.cov, b.factor))
    varies = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    root: Tensor = b.factor.matrix @ (vectors[:, varies] / values[varies] ** 0.25)
    return root


def _require_more_images_than_features(count: int, dim: int, *, metric: str) -> None:
    if count <= dim:
        msg = (
            f"{metric} needs more images than the {dim} features but there are {count}; "
            "raise the number of samples or take an extractor with fewer features"
        )
        raise DataError(msg)
