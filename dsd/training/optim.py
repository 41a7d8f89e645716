"""Optimiser, step sizes and the average of the weights."""

import copy
import math
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn, optim

__all__ = ["adam", "ema_decay", "frozen_copy", "learning_rate_factor", "update_ema"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_COSINE_FLOOR = 0.05
"""The cosine schedule ends at this fraction of the peak."""


def adam(module: nn.Module, learning_rate: float, betas: tuple[float, float]) -> optim.Adam:
    """Adam with fused updates over the weights of ``module``."""
    return optim.Adam(module.parameters(), lr=learning_rate, betas=betas, fused=True)


def learning_rate_factor(
    images_seen: int,
    *,
    total_images: int,
    warmup_images: int,
    schedule: Literal["constant", "cosine"],
) -> float:
    """Step size as a fraction of its peak: linear warm-up, then constant or a cosine to 5 %.

    Deviates:
        EDM's warm-up is n / w after n of w images, so that its first step moves nothing; ours is
        (n + 1) / (w + 1), so that each step does. The cosine is not theirs; the authors' step size
        is constant.
    """
    if images_seen < warmup_images:
        return (images_seen + 1) / (warmup_images + 1)
    if schedule == "constant":
        return 1.0
    progress = (images_seen - warmup_images) / max(total_images - warmup_images, 1)
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return _COSINE_FLOOR + (1 - _COSINE_FLOOR) * cosine


def frozen_copy(module: ModuleT) -> ModuleT:
    """An independent copy in evaluation mode whose weights take no gradients."""
    return copy.deepcopy(module).eval().requires_grad_(False)


def ema_decay(images_seen: int, batch_size: int, *, halflife_kimg: float, rampup: float) -> float:
    """Decay of the average for one step of ``batch_size`` images after ``images_seen`` images.

    Reference:
        Karras et al. 2022 (arXiv:2206.00364): a half-life in images, at most a fraction of the
        images seen so far.

    Deviates:
        EDM's and the authors' code count the images seen before the step, here those of the step
        count too: they are in the weights that are averaged. EDM's first average is a copy of the
        weights after one step; ours keeps 0.5^(1 / rampup) of the weights before it, 1e-6 by
        default.
    """
    halflife = min(halflife_kimg * 1000, rampup * images_seen)
    return float(0.5 ** (batch_size / max(halflife, 1e-8)))


@torch.no_grad()
def update_ema(averages: list[Tensor], weights: list[Tensor], decay: float) -> None:
    """Move averages towards weights: average = decay * average + (1 - decay) * weight."""
    torch._foreach_lerp_(averages, weights, 1 - decay)
