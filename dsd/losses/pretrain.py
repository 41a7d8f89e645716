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

from torch import Tensor

from dsd.config import Weighting
from dsd.precond import coefficients, per_sample
from dsd.shapes import Level, PerSample, State

__all__ = ["ambient_denoising_loss"]

_OMNI_LEAST_A = 0.1
"""Below this fraction of added variance ``ambient-omni`` stops growing (its factor is 100)."""


def ambient_denoising_loss(
    denoiser: Callable[[State, Level], State],
    y: State,
    *,
    sigma_y: Level,
    sigma: Level,
    sigma_add: Level,
    n: State,
    weighting: Weighting,
    sigma_data: float,
) -> PerSample:
    """Weighted squared error of the predicted observation, the mean over pixels.

    Args:
        denoiser: D(x; sigma), an estimate of E[x0 | x].
        y: Observations; never differentiated through.
        sigma_y: Noise level of each observation, ``>= 0``.
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

    Reference:
        DSD (arXiv:2503.07578) with ``edm``; Daras et al. 2025 (arXiv:2506.10038) for
        ``ambient-omni``, which there keeps away from ``a = 0`` by not drawing such levels.
    """
    x_t = y + per_sample(sigma_add, y) * n
    denoised = denoiser(x_t, sigma)
    a = (sigma_add / sigma) ** 2
    # The residual a D + (1 - a) x_t - y divided by sqrt(a), which stays finite where a vanishes.
    root = per_sample(a.sqrt(), y)
    residual = root * (denoised - x_t) + per_sample(sigma, y) * n
    weight = _scaled_weight(weighting, a, sigma=sigma, sigma_y=sigma_y, sigma_data=sigma_data)
    return weight * residual.square().flatten(1).mean(1)


def _scaled_weight(
    weighting: Weighting, a: Tensor, *, sigma: Level, sigma_y: Level, sigma_data: float
) -> Level:
    """The weight times ``a``, the factor that the residual was divided by."""
    c_out = coefficients(sigma, sigma_data).out
    if weighting == "edm":
        return a / c_out**2
    if weighting == "ambient-omni":
        return a / (c_out * a.clamp(min=_OMNI_LEAST_A)) ** 2
    return 1 / (a * c_out**2 + sigma_y**2)
