"""Distilling a teacher of noisy data into a one-step generator of clean images."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, optim

from dsd.config import Distill, IdentityOperator, Pretrain
from dsd.generator import OneStepGenerator
from dsd.losses.distill import (
    DenoiserPair,
    gap,
    reverse_kl_loss,
    score_distillation_sampling_loss,
    score_identity_loss,
)
from dsd.noise import sample_generator_levels
from dsd.operators import Operator
from dsd.precond import Denoiser, per_sample
from dsd.projection import project_to_range
from dsd.seeds import seeded_dropout, step_generator
from dsd.shapes import Level, PerSample, State
from dsd.training.common import adam, autocast, learning_rate_factor, set_learning_rate
from dsd.training.ema import ema_decay, frozen_copy, update_ema
from dsd.training.pretrain import denoising_step_loss

__all__ = ["DistillStep", "Distillation"]


@dataclass(frozen=True)
class DistillStep:
    """What one step saw; its tensors stay on the device until somebody reads them."""

    images_seen: int
    loss_fake: PerSample | None
    """None with ``sds``, which has no fake denoiser."""

    gap: PerSample
    """Mean squared difference of what is compared: of teacher and fake, or with ``sds`` of teacher
    and generated image."""

    sigma: Level


@final
class Distillation:
    """State and steps of the distillation; a step is a function of its number and the seed.

    Each step draws latents, trains the fake denoiser on the re-corrupted images of the generator
    with the teacher's own objective, then moves the generator against the difference of the two
    denoisers on the same images.

    Args:
        teacher: The frozen teacher.
        sigma_y: Noise level of each training observation; a generated image is re-corrupted with
            one of them at random.
        shape: Channels, height and width of a generated image.
        config: The ``distill`` section.
        objective: The ``pretrain`` section, whose objective and weighting the fake shares.
        seed: Root of all randomness.
        precision: Arithmetic inside the networks.
        operator: Through which the data were observed; None where images themselves were. The
            fake denoiser learns from generated images observed likewise, through fresh views; what
            the generator's loss compares is A G(z), without noise and in all coefficients.

    Deviates:
        The reference code draws separate latents for the fake denoiser and the generator; here the
        first step of the fake denoiser and the generator's share one forward pass, which the
        generator's weights do not notice because they change only afterwards. With masks it
        restricts the generator's loss to observed pixels, with Fourier columns it does not; here
        it is never restricted, since both denoisers estimate whole images. Its generator is given
        a fresh view for each image, ours always the same one.

    Reference:
        Chen et al. 2025, DSD (arXiv:2503.07578), Algorithm 1.
    """

    def __init__(
        self,
        teacher: Denoiser,
        sigma_y: Tensor,
        shape: tuple[int, int, int],
        config: Distill,
        objective: Pretrain,
        *,
        seed: int,
        precision: Literal["float32", "bfloat16"],
        operator: Operator | None = None,
    ) -> None:
        self.teacher = frozen_copy(teacher)
        self.fake = frozen_copy(teacher).requires_grad_(True).train()
        student = frozen_copy(teacher).requires_grad_(True).train()
        self.generator = OneStepGenerator(student, sigma_init=config.sigma_init, shape=shape)
        self.average = frozen_copy(self.generator)
        betas = (config.betas[0], config.betas[1])
        self.optimizer: optim.Optimizer = adam(student, config.learning_rate, betas)
        self.optimizer_fake: optim.Optimizer = adam(self.fake, config.learning_rate_fake, betas)
        self.step = 0
        self._sigma_y = sigma_y
        self._operator = operator or Operator(IdentityOperator(kind="identity"), shape)
        self._config = config
        self._objective = objective
        self._seed = seed
        self._precision: Literal["float32", "bfloat16"] = precision

    @property
    def num_steps(self) -> int:
        """Steps in the whole distillation."""
        return math.ceil(self._config.kimg * 1000 / self._config.batch_size)

    def steps(self) -> Iterator[DistillStep]:
        """Distil from the current step to the last; between records the state is consistent."""
        while self.step < self.num_steps:
            yield self._advance()

    def _advance(self) -> DistillStep:
        config, device = self._config, self._sigma_y.device
        batch = config.batch_size
        seen = self.step * batch
        random = step_generator(self._seed, "distill", self.step, device)
        self._set_learning_rates(seen)
        with seeded_dropout(self._seed, "distill", self.step, device):
            v = self._generate(random)
            loss_fake = None if config.divergence == "sds" else self._follow(v.detach(), random)
            gaps, sigma = self._train_generator(v, random)
        self.step += 1
        decay = ema_decay(
            seen + batch,
            batch,
            halflife_kimg=config.ema_halflife_kimg,
            rampup=config.ema_rampup,
        )
        update_ema(self.average, self.generator, decay)
        return DistillStep(seen + batch, loss_fake, gaps, sigma)

    def _set_learning_rates(self, seen: int) -> None:
        config = self._config
        total = self.num_steps * config.batch_size
        warmup = round(config.warmup_kimg * 1000)
        factor = learning_rate_factor(
            seen, total_images=total, warmup_images=warmup, schedule=config.schedule
        )
        set_learning_rate(self.optimizer, factor * config.learning_rate)
        set_learning_rate(self.optimizer_fake, factor * config.learning_rate_fake)

    def _generate(self, random: torch.Generator) -> State:
        """A G(z), the generated image as denoisers would see it without noise."""
        device = self._sigma_y.device
        shape = (self._config.batch_size, *self.generator.shape)
        z = torch.randn(shape, generator=random, device=device)
        with autocast(device, self._precision):
            x_g: Tensor = self.generator(z)
        if self._config.pixel_range == "clamped":
            x_g = project_to_range(x_g)
        return self._operator.mapped(x_g)

    def _follow(self, v: State, random: torch.Generator) -> PerSample:
        """All steps of the fake denoiser before one of the generator: first ``v``, then more."""
        loss = self._train_fake(v, random)
        for _ in range(self._config.fake_steps - 1):
            with torch.no_grad():
                fresh = self._generate(random)
            loss = self._train_fake(fresh, random)
        return loss

    def _train_fake(self, v: State, random: torch.Generator) -> PerSample:
        """One step of the fake denoiser on generated images observed like the data."""
        device = v.device
        chosen = torch.randint(len(self._sigma_y), (len(v),), generator=random, device=device)
        sigma_y = self._sigma_y[chosen]
        eps = torch.randn(v.shape, generator=random, device=device)
        views = self._operator.views
        view = None if views is None else views.draw(len(v), random)
        y_g = self._operator.project(v + per_sample(sigma_y, v) * eps, view)
        self.fake.requires_grad_(True)
        with autocast(device, self._precision):
            loss, _ = denoising_step_loss(
                self.fake,
                y_g,
                sigma_y,
                objective=self._objective.objective,
                weighting=self._objective.weighting,
                noise=self._config.fake_noise,
                generator=random,
                view=view,
            )
        self.optimizer_fake.zero_grad(set_to_none=True)
        loss.mean().backward()
        self.optimizer_fake.step()
        return loss.detach()

    def _train_generator(self, v: State, random: torch.Generator) -> tuple[PerSample, Level]:
        """One step of the generator; the denoisers pass gradients to their inputs only."""
        device = v.device
        self.fake.requires_grad_(False)
        sigma = sample_generator_levels(self._config.noise, len(v), random, device)
        n = torch.randn(v.shape, generator=random, device=device)
        x_t = v + per_sample(sigma, v) * n
        with autocast(device, self._precision):
            denoised = self._compared(v, x_t, sigma, random)
        self.optimizer.zero_grad(set_to_none=True)
        self._loss(v, denoised).mean().backward()
        self.optimizer.step()
        return gap(denoised).detach(), sigma

    def _compared(
        self, v: State, x_t: State, sigma: Level, random: torch.Generator
    ) -> DenoiserPair:
        """What teacher and fake make of ``x_t``; with ``sds`` the image itself is the fake's."""
        views = self._operator.views
        given = () if views is None else (views.draw_further(len(v), random),)
        teacher = self.teacher(x_t, sigma, *given)
        return DenoiserPair(
            teacher, v if self._config.divergence == "sds" else self.fake(x_t, sigma, *given)
        )

    def _loss(self, v: State, denoised: DenoiserPair) -> PerSample:
        match self._config.divergence:
            case "sid":
                return score_identity_loss(v, denoised, alpha=self._config.alpha)
            case "dmd":
                return reverse_kl_loss(v, denoised)
            case "sds":
                return score_distillation_sampling_loss(v, denoised.teacher)
