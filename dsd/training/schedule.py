"""What the steps of both trainings do alike."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar, final

import torch
from torch import Tensor, optim

from dsd.training.config import TrainingSection
from dsd.training.distributed import DistributedContext
from dsd.training.optim import ema_decay, learning_rate_factor, update_ema
from dsd.utils.config import Precision
from dsd.utils.precision import float32_products
from dsd.utils.random import seeded_dropout, step_generator

__all__ = ["Schedule"]

T = TypeVar("T")


@final
class Schedule:
    """Length, step sizes, averages, randomness and arithmetic of a training's steps.

    Args:
        config: Section of the training.
        purpose: Its name, from which its random numbers come.
        seed: Root of all randomness.
        precision: Arithmetic inside the networks.
        device: Where the training computes.
        distributed: Its processes.
    """

    def __init__(
        self,
        config: TrainingSection,
        purpose: str,
        *,
        seed: int,
        precision: Precision,
        device: torch.device,
        distributed: DistributedContext,
    ) -> None:
        self.num_steps = math.ceil(config.kimg * 1000 / config.batch_size)
        self.precision: Precision = precision
        self._config = config
        self._purpose = purpose
        self._seed = seed
        self._device = device
        self._distributed = distributed

    def images_seen(self, step: int) -> int:
        """Images of the first ``step`` steps."""
        return step * self._config.batch_size

    def computed(self, work: Callable[[], T]) -> T:
        """Do ``work`` with float32 products as the precision asks for."""
        searched = self.precision != "bfloat16"  # whose first choice is the fastest
        with float32_products(tf32=self.precision == "tf32", searched=searched):
            return work()

    def autocast(self) -> AbstractContextManager[None]:
        """Arithmetic inside networks: float32, or bfloat16 with float32 weights."""
        enabled = self.precision == "bfloat16"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=enabled)

    def generator(self, step: int) -> torch.Generator:
        """Source of the random inputs of a step, the same in every process."""
        return step_generator(self._seed, self._purpose, step, self._device)

    def dropout(self, step: int) -> AbstractContextManager[None]:
        """Context manager that seeds dropout for this process' share of a step."""
        return seeded_dropout(
            self._seed, self._purpose, step, self._device, self._distributed.rank
        )

    def set_learning_rate(self, step: int, optimizer: optim.Optimizer, peak: float) -> None:
        """Use the step size of ``step``, whose largest value is ``peak``."""
        factor = learning_rate_factor(
            self.images_seen(step),
            total_images=self.images_seen(self.num_steps),
            warmup_images=round(self._config.lr_warmup_kimg * 1000),
            schedule=self._config.lr_schedule,
        )
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # of a captured step
                group["lr"].fill_(factor * peak)
            else:
                group["lr"] = factor * peak

    def update_average(self, steps: int, averages: list[Tensor], weights: list[Tensor]) -> None:
        """Move ``averages`` towards ``weights`` after ``steps`` steps."""
        decay = ema_decay(
            self.images_seen(steps),
            self._config.batch_size,
            halflife_kimg=self._config.ema_halflife_kimg,
            rampup=self._config.ema_rampup_ratio,
        )
        update_ema(averages, weights, decay)
