"""Noise levels: the Karras grid and the distributions from which training draws its levels.

All levels are total levels, relative to clean data; observations carry ``sigma_y`` of it already.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dsd.model.config import GeneratorNoise, TeacherNoise
from dsd.utils.shapes import Level, NoiseLevels

__all__ = ["karras_levels", "level_to_add", "sample_generator_levels", "sample_teacher_levels"]


def karras_levels(
    index: Float[Tensor, " n"], *, sigma_min: float, sigma_max: float, rho: float
) -> Float[Tensor, " n"]:
    """Levels at positions ``index`` from 0 (``sigma_max``) to 1 (``sigma_min``).

    Reference:
        Karras et al. 2022 (arXiv:2206.00364), Eq. 5.
    """
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels: Tensor = (top + index * (bottom - top)) ** rho
    return levels


def sample_teacher_levels(
    noise: TeacherNoise, sigma_y: Level, generator: torch.Generator
) -> tuple[Level, Level]:
    """Draw a total level for each observation.

    Args:
        noise: Which distribution, with mean and standard deviation of the level's logarithm.
        sigma_y: Noise already in each observation; 0 where there is none.
        generator: Source of randomness, on the device of ``sigma_y``.

    Returns:
        The total level ``sigma >= sigma_y`` and the level ``sqrt(sigma**2 - sigma_y**2)`` of the
        noise to add. The second is returned too because float32 would lose it in the difference of
        nearly equal squares.

    Reference:
        ``clamped`` is the distribution of Daras et al. 2025 (arXiv:2411.02780) and of DSD
        (arXiv:2503.07578); clamped samples have no gradient. ``truncated`` draws the same
        without them; ``added`` draws the added noise instead.
    """
    if noise.distribution == "truncated":
        return _truncated(noise, sigma_y, generator)
    normal = torch.randn(sigma_y.shape, generator=generator, device=sigma_y.device)
    level = (noise.P_mean + noise.P_std * normal).exp()
    if noise.distribution == "added":
        return torch.hypot(level, sigma_y), level
    sigma = torch.maximum(level, sigma_y)
    return sigma, _difference(sigma, sigma_y)


def _truncated(
    noise: TeacherNoise, sigma_y: Level, generator: torch.Generator
) -> tuple[Level, Level]:
    """Log-normal levels above ``sigma_y``, by inverting the normal's upper tail in float64."""
    uniform = torch.rand(
        sigma_y.shape, generator=generator, device=sigma_y.device, dtype=torch.float64
    )
    lowest = (sigma_y.double().log() - noise.P_mean) / noise.P_std
    tail = torch.special.ndtr(-lowest) * (1 - uniform)
    sigma = (noise.P_mean - noise.P_std * torch.special.ndtri(tail)).exp()
    sigma = torch.maximum(sigma, sigma_y.double())
    return sigma.float(), _difference(sigma, sigma_y.double()).float()


def level_to_add(sigma: Level, sigma_y: NoiseLevels) -> NoiseLevels:
    """Level of the noise that brings observations of ``sigma_y`` to ``sigma``, maps by pixel."""
    if sigma_y.ndim == 1:
        return _difference(sigma, sigma_y)
    return _difference(sigma.reshape(-1, 1, 1, 1), sigma_y)


def _difference(sigma: Tensor, sigma_y: Tensor) -> Tensor:
    return ((sigma - sigma_y) * (sigma + sigma_y)).sqrt()


def sample_generator_levels(
    noise: GeneratorNoise, count: int, generator: torch.Generator, device: torch.device
) -> Level:
    """Levels at which distillation compares teacher and fake: a Karras grid, uniform in its index.

    Deviates:
        The authors' code has this distribution for SiD and other limits for DMD, whose levels are
        the 20th to 980th of 1,000. Here one serves all divergences, so that they can be compared;
        theirs is about ``sigma_min`` 0.0032 and ``t_max`` 0.98.

    Reference:
        Zhou et al. 2024 (arXiv:2404.04057): index up to 0.8 of the way from the low end, which may
        lie below the data's own noise; DSD keeps that range.
    """
    uniform = torch.rand((count,), generator=generator, device=device)
    return karras_levels(
        1 - noise.t_max * uniform,
        sigma_min=noise.sigma_min,
        sigma_max=noise.sigma_max,
        rho=noise.rho,
    )
