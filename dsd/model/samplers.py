"""Sampling from a teacher along EDM's flow: to the end, or to the noise level of the data.

Reference:
    Karras et al. 2022 (arXiv:2206.00364), Algorithms 1 and 2; Daras et al. 2024
    (arXiv:2404.10177) for stopping early.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsd.model.config import Churn, Sampler
from dsd.model.noise_levels import karras_levels
from dsd.operators.gaussian_noise import WHITE, GaussianNoise, noise_under
from dsd.utils.errors import ParamsError
from dsd.utils.philox import noise_of
from dsd.utils.random import derive_seed
from dsd.utils.shapes import Level, State

__all__ = ["EDM_SAMPLER", "TeacherSamples", "grid_of", "sample_posterior", "sample_teacher"]

Denoise: TypeAlias = Callable[[Tensor, float], Tensor]

EDM_SAMPLER = Sampler(
    method="heun",
    num_steps=18,
    sigma_min=0.002,
    sigma_max=80.0,
    rho=7.0,
    churn=Churn(S_churn=0.0, S_min=0.0, S_max=80.0, S_noise=1.0),
)
"""EDM's deterministic sampler for CIFAR-10: 35 evaluations (Karras et al. 2022, Table 1)."""


class TeacherSamples(NamedTuple):
    """Three ways to sample a teacher of noisy data, along one trajectory."""

    full: State
    """Ambient-Full: integrated to level 0, through levels at which the teacher was never
    trained."""

    truncated: State
    """Ambient-Truncated as its authors run it: the denoised image at the last step of the grid
    that does not start below ``sigma_y``."""

    truncated_exact: State
    """Integrated to ``sigma_y`` itself and denoised there: the lowest level that the teacher
    knows."""

    evaluations_full: int
    """How often the denoiser is called for an image of this kind alone; likewise below."""

    evaluations_truncated: int
    evaluations_truncated_exact: int


class _Point(NamedTuple):
    """A state on the trajectory."""

    x: Tensor
    denoised: Tensor
    level: float


def sample_teacher(
    denoiser: Callable[[State, Level], State],
    latents: State,
    *,
    config: Sampler = EDM_SAMPLER,
    sigma_y: float | Float[Tensor, ""],
    seed: int | None = None,
    first: int = 0,
) -> TeacherSamples:
    """Integrate the probability-flow ODE, or with churn its stochastic relative, in float64.

    Args:
        denoiser: D(x; sigma); called with float32 states. Its attribute ``noise``, if it has one,
            is the distribution of the noise; otherwise that is white.
        latents: Standard normal, one for each image; they get the spectrum of that noise.
        config: Levels of the grid, the method of integration, and churn.
        sigma_y: Noise level of the data the teacher was trained on, from 0, which makes all
            results the same, to ``config.sigma_max``.
        seed: Root of the noise that churn adds, which needs it.
        first: Number of the first image; the noise of an image depends on (seed, number, step).

    Returns:
        Images in data units, float32, not clamped.

    Raises:
        ParamsError: ``sigma_y`` lies above the grid.
        ValueError: There is churn (``S_churn`` above 0) but no seed.
    """
    sigma_y = float(sigma_y)
    if sigma_y > config.sigma_max:
        msg = f"the sampler starts at sigma_max {config.sigma_max:g}, below the noise of the data"
        raise ParamsError(f"{msg}, {sigma_y:g}: raise sigma_max above it")
    grid = grid_of(config)
    levels = [*grid, 0.0]
    # The step across sigma_y; at 0 it is the last one.
    crossing = sum(level >= sigma_y for level in grid[1:])

    def denoise(state: Tensor, level: float) -> Tensor:
        per_image = torch.full((len(state),), level, device=state.device)
        return denoiser(state.float(), per_image).double()

    noise = noise_under(denoiser)
    x = noise.colour(latents.double()) * levels[0]
    for step, (start, end) in enumerate(pairwise(levels)):
        level = _raised(start, config)
        if level > start:
            scale = config.churn.S_noise * math.sqrt(level**2 - start**2)
            x = x + scale * noise.colour(_churn_noise(x, seed, step, first))
        point = _Point(x, denoise(x, level), level)
        if step == crossing:
            last = point
        x = _advance(denoise, point, end, config.method)
    exact = _denoised_at(denoise, last, sigma_y, config.method)
    evaluations = _evaluations(config, crossing, exactly=0 < sigma_y < last.level)
    return TeacherSamples(x.float(), last.denoised.float(), exact.float(), *evaluations)


