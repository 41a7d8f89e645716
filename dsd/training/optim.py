"""What both trainings share: step sizes and arithmetic."""

import math
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn, optim

from dsd.utils.config import Precision

__all__ = ["adam", "autocast", "learning_rate_factor", "set_learning_rate"]

_COSINE_FLOOR = 0.05
"""The cosine schedule ends at this fraction of the peak."""


def adam(module: nn.Module, learning_rate: float, betas: tuple[float, float]) -> optim.Adam:
    """Adam with fused updates over the trainable weights of ``module``."""
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


def set_learning_rate(optimizer: optim.Optimizer, learning_rate: float) -> None:
    """Use ``learning_rate`` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Arithmetic inside networks: float32, or bfloat16 with float32 weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
