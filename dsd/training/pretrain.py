"""Fitting the teacher denoiser to noisy images."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
from torch import Tensor, optim

from dsd.config import Objective, Pretrain, TeacherNoise, Weighting
from dsd.losses.consistency import consistency_loss, reverse_steps
from dsd.losses.pretrain import ambient_denoising_loss, projected_denoising_loss
from dsd.noise import sample_teacher_levels
from dsd.operators import View
from dsd.precond import Denoiser, per_sample
from dsd.seeds import batch_indices, seeded_dropout, step_generator
from dsd.shapes import Level, PerSample, State
from dsd.training.common import adam, autocast, learning_rate_factor, set_learning_rate
from dsd.training.ema import ema_decay, frozen_copy, update_ema

__all__ = ["TeacherStep", "TeacherTraining", "consistency_step_loss", "denoising_step_loss"]


@dataclass(frozen=True)
class TeacherStep:
    """What one step saw; its tensors stay on the device until somebody reads them."""

    images_seen: int
    loss: PerSample
    sigma: Level


def denoising_step_loss(
    denoiser: Denoiser,
    y: State,
    sigma_y: Level,
    *,
    objective: Objective,
    weighting: Weighting,
    noise: TeacherNoise,
    generator: torch.Generator,
    view: View | None = None,
) -> tuple[PerSample, Level]:
    """Loss of a denoiser on observations: the objective of teacher and fake denoiser alike.

    Args:
        denoiser: The denoiser.
        y: Observations.
        sigma_y: Noise level of each observation.
        objective: Which.
        weighting: Weight of each level.
        noise: Law of the levels.
        generator: Source of randomness.
        view: What was observed, where the denoiser has views.

    Returns:
        The loss and the total noise level of each sample.
    """
    if objective == "standard":
        sigma_y = torch.zeros_like(sigma_y)
    sigma, sigma_add = sample_teacher_levels(noise, sigma_y, generator)
    n = torch.randn(y.shape, generator=generator, device=y.device)
    loss_of: Callable[..., PerSample] = ambient_denoising_loss
    if denoiser.views is not None:
        assert view is not None, "what was observed of each image?"
        given = denoiser.views.further(view, generator)
        loss_of = partial(
            projected_denoising_loss, views=denoiser.views, observed=view, given=given
        )
    loss = loss_of(
        denoiser,
        y,
        sigma_y=sigma_y,
        sigma=sigma,
        sigma_add=sigma_add,
        n=n,
        weighting=weighting,
        sigma_data=denoiser.sigma_data,
    )
    return loss, sigma


def consistency_step_loss(
    denoiser: Callable[[State, Level], State],
    y: State,
    sigma_y: Level,
    *,
    noise: TeacherNoise,
    num_steps: int,
    generator: torch.Generator,
) -> PerSample:
    """How far a denoiser is from its own mean further down its reverse process.

    The upper level is drawn as for the denoising loss, at or above ``sigma_y``; the lower one from
    the log-normal law of ``noise`` itself, but not above the upper one, so it is mostly below
    ``sigma_y``, where no observation leads.

    Returns:
        The loss of each sample, zero where both levels agree.
    """
    sigma, sigma_add = sample_teacher_levels(noise, sigma_y, generator)
    x = y + per_sample(sigma_add, y) * torch.randn(y.shape, generator=generator, device=y.device)
    normal = torch.randn(sigma.shape, generator=generator, device=sigma.device)
    sigma_low = torch.minimum((noise.P_mean + noise.P_std * normal).exp(), sigma)
    lows = [
        reverse_steps(
            denoiser,
            x,
            sigma=sigma,
            sigma_low=sigma_low,
            num_steps=num_steps,
            generator=generator,
        )
        for _ in range(2)
    ]
    first, second = (denoiser(low, sigma_low) for low in lows)
    return consistency_loss(denoiser(x, sigma), first, second)


@final
class TeacherTraining:
    """State and steps of the teacher's training; a step is a function of its number and the seed.

    Args:
        denoiser: The denoiser to train, in place, on the device of ``images``.
        images: Noisy observations, float32 [n, C, H, W] in data units.
        sigma_y: Noise level of each image.
        config: The ``pretrain`` section.
        seed: Root of all randomness.
        precision: Arithmetic inside the network.
        view: What was observed of each image, on their device; None where all was.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        images: Tensor,
        sigma_y: Tensor,
        config: Pretrain,
        *,
        seed: int,
        precision: Literal["float32", "bfloat16"],
        view: View | None = None,
    ) -> None:
        self.denoiser = denoiser.train()
        self.average = frozen_copy(denoiser)
        self.optimizer: optim.Optimizer = adam(denoiser, config.learning_rate, (0.9, 0.999))
        self.step = 0
        self._images = images
        self._sigma_y = sigma_y
        self._view = view
        self._config = config
        self._seed = seed
        self._precision: Literal["float32", "bfloat16"] = precision

    @property
    def num_steps(self) -> int:
        """Steps in the whole training."""
        return math.ceil(self._config.kimg * 1000 / self._config.batch_size)

    def steps(self) -> Iterator[TeacherStep]:
        """Train from the current step to the last; between records the state is consistent."""
        while self.step < self.num_steps:
            yield self._advance()

    def _advance(self) -> TeacherStep:
        config, device = self._config, self._images.device
        batch = config.batch_size
        seen = self.step * batch
        factor = learning_rate_factor(
            seen,
            total_images=self.num_steps * batch,
            warmup_images=round(config.warmup_kimg * 1000),
            schedule=config.schedule,
        )
        set_learning_rate(self.optimizer, factor * config.learning_rate)
        chosen = batch_indices(self._seed, self.step, batch_size=batch, count=len(self._images))
        chosen = chosen.to(device)
        y, sigma_y = self._images[chosen], self._sigma_y[chosen]
        view = None if self._view is None else self._view[chosen]
        generator = step_generator(self._seed, "pretrain", self.step, device)
        with (
            seeded_dropout(self._seed, "pretrain", self.step, device),
            autocast(device, self._precision),
        ):
            loss, sigma = denoising_step_loss(
                self.denoiser,
                y,
                sigma_y,
                objective=config.objective,
                weighting=config.weighting,
                noise=config.noise,
                generator=generator,
                view=view,
            )
            total = loss.mean() + self._inconsistency(y, sigma_y, view, generator)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.step += 1
        decay = ema_decay(
            seen + batch,
            batch,
            halflife_kimg=config.ema_halflife_kimg,
            rampup=config.ema_rampup,
        )
        update_ema(self.average, self.denoiser, decay)
        return TeacherStep(seen + batch, loss.detach(), sigma)

    def _inconsistency(
        self, y: State, sigma_y: Level, view: View | None, generator: torch.Generator
    ) -> Tensor | float:
        """The weighted consistency term on the first observations of a batch."""
        config = self._config.consistency
        if config.weight == 0:
            return 0.0
        known = {}
        if self.denoiser.views is not None and view is not None:
            known = {"view": self.denoiser.views.further(view[: config.batch_size], generator)}
        loss = consistency_step_loss(
            partial(self.denoiser, **known),
            y[: config.batch_size],
            sigma_y[: config.batch_size],
            noise=self._config.noise,
            num_steps=config.num_steps,
            generator=generator,
        )
        return config.weight * loss.mean()