def sample_posterior(
    denoiser: Callable[[State, Level], State],
    y: State,
    *,
    sigma: float,
    num_steps: int = 18,
    seed: int,
    first: int = 0,
    noise: GaussianNoise = WHITE,
) -> State:
    """Draw a clean image for each observation: the reverse diffusion started at y.

    The stochastic differential equation from level ``sigma`` to 0 ends in a draw of the posterior
    of x0 given y = x0 + sigma eps, for an exact denoiser and many steps. A teacher of noisy images
    alone was not trained below their level, unless by the consistency loss; its draws then tell
    how sure it is, not more.

    Args:
        denoiser: D(x; sigma).
        y: Observations, in data units.
        sigma: Their level, > 0.
        num_steps: Evaluations, on a Karras grid from ``sigma`` to a thousandth of it.
        seed: Root of the noise, which depends on (seed, number of the image, step).
        first: Number of the first image.
        noise: Distribution of the noise of ``y``.

    Reference:
        Ho et al. 2020 (arXiv:2006.11239) for the ancestral step, here between levels of EDM;
        Kawar et al. 2021 (arXiv:2101.09552) for stochastic denoising.
    """
    index = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    grid = karras_levels(index, sigma_min=sigma / 1000, sigma_max=sigma, rho=EDM_SAMPLER.rho)
    levels = [*grid.tolist(), 0.0]
    x, numbers = y, np.arange(first, first + len(y))
    for step, (start, end) in enumerate(pairwise(levels)):
        denoised = denoiser(x, y.new_full((len(y),), start))
        share = (end / start) ** 2
        x = denoised + share * (x - denoised)
        if end > 0:
            key = derive_seed(seed, "posterior", step)
            fresh = torch.from_numpy(noise_of(key, numbers, y.shape[1:])).to(y)
            x = x + end * math.sqrt(1 - share) * noise.colour(fresh)
    return x


def grid_of(config: Sampler) -> list[float]:
    """Levels from which the sampler's steps start, from the highest to the lowest."""
    index = torch.linspace(0, 1, config.num_steps, dtype=torch.float64)
    levels = karras_levels(
        index, sigma_min=config.sigma_min, sigma_max=config.sigma_max, rho=config.rho
    )
    grid: list[float] = levels.tolist()
    return grid


def _raised(level: float, config: Sampler) -> float:
    """The level from which a step starts: churn adds noise to some of them."""
    churn = config.churn
    if not churn.S_min <= level <= churn.S_max:
        return level
    return level * (1 + min(churn.S_churn / config.num_steps, math.sqrt(2) - 1))


def _churn_noise(x: Tensor, seed: int | None, step: int, first: int) -> Tensor:
    if seed is None:
        msg = "sample_teacher: churn draws noise and needs a seed; pass seed=..."
        raise ValueError(msg)
    numbers = np.arange(first, first + len(x))
    return torch.from_numpy(noise_of(derive_seed(seed, "churn", step), numbers, x.shape[1:])).to(x)


def _advance(
    denoise: Denoise, point: _Point, end: float, method: Literal["heun", "euler"]
) -> Tensor:
    """The state at level ``end``; Heun's correction is not defined at 0."""
    slope = (point.x - point.denoised) / point.level
    euler = point.x + (end - point.level) * slope
    if method == "euler" or end == 0:
        return euler
    slope_end = (euler - denoise(euler, end)) / end
    return point.x + (end - point.level) * (slope + slope_end) / 2


def _denoised_at(
    denoise: Denoise, point: _Point, sigma: float, method: Literal["heun", "euler"]
) -> Tensor:
    """The denoised image at level ``sigma``, which ends the step from ``point``."""
    if point.level == sigma:
        return point.denoised
    x = _advance(denoise, point, sigma, method)
    return denoise(x, sigma) if sigma > 0 else x


def _evaluations(config: Sampler, crossing: int, *, exactly: bool) -> tuple[int, int, int]:
    """Calls for the full, the truncated and the exactly truncated image."""
    step = 2 if config.method == "heun" else 1
    truncated = crossing * step + 1
    return (config.num_steps - 1) * step + 1, truncated, truncated + step * exactly
