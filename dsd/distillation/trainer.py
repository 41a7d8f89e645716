"""Distilling a teacher of noisy data into a one-step generator of clean images."""

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
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
from dsd.pretraining.trainer import DenoisingNoise, denoising_step_loss, sample_denoising_noise
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
class _FakeNoise(Rows):
    """Random inputs of one step of the fake denoiser."""

    z: Images
    """Latents of the images that it learns from."""

    sigma_y: Level
    """Noise levels with which these are observed."""

    eps: Observations
    """Standard normal noise of that observation."""

    denoising: DenoisingNoise


@final
@dataclass(frozen=True)
class _GeneratorNoise(Rows):
    """Random inputs of one step of the generator."""

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
        operator = operator or Operator(IdentityOperator(kind="identity"), shape)
        self._operator = operator.to(device)
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
                record = self._step()
            yield record

    def rehearse(self, team: Team) -> None:
        """Compute gradients of the next step as the first of ``team`` would; change nothing else.

        Gradients accumulate into ``.grad``; the next step zeroes them. All steps of the fake
        denoiser need the same memory; only one is rehearsed.
        """
        trial = copy.copy(self)
        trial._team = team
        noise, fake_noises = trial._sample_noise(self._random())
        with float32_products(tf32=self._precision == "tf32"), self._dropout() as masks:
            x_g = trial._generate_all(noise.z, retain_graph=len(trial._parts) == 1)
            for fake_noise in fake_noises[:1]:
                trial._backward_fake(x_g, fake_noise, masks)
            _, grad_x = trial._differentiate(x_g, noise)
            trial._backward_generator(noise.z, x_g, grad_x)

    def _step(self) -> DistillStep:
        """Take one step of Algorithm 1: the fake denoiser learns, then the generator moves."""
        self._set_learning_rates()
        noise, fake_noises = self._sample_noise(self._random())
        with self._dropout() as masks:
            # One part keeps what its gradient needs; several are computed again for it, since
            # parts are there to save memory.
            x_g = self._generate_all(noise.z, retain_graph=len(self._parts) == 1)
            loss_fake = self._update_fake(x_g, fake_noises, masks)
            gaps, grad_x = self._differentiate(x_g, noise)
            self._update_generator(noise.z, x_g, grad_x, gaps)
        self.step += 1
        self._update_average()
        checked = (
            *self._checked_of_fake(loss_fake, fake_noises),
            Vital("the gap between teacher and fake denoiser", gaps, sigma=noise.sigma),
            *vitals_of("the generator", self.generator),
        )
        return DistillStep(self._images_seen, loss_fake, gaps, noise.sigma, checked)

    @property
    def _images_seen(self) -> int:
        """Images generated for the generator's own steps so far."""
        return self.step * self._config.batch_size

    def _random(self) -> torch.Generator:
        """Source of this step's random inputs."""
        return step_generator(self._seed, "distill", self.step, self._sigma_y.device)

    def _dropout(self) -> AbstractContextManager[DropoutMasks]:
        """Randomness of dropout in this step."""
        return seeded_dropout(self._seed, "distill", self.step, self._sigma_y.device)

    def _checked_of_fake(
        self, loss: PerSample | None, noises: list[_FakeNoise]
    ) -> Iterator[Vital]:
        """What must be finite of the fake denoiser, where there is one."""
        if loss is not None:
            yield Vital("the fake denoiser's loss", loss, sigma=noises[-1].denoising.sigma)
            yield from vitals_of("the fake denoiser", self.fake)

    def _set_learning_rates(self) -> None:
        config = self._config
        factor = learning_rate_factor(
            self._images_seen,
            total_images=self.num_steps * config.batch_size,
            warmup_images=round(config.lr_warmup_kimg * 1000),
            schedule=config.lr_schedule,
        )
        set_learning_rate(self.optimizer, factor * config.learning_rate)
        set_learning_rate(self.optimizer_fake, factor * config.learning_rate_fake)

    def _update_average(self) -> None:
        config = self._config
        decay = ema_decay(
            self._images_seen,
            config.batch_size,
            halflife_kimg=config.ema_halflife_kimg,
            rampup=config.ema_rampup_ratio,
        )
        update_ema(self.average, self.generator, decay)

    def _sample_noise(self, random: torch.Generator) -> tuple[_GeneratorNoise, list[_FakeNoise]]:
        """All random inputs of this step, the same in every process.

        The first step of the fake denoiser and that of the generator share their latents.
        """
        config = self._config
        count, device = config.batch_size, self._sigma_y.device
        z = self._sample_latents(random)
        fakes: list[_FakeNoise] = []
        if config.divergence != "sds":
            fakes.append(self._sample_fake_noise(z, random))
            for _ in range(config.fake_updates_per_step - 1):
                fakes.append(self._sample_fake_noise(self._sample_latents(random), random))
        sigma = sample_generator_levels(config.noise, count, random, device)
        n = torch.randn((count, *self._operator.observed_shape), generator=random, device=device)
        views = self._operator.views
        given = None if views is None else views.draw_further(count, random)
        return _GeneratorNoise(z, sigma, n, given), fakes

    def _sample_latents(self, random: torch.Generator) -> Images:
        shape = (self._config.batch_size, *self.generator.shape)
        return torch.randn(shape, generator=random, device=self._sigma_y.device)

    def _sample_fake_noise(self, z: Images, random: torch.Generator) -> _FakeNoise:
        count, device = len(z), z.device
        shape, views = self._operator.observed_shape, self._operator.views
        chosen = torch.randint(len(self._sigma_y), (count,), generator=random, device=device)
        sigma_y = self._sigma_y[chosen]
        eps = torch.randn((count, *shape), generator=random, device=device)
        denoising = sample_denoising_noise(
            sigma_y,
            shape,
            objective=self._objective.objective,
            noise=self._config.fake_noise,
            views=views,
            view=None if views is None else views.draw(count, random),
            generator=random,
        )
        return _FakeNoise(z, sigma_y, eps, denoising)

    def _generate_all(self, z: Images, *, retain_graph: bool) -> list[Tensor]:
        """Generated images of this process' rows, in micro-batches."""
        with torch.set_grad_enabled(retain_graph):
            return [self._generate(z[rows]) for rows in self._parts]

    def _generate(self, z: Images) -> Observations:
        """x_g = A G(z): the generated image as a denoiser sees it, without noise."""
        with autocast(z.device, self._precision):
            x_g: Tensor = self.generator(z)
        if self._config.clamp_output:
            x_g = project_to_range(x_g)
        return self._operator.mapped(x_g)

    def _update_fake(
        self, x_g: list[Tensor], noises: list[_FakeNoise], masks: DropoutMasks
    ) -> PerSample | None:
        """Take all steps of the fake denoiser: on ``x_g`` first, then on more images."""
        loss = None
        for number, noise in enumerate(noises):
            if number > 0:
                x_g = self._generate_all(noise.z, retain_graph=False)
            self.optimizer_fake.zero_grad(set_to_none=True)
            loss = self._backward_fake(x_g, noise, masks)
            self._team.add_up([*gradients(self.fake), loss])
            self.optimizer_fake.step()
        return loss

    def _backward_fake(
        self, x_g: list[Tensor], noise: _FakeNoise, masks: DropoutMasks
    ) -> PerSample:
        """Add this process' share to the gradients of the fake denoiser.

        Returns:
            The loss of each sample of the batch, zero for those of other processes.
        """
        batch = self._config.batch_size
        losses = torch.zeros_like(noise.sigma_y)
        self.fake.train().requires_grad_(True)
        for rows, images in zip(masks.parts(self._parts, batch), x_g, strict=True):
            loss = self._fake_loss(images.detach(), noise[rows])
            (loss.sum() / batch).backward()
            losses[rows] = loss.detach()
        return losses

    def _fake_loss(self, x_g: Observations, noise: _FakeNoise) -> PerSample:
        """The teacher's objective on generated images that are observed like the data."""
        noisy = x_g + append_dims(noise.sigma_y, x_g) * noise.eps
        y_g = self._operator.project(noisy, noise.denoising.view)
        with autocast(x_g.device, self._precision):
            return denoising_step_loss(self.fake, y_g, noise.denoising, self._objective.weighting)

    def _differentiate(
        self, x_g: list[Tensor], noise: _GeneratorNoise
    ) -> tuple[PerSample, list[Tensor]]:
        """Differentiate the divergence with respect to the generated images.

        Returns:
            The gap of each sample of the batch, zero for those of other processes, and the
            gradient of the generator's loss with respect to ``x_g``.
        """
        batch = self._config.batch_size
        gaps = torch.zeros_like(noise.sigma)
        grad_x: list[Tensor] = []
        self.fake.eval().requires_grad_(False)
        for rows, images in zip(self._parts, x_g, strict=True):
            images = images.detach().requires_grad_()
            with autocast(images.device, self._precision):
                denoised = self._denoise_both(images, noise[rows])
            loss = self._loss(images, denoised).sum() / batch
            grad_x.extend(torch.autograd.grad(loss, images))
            gaps[rows] = gap(denoised).detach()
        return gaps, grad_x

    def _denoise_both(self, x_g: Observations, noise: _GeneratorNoise) -> DenoiserPair:
        """Teacher and fake at x_t = x_g + sigma n; with ``sds`` x_g itself is the fake's."""
        x_t = x_g + append_dims(noise.sigma, x_g) * noise.n
        teacher = with_view(self.teacher, noise.given)(x_t, noise.sigma)
        if self._config.divergence == "sds":
            return DenoiserPair(teacher, x_g)
        return DenoiserPair(teacher, with_view(self.fake, noise.given)(x_t, noise.sigma))

    def _update_generator(
        self, z: Images, x_g: list[Tensor], grad_x: list[Tensor], gaps: PerSample
    ) -> None:
        """Move the generator down the gradient; sum ``gaps`` over the processes by the way."""
        self.optimizer.zero_grad(set_to_none=True)
        self._backward_generator(z, x_g, grad_x)
        self._team.add_up([*gradients(self.generator), gaps])
        self.optimizer.step()

    def _backward_generator(self, z: Images, x_g: list[Tensor], grad_x: list[Tensor]) -> None:
        """Pass the gradients with respect to ``x_g`` on to the generator's weights."""
        if len(x_g) == 1:
            x_g[0].backward(grad_x[0])
            return
        for rows, gradient in zip(self._parts, grad_x, strict=True):
            self._generate(z[rows]).backward(gradient)
