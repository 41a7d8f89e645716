"""Sampling from a teacher with EDM's Heun sampler, to the end or to the data's noise.

Reference:
    Karras et al. 2022 (arXiv:2206.00364), Algorithm 1; Daras et al. 2024 (arXiv:2404.10177) for
    stopping early.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dsd.config import Sampler
from dsd.noise import karras_levels
from dsd.shapes import Level, State

__all__ = ["TeacherSamples", "sample_teacher"]


class TeacherSamples(NamedTuple):
    """Both classic ways to sample a teacher of noisy data, from the same latents."""

    full: State
    """Ambient-Full: integrated to level 0, through levels at which the teacher was never
    trained."""

    truncated: State
    """Ambient-Truncated: the denoised image at the last level of the grid that is not below
    ``sigma_y``."""

    evaluations_full: int
    evaluations_truncated: int


def sample_teacher(
    denoiser: Callable[[State, Level], State], latents: State, *, config: Sampler, sigma_y: float
) -> TeacherSamples:
    """Integrate the probability-flow ODE with Heun's method, in float64.

    Args:
        denoiser: D(x; sigma); called with float32 states.
        latents: Standard normal, one for each image.
        config: Levels of the grid.
        sigma_y: Noise level of the data the teacher was trained on; 0 makes both results the same.

    Returns:
        Images in data units, float32, not clamped, and how often the denoiser was called for each.
    """
    index = torch.linspace(0, 1, config.num_steps, dtype=torch.float64)
    grid = karras_levels(
        index, sigma_min=config.sigma_min, sigma_max=config.sigma_max, rho=config.rho
    )
    levels = [*grid.tolist(), 0.0]

    def denoise(state: Tensor, level: float) -> Tensor:
        return denoiser(state.float(), torch.full_like(state[:, 0, 0, 0], level).float()).double()

    x = latents.double() * levels[0]
    calls = 0
    stopped: tuple[State, int] | None = None
    for current, following in pairwise(levels):
        denoised = denoise(x, current)
        calls += 1
        if stopped is None and following < sigma_y:
            stopped = denoised.float(), calls
        slope = (x - denoised) / current
        euler = x + (following - current) * slope
        if following > 0:
            slope_end = (euler - denoise(euler, following)) / following
            calls += 1
            euler = x + (following - current) * (slope + slope_end) / 2
        x = euler
    full = x.float()
    truncated, calls_truncated = stopped or (full, calls)
    return TeacherSamples(full, truncated, calls, calls_truncated)
