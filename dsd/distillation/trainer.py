"""Distilling a teacher of noisy data into a one-step generator of clean images."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, optim

from dsd.distillation.config import Distill
from dsd.distillation.losses import DenoiserPair, divergence_of, gap
from dsd.distillation.projection import project_to_range
from dsd.model.denoiser import AnyDenoiser, append_dims, with_view
from dsd.model.generator import OneStepGenerator
from dsd.model.noise_levels import sample_generator_levels
from dsd.operators.config import IdentityOperator
from dsd.operators.operator import Images, Observations, Operator, View
from dsd.pretraining.config import Pretrain
from dsd.pretraining.trainer import DenoisingDraw, denoising_step_loss, draw_denoising
from dsd.training.distributed import Rows, Team, gradients
from dsd.training.ema import ema_decay, frozen_copy, update_ema
from dsd.training.loss_meter import step_line
from dsd.training.memory import recompute_activations
from dsd.training.nonfinite import Vital, vitals_of
from dsd.training.optim import adam, autocast, learning_rate_factor, set_learning_rate
from dsd.utils.config import Precision
from dsd.utils.precision import float32_products
from dsd.utils.random import DropoutMasks, seeded_dropout, step_generator
from dsd.utils.shapes import Level, PerSample

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
    vitals: tuple[Vital, ...]
    """What must be finite."""

    def __repr__(self) -> str:
        losses = {"gap": self.gap, "loss_fake": self.loss_fake}
        return step_line("DistillStep", self.images_seen, self.sigma, **losses)


@final
@dataclass(frozen=True)
class _FakeDraw(Rows):
    """What chance decides about one step of the fake denoiser."""

    z: Images
    """Latents of the images that it learns from."""

    sigma_y: Level
    """Noise levels with which these are observed."""

    eps: Observations
    """Standard normal noise of that observation."""

    denoising: DenoisingDraw


@final
@dataclass(frozen=True)
class _GeneratorDraw(Rows):
    """What chance decides about one step of the generator."""

    z: Images
    sigma: Level
    n: Observations
    given: View | None
    """What denoisers are given of the diffused images; None where they have no views."""


@final
class Distillation:
    """State and steps of the distillation; a step is a function of its number and the seed.

    Each step draws latents, trains the fake denoiser on the re-corrupted images of the generator
    with the teacher's own objective, then moves the generator against the difference of the two
    denoisers on the same images. Dropout is on in the fake while it learns and nowhere else: all
    images are of the law that is sampled later, and both denoisers are compared as they are.

    Args:
        teacher: The frozen teacher.
        sigma_y: Noise level of each training observation, or one for all; a generated image is
            re-corrupted with one of them at random.
        shape: Channels, height and width of a generated image.
        config: The ``distill`` section.
        objective: The ``pretrain`` section, whose objective and weighting the fake shares.
        seed: Root of all randomness.
        precision: Arithmetic inside the networks.
        operator: Through which the data were observed; None where images themselves were. The
            fake denoiser learns from generated images observed likewise, through fresh views; what
            the generator's loss compares is A G(z), without noise and in all coefficients.
        team: The processes that share the work; None for this one alone.
        activation_checkpointing: Whether to compute blocks of the networks twice, for less memory.

    Deviates:
        The reference code draws separate latents for the fake denoiser and the generator; here the
        first step of the fake denoiser and the generator's share one forward pass, which the
        generator's weights do not notice because they change only afterwards. Its generator has
        dropout when it is judged, and none when it feeds the fake, which then judges images of a
        law that it has not seen; latents are never repeated, so there is nothing to overfit, and
        here the generator has none. With masks it
        restricts the generator's loss to observed pixels, with Fourier columns it does not; here
        it is never restricted, since both denoisers estimate whole images. Its generator is given
        a fresh view for each image, ours always the same one.

    Reference:
        Chen et al. 2025, DSD (arXiv:2503.07578), Algorithm 1.
    """

    def __init__(
        self,
        teacher: AnyDenoiser,
        sigma_y: Tensor | float,
        shape: tuple[int, int, int],
        config: Distill,
        objective: Pretrain,
        *,
        seed: int,
        precision: Precision,
        operator: Operator | None = None,
        team: Team | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        self.teacher = frozen_copy(teacher)
        self.fake = frozen_copy(teacher).requires_grad_(True)
        student = frozen_copy(teacher).requires_grad_(True)
        self.generator = OneStepGenerator(student, sigma_init=config.sigma_init, shape=shape)
        self.average = frozen_copy(self.generator)
        for module in (self.teacher, self.fake, student):
            recompute_activations(module, activation_checkpointing)
        betas = (config.betas[0], config.betas[1])
        self.optimizer: optim.Optimizer = adam(student, config.learning_rate, betas)
        self.optimizer_fake: optim.Optimizer = adam(self.fake, config.learning_rate_fake, betas)
        self.step = 0
        device = next(teacher.parameters()).device
        self._sigma_y = torch.as_tensor(sigma_y, dtype=torch.float32, device=device).reshape(-1)
        self._operator = operator or Operator(IdentityOperator(kind="identity"), shape)
        self._team = team or Team()
        self._config = config
        self._objective = objective
        self._seed = seed
        self._precision: Precision = precision
        self._loss = divergence_of(config.divergence, alpha=config.alpha)

    @property
    def num_steps(self) -> int:
        """Steps in the whole distillation."""
        return math.ceil(self._config.kimg * 1000 / self._config.batch_size)

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return self._config.batch_size

    @property
    def least(self) -> int:
        """Fewest images that need memory as many do, for each."""
        return 1

    @property
    def optimizers(self) -> list[optim.Optimizer]:
        """What moves the weights; with ``sds`` there is no fake to move."""
        followed = self._config.divergence != "sds"
        return [self.optimizer, *[self.optimizer_fake] * followed]

    @property
    def _parts(self) -> list[slice]:
        """This process' rows of each batch."""
        return self._team.parts(self._config.batch_size)

    def steps(self) -> Iterator[DistillStep]:
        """Distil from the current step to the last; between records the state is consistent."""
        while self.step < self.num_steps:
            with float32_products(tf32=self._precision == "tf32"):
                record = self._advance()
            yield record

    def rehearse(self, team: Team) -> None:
        """Compute gradients of the next step as the first of ``team`` would; change nothing else.

        They are added to those that are there, which the next step forgets. All steps of the fake
        denoiser need the same memory; only one is rehearsed.
        """
        trial = copy.copy(self)
        trial._team = team
        device = self._sigma_y.device
        drawn, fakes = trial._draw(step_generator(self._seed, "distill", self.step, device))
        with (
            float32_products(tf32=self._precision == "tf32"),
            seeded_dropout(self._seed, "distill", self.step, device) as masks,
        ):
            v = trial._generate_all(drawn.z, keep=len(trial._parts) == 1)
            for fake in fakes[:1]:
                trial._fake_gradients(v, fake, masks)
            _, pulls = trial._compare_all(v, drawn)
            trial._pull(v, pulls, drawn.z)

    def _advance(self) -> DistillStep:
        config, device = self._config, self._sigma_y.device
        batch = config.batch_size
        seen = self.step * batch
        self._set_learning_rates(seen)
        self.optimizer.zero_grad(set_to_none=True)
        drawn, fakes = self._draw(step_generator(self._seed, "distill", self.step, device))
        with seeded_dropout(self._seed, "distill", self.step, device) as masks:
            # One part keeps what its gradient needs; several are computed again for it, since
            # parts are there to save memory.
            v = self._generate_all(drawn.z, keep=len(self._parts) == 1)
            loss_fake = self._follow(v, fakes, masks)
            gaps, pulls = self._compare_all(v, drawn)
            self._pull(v, pulls, drawn.z)
        self._team.add_up([*gradients(self.generator), gaps])
        self.optimizer.step()
        self.step += 1
        decay = ema_decay(
            seen + batch,
            batch,
            halflife_kimg=config.ema_halflife_kimg,
            rampup=config.ema_rampup_ratio,
        )
        update_ema(self.average, self.generator, decay)
        vitals = (
            *self._fake_vitals(loss_fake, fakes),
            Vital("the gap between teacher and fake denoiser", gaps, sigma=drawn.sigma),
            *vitals_of("the generator", self.generator),
        )
        return DistillStep(seen + batch, loss_fake, gaps, drawn.sigma, vitals)

    def _fake_vitals(self, loss: PerSample | None, fakes: list[_FakeDraw]) -> Iterator[Vital]:
        """What must be finite of the fake denoiser, where there is one."""
        if loss is not None:
            yield Vital("the fake denoiser's loss", loss, sigma=fakes[-1].denoising.sigma)
            yield from vitals_of("the fake denoiser", self.fake)

    def _set_learning_rates(self, seen: int) -> None:
        config = self._config
        total = self.num_steps * config.batch_size
        warmup = round(config.lr_warmup_kimg * 1000)
        factor = learning_rate_factor(
            seen, total_images=total, warmup_images=warmup, schedule=config.lr_schedule
        )
        set_learning_rate(self.optimizer, factor * config.learning_rate)
        set_learning_rate(self.optimizer_fake, factor * config.learning_rate_fake)

    def _draw(self, random: torch.Generator) -> tuple[_GeneratorDraw, list[_FakeDraw]]:
        """All that chance decides in this step, the same in every process of the team.

        The first step of the fake denoiser and that of the generator share their latents.
        """
        config = self._config
        count, device = config.batch_size, self._sigma_y.device
        z = self._latents(random)
        fakes: list[_FakeDraw] = []
        if config.divergence != "sds":
            fakes.append(self._draw_fake(z, random))
            for _ in range(config.fake_updates_per_step - 1):
                fakes.append(self._draw_fake(self._latents(random), random))
        sigma = sample_generator_levels(config.noise, count, random, device)
        n = torch.randn((count, *self._operator.observed_shape), generator=random, device=device)
        views = self._operator.views
        given = None if views is None else views.draw_further(count, random)
        return _GeneratorDraw(z, sigma, n, given), fakes

    def _latents(self, random: torch.Generator) -> Images:
        shape = (self._config.batch_size, *self.generator.shape)
        return torch.randn(shape, generator=random, device=self._sigma_y.device)

    def _draw_fake(self, z: Images, random: torch.Generator) -> _FakeDraw:
        count, device = len(z), z.device
        shape, views = self._operator.observed_shape, self._operator.views
        chosen = torch.randint(len(self._sigma_y), (count,), generator=random, device=device)
        sigma_y = self._sigma_y[chosen]
        eps = torch.randn((count, *shape), generator=random, device=device)
        denoising = draw_denoising(
            sigma_y,
            shape,
            objective=self._objective.objective,
            noise=self._config.fake_noise,
            views=views,
            view=None if views is None else views.draw(count, random),
            generator=random,
        )
        return _FakeDraw(z, sigma_y, eps, denoising)

    def _generate_all(self, z: Images, *, keep: bool) -> list[Tensor]:
        """Generated images of this process' rows, in parts; ``keep`` what gradients need."""
        with torch.set_grad_enabled(keep):
            return [self._generate(z[rows]) for rows in self._parts]

    def _generate(self, z: Images) -> Observations:
        """A G(z), the generated image as denoisers would see it without noise."""
        with autocast(z.device, self._precision):
            x_g: Tensor = self.generator(z)
        if self._config.clamp_output:
            x_g = project_to_range(x_g)
        return self._operator.mapped(x_g)

    def _follow(
        self, v: list[Tensor], fakes: list[_FakeDraw], masks: DropoutMasks
    ) -> PerSample | None:
        """All steps of the fake denoiser before one of the generator: first ``v``, then more."""
        loss = None
        for number, drawn in enumerate(fakes):
            if number > 0:
                v = self._generate_all(drawn.z, keep=False)
            loss = self._train_fake(v, drawn, masks)
        return loss

    def _train_fake(self, v: list[Tensor], drawn: _FakeDraw, masks: DropoutMasks) -> PerSample:
        """One step of the fake denoiser on generated images observed like the data."""
        self.optimizer_fake.zero_grad(set_to_none=True)
        found = self._fake_gradients(v, drawn, masks)
        self._team.add_up([*gradients(self.fake), found])
        self.optimizer_fake.step()
        return found

    def _fake_gradients(self, v: list[Tensor], drawn: _FakeDraw, masks: DropoutMasks) -> PerSample:
        """Add this process' share to the gradients of the fake denoiser.

        Returns:
            The loss of each sample of the batch, zero for those of other processes.
        """
        batch = self._config.batch_size
        found = torch.zeros_like(drawn.sigma_y)
        self.fake.train().requires_grad_(True)
        for rows, images in zip(masks.parts(self._parts, batch), v, strict=True):
            loss = self._fake_loss(images.detach(), drawn[rows])
            (loss.sum() / batch).backward()
            found[rows] = loss.detach()
        return found

    def _fake_loss(self, v: Observations, drawn: _FakeDraw) -> PerSample:
        noisy = v + append_dims(drawn.sigma_y, v) * drawn.eps
        y_g = self._operator.project(noisy, drawn.denoising.view)
        with autocast(v.device, self._precision):
            return denoising_step_loss(self.fake, y_g, drawn.denoising, self._objective.weighting)

    def _compare_all(
        self, v: list[Tensor], drawn: _GeneratorDraw
    ) -> tuple[PerSample, list[Tensor]]:
        """Let teacher and fake judge generated images; they pass gradients to their inputs only.

        Returns:
            The gap of each sample of the batch, zero for those of other processes, and the
            gradient of the generator's loss with respect to ``v``.
        """
        batch = self._config.batch_size
        gaps = torch.zeros_like(drawn.sigma)
        pulls: list[Tensor] = []
        self.fake.eval().requires_grad_(False)
        for rows, images in zip(self._parts, v, strict=True):
            images = images.detach().requires_grad_()
            with autocast(images.device, self._precision):
                denoised = self._compared(images, drawn[rows])
            loss = self._loss(images, denoised).sum() / batch
            (pull,) = torch.autograd.grad(loss, images)
            pulls.append(pull)
            gaps[rows] = gap(denoised).detach()
        return gaps, pulls

    def _compared(self, v: Observations, drawn: _GeneratorDraw) -> DenoiserPair:
        """What teacher and fake make of diffused ``v``; with ``sds`` it is itself the fake's."""
        x_t = v + append_dims(drawn.sigma, v) * drawn.n
        teacher = with_view(self.teacher, drawn.given)(x_t, drawn.sigma)
        if self._config.divergence == "sds":
            return DenoiserPair(teacher, v)
        return DenoiserPair(teacher, with_view(self.fake, drawn.given)(x_t, drawn.sigma))

    def _pull(self, v: list[Tensor], pulls: list[Tensor], z: Images) -> None:
        """Pass the gradients with respect to the generated images on to the generator's weights.

        Args:
            v: The images.
            pulls: Their gradients.
            z: Latents of the whole batch.
        """
        if len(v) == 1:
            v[0].backward(pulls[0])
            return
        for rows, pull in zip(self._parts, pulls, strict=True):
            self._generate(z[rows]).backward(pull)
