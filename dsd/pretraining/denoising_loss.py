r"""Denoising losses on noisy observations y = x0 + sigma_y * eps.

Adding noise to an observation brings it to a total level sigma: x_t = y + sigma_add * n, with
sigma^2 = sigma_y^2 + sigma_add^2. The Gaussian identity (ambient Tweedie)

    E[y | x_t] = a E[x0 | x_t] + (1 - a) x_t,      a = sigma_add^2 / sigma^2,

turns a prediction of x0 into one of y, which is observed. Regressing on y therefore trains D
towards E[x0 | x_t] at every level above sigma_y, from noisy data alone. With sigma_y = 0 it is
EDM's denoising loss.

Reference:
    Daras et al. 2024 (arXiv:2404.10177) for the identity; Chen et al. 2025, DSD
    (arXiv:2503.07578), for its use here.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dsd.model.denoiser import append_dims, coefficients
from dsd.operators.operator import Images, View, Views, observed_counts
from dsd.pretraining.config import Weighting
from dsd.utils.images import require_data_units
from dsd.utils.shapes import AnyLevel, Level, PerSample, State, as_levels

__all__ = ["ambient_denoising_loss", "mapped_denoising_loss", "projected_denoising_loss"]

_OMNI_LEAST_A = 0.1
"""Below this fraction of added variance ``ambient-omni`` stops growing (its factor is 100)."""


def ambient_denoising_loss(
    denoiser: Callable[[State, Level], State],
    y: State,
    *,
    sigma_y: AnyLevel,
    sigma: AnyLevel,
    sigma_add: AnyLevel,
    n: State,
    weighting: Weighting,
    sigma_data: float,
) -> PerSample:
    """Weighted squared error of the predicted observation, the mean over pixels.

    Args:
        denoiser: D(x; sigma), an estimate of E[x0 | x].
        y: Observations; never differentiated through.
        sigma_y: Noise level of each observation, ``>= 0``, or one for all; likewise below.
        sigma: Total level of each diffused state, ``>= sigma_y``.
        sigma_add: ``sqrt(sigma**2 - sigma_y**2)``.
        n: Standard normal noise.
        weighting: ``edm`` is EDM's weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2;
            ``ambient-omni`` multiplies it by 1 / a^2, which gives D itself EDM's weight, up to a
            factor of 100; ``inverse-variance`` divides by the residual's variance a^2 c_out^2 + a
            sigma_y^2 under a Gaussian model of the data. All agree for ``sigma_y = 0``.
        sigma_data: Standard deviation of the clean data assumed by the weights.

    Returns:
        One loss for each sample, finite also at ``sigma == sigma_y``, where it has no gradient.

    Raises:
        DataError: The observations are no floating-point numbers.

    Deviates:
        EDM's and the authors' code sum over pixels; the mean does not depend on their number. Adam
        divides by the gradients' size, so step sizes mean the same, but its eps weighs more beside
        gradients that are smaller by the number of pixels.

    Reference:
        DSD (arXiv:2503.07578) with ``edm``; Daras et al. 2025 (arXiv:2506.10038) for
        ``ambient-omni``, which there keeps away from ``a = 0`` by not drawing such levels.
    """
    require_data_units(y)
    sigma_y, sigma = as_levels(sigma_y, y), as_levels(sigma, y)
    sigma_add = as_levels(sigma_add, y)
    x_t = y + append_dims(sigma_add, y) * n
    denoised = denoiser(x_t, sigma)
    a = (sigma_add / sigma) ** 2
    # The residual a D + (1 - a) x_t - y divided by sqrt(a), which stays finite where a vanishes.
    root = append_dims(a.sqrt(), y)
    residual = root * (denoised - x_t) + append_dims(sigma, y) * n
    c_out = coefficients(sigma, sigma_data).c_out
    weight = _scaled_weight(weighting, a, sigma_y=sigma_y, c_out=c_out)
    return weight * residual.square().flatten(1).mean(1)


def mapped_denoising_loss(
    denoiser: Callable[[State, Level], State],
    y: Images,
    *,
    sigma_y: Images,
    sigma: Level,
    sigma_add: Images,
    n: Images,
    weighting: Weighting,
    sigma_data: float,
) -> PerSample:
    """:func:`ambient_denoising_loss` for observations whose noise level differs between pixels.

    Each pixel is raised to the same total level by the noise that it lacks. Given x0 and x_t,
    pixels of y are independent, so that ambient Tweedie holds for each pixel, with that pixel's a.

    Args:
        denoiser: D(x; sigma).
        y: Observations.
        sigma_y: Noise level of each pixel, ``>= 0``.
        sigma: Total level of each diffused state, at least the highest of its pixels.
        sigma_add: ``sqrt(sigma**2 - sigma_y**2)`` of each pixel.
        n: Standard normal noise, white: a level of each pixel has no meaning for correlated noise.
        weighting: Weight of each pixel at its levels.
        sigma_data: See :func:`ambient_denoising_loss`.

    Reference:
        Daras et al. 2024 (arXiv:2404.10177) for one level; by pixel it is ours.
    """
    level = append_dims(sigma, y)
    x_t = y + sigma_add * n
    a = (sigma_add / level) ** 2
    residual = a.sqrt() * (denoiser(x_t, sigma) - x_t) + level * n
    c_out = append_dims(coefficients(sigma, sigma_data).c_out, y)
    weight = _scaled_weight(weighting, a, sigma_y=sigma_y, c_out=c_out)
    return (weight * residual.square()).flatten(1).mean(1)


def projected_denoising_loss(
    denoiser: Callable[[State, Level, View], State],
    y: Images,
    *,
    views: Views,
    observed: View,
    given: View,
    sigma_y: Level,
    sigma: Level,
    sigma_add: Level,
    n: Images,
    weighting: Weighting,
    sigma_data: float,
) -> PerSample:
    """:func:`ambient_denoising_loss` for observations of part of each image.

    The denoiser is given less than what was observed and judged by all of it. On what it is given
    the residual is the ambient one. What it is not given has, for the denoiser, an infinite noise
    level: there a = 1, c_out = sigma_data, and the residual is D - y.

    Args:
        denoiser: D(P_V x, V; sigma), an estimate of E[x0 | P_V x]; projects its input itself.
        y: Observations P_M (x0 + sigma_y eps).
        views: What views mean.
        observed: M.
        given: V, hidden at random so that each observed coefficient is hidden with some
            probability: without that nothing teaches the denoiser to fill in.
        sigma_y: See :func:`ambient_denoising_loss`; likewise the others.
        sigma: Total level.
        sigma_add: Level of the noise to add.
        n: Standard normal noise.
        weighting: Weight of both kinds of coefficients at their levels.
        sigma_data: Standard deviation of the clean data assumed by the weights.

    Returns:
        One loss for each sample, the mean over the observed coefficients.

    Deviates:
        Ambient Diffusion weighs hidden coefficients like given ones, by 1 / c_out^2, which grows
        without bound at low levels though hidden coefficients get no easier there.

    Reference:
        Daras et al. 2023, Ambient Diffusion (arXiv:2305.19256), Eq. 4, for being judged by more
        than what is given; "Restoration Score Distillation" (arXiv:2505.13377) for noise besides.
    """
    x_t = y + append_dims(sigma_add, y) * n
    denoised = denoiser(x_t, sigma, given)
    a = (sigma_add / sigma) ** 2
    root = append_dims(a.sqrt(), y)
    ambient = views.project(root * (denoised - x_t) + append_dims(sigma, y) * n, given)
    filled = views.project(denoised - y, observed & ~given)
    c_out = coefficients(sigma, sigma_data).c_out
    weight = _scaled_weight(weighting, a, sigma_y=sigma_y, c_out=c_out)
    weight_filled = _scaled_weight(
        weighting, torch.ones_like(a), sigma_y=sigma_y, c_out=torch.full_like(a, sigma_data)
    )
    squares = weight * _sum_of_squares(ambient) + weight_filled * _sum_of_squares(filled)
    return squares / observed_counts(observed, (y.shape[1], y.shape[2], y.shape[3])).clamp(min=1)


def _sum_of_squares(x: State) -> PerSample:
    return x.square().flatten(1).sum(1)


def _scaled_weight(weighting: Weighting, a: Tensor, *, sigma_y: Tensor, c_out: Tensor) -> Tensor:
    """The weight times ``a``, the factor that the residual was divided by."""
    if weighting == "edm":
        return a / c_out**2
    if weighting == "ambient-omni":
        return a / (c_out * a.clamp(min=_OMNI_LEAST_A)) ** 2
    return 1 / (a * c_out**2 + sigma_y**2)
