"""Exponential moving average of weights, with EDM's ramp-up.

Reference:
    Karras et al. 2022 (arXiv:2206.00364): a half-life in images, at most a fraction of the images
    seen so far.

Deviates:
    EDM's and the authors' code count the images seen before the step, here those of the step count
    too: they are in the weights that are averaged. EDM's first average is a copy of the weights
    after one step; ours keeps 0.5^(1 / rampup) of the weights before it, 1e-6 by default.
"""

import copy
from typing import TypeVar

import torch
from torch import nn

__all__ = ["ema_decay", "frozen_copy", "update_ema"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def frozen_copy(module: ModuleT) -> ModuleT:
    """An independent copy in evaluation mode whose weights take no gradients."""
    return copy.deepcopy(module).eval().requires_grad_(False)


def ema_decay(images_seen: int, batch_size: int, *, halflife_kimg: float, rampup: float) -> float:
    """Decay of the average for one step of ``batch_size`` images after ``images_seen`` images."""
    halflife = min(halflife_kimg * 1000, rampup * images_seen)
    return float(0.5 ** (batch_size / max(halflife, 1e-8)))


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move ``average`` towards ``module``: average = decay * average + (1 - decay) * module."""
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
