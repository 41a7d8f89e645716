"""Distilling a teacher of noisy data into a one-step generator of clean images."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor, optim

from dsd.distillation.config import DIVERGENCES, Distill
from dsd.distillation.losses import DenoiserPair, divergence_of, gap
from dsd.distillation.projection import project_to_range
from dsd.model.denoiser import AnyDenoiser, append_dims, with_view
from dsd.model.generator import OneStepGenerator
from dsd.model.noise_levels import sample_generator_levels
from dsd.operators.config import IdentityOperator
from dsd.operators.gaussian_noise import noise_under
from dsd.operators.operator import Images, Observations, Operator, View
from dsd.pretraining.config import Pretrain
from dsd.pretraining.trainer import DenoisingNoise, denoising_step_loss, sample_denoising_noise
from dsd.training.compiled import Compilation, CompiledStep, capture_obstacle
from dsd.training.distributed import DistributedContext, TensorBatch, gradients
from dsd.training.loss_meter import step_line
from dsd.training.memory import enable_activation_checkpointing
from dsd.training.nonfinite import FiniteCheck, Norms, norm_checks, norms
from dsd.training.optim import adam, frozen_copy
from dsd.training.schedule import Schedule
from dsd.utils.config import Precision
from dsd.utils.precision import weight_layout
from dsd.utils.shapes import Level, NoiseLevels, PerSample

__all__ = ["DistillStep", "Distillation"]


@dataclass(frozen=True)
class DistillStep:
    """One step's record; its tensors stay on the device until they are read."""

    images_seen: int
    loss_fake: PerSample | None
    """None where there is no fake denoiser."""

    gap: PerSample
    """Mean squared difference of teacher and fake, or where there is no fake of teacher and
    generated image."""

    sigma: Level
    checks: tuple[FiniteCheck, ...]

    def __repr__(self) -> str:
        losses = {"gap": self.gap, "loss_fake": self.loss_fake}
        return step_line("DistillStep", self.images_seen, self.sigma, **losses)


@final
@dataclass(frozen=True)
class _FakeNoise(TensorBatch):
    """Random inputs of one step of the fake denoiser."""

    z: Images
    """Latents of the images that it learns from."""

    sigma_y: NoiseLevels
    """Noise levels with which these, or their pixels, are observed."""

    eps: Observations
    """Noise of that observation, of variance 1."""

    denoising: DenoisingNoise


@final
@dataclass(frozen=True)
class _GeneratorNoise(TensorBatch):
    """Random inputs of one step of the generator."""

    z: Images
    sigma: Level
    n: Observations
    given: View | None
    """What denoisers are given of the diffused images; None where they have no views."""


class _Moved(NamedTuple):
    """What one step found; None where there is no fake denoiser."""

    loss_fake: PerSample | None
    gaps: PerSample
    fake: Norms | None
    generator: Norms


@final
class Distillation:
    """State and steps of the distillation; a step is a function of its number and the seed.

    Each step draws latents, trains the fake denoiser on the re-corrupted images of the generator
    with the teacher's own objective, then moves the generator against the difference of the two
    denoisers on the same images. Dropout is on in the fake while it learns and nowhere else: all
    images are of the distribution that is sampled later, and both denoisers are compared as they
    are.

    Args:
        teacher: The frozen teacher, which names the distribution of the data's noise.
        sigma_y: Noise level of each training observation or of its pixels, or one for all; a
            generated image is re-corrupted with one of them at random.
        shape: Channels, height and width of a generated image.
        config: The ``distill`` section.
        objective: The ``pretrain`` section, whose objective and weighting the fake shares.
        seed: Root of all randomness.
        precision: Arithmetic inside the networks.
        operator: Through which the data were observed; None where images themselves were. The
            fake denoiser learns from generated images observed likewise, through fresh views; what
            the generator's loss compares is A G(z), without noise and in all coefficients.
        distributed: The processes that share the work; None for this one alone.
        activation_checkpointing: Whether to compute blocks of the networks twice, for less memory.
        compilation: Compiles the step, and reports on it; None runs it as plain PyTorch.

    Deviates:
        The reference code draws separate latents for the fake denoiser and the generator; here the
        first step of the fake denoiser and the generator's share one forward pass, which the
        generator's weights do not notice because they change only afterwards. Its generator has
        dropout when it is judged, and none when it feeds the fake, which then judges images of a
        distribution that it has not seen; latents are never repeated, so there is nothing to
        overfit, and here the generator has none. With masks it
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
        distributed: DistributedContext | None = None,
        activation_checkpointing: bool = False,
        compilation: Compilation | None = None,
    ) -> None:
        device = next(teacher.parameters()).device
        layout = weight_layout(device, precision)
        self.teacher = frozen_copy(teacher).to(memory_format=layout)
        self._noise = noise_under(self.teacher)
        self.fake = frozen_copy(self.teacher).requires_grad_(True)
        student = frozen_copy(self.teacher).requires_grad_(True)
        self.generator = OneStepGenerator(student, sigma_init=config.sigma_init, shape=shape)
        self.average = frozen_copy(self.generator)
        for module in (self.teacher, self.fake, student):
            enable_activation_checkpointing(module, activation_checkpointing)
        betas = (config.betas[0], config.betas[1])
        self.optimizer: optim.Optimizer = adam(student, config.learning_rate, betas)
        self.optimizer_fake: optim.Optimizer = adam(self.fake, config.learning_rate_fake, betas)
        self.optimizers = [self.optimizer, *[self.optimizer_fake] * config.needs_fake]
        self.batch_size = config.batch_size
        self.step = 0
        self._fake_modules = [*self.fake.modules()]
        self._fake_weights: list[Tensor] = [*self.fake.parameters()]
        self._weights: list[Tensor] = [*student.parameters()]
        self._averages: list[Tensor] = [*self.average.parameters()]
        levels = torch.as_tensor(sigma_y, dtype=torch.float32, device=device)
        self._sigma_y: NoiseLevels = levels if levels.ndim > 1 else levels.reshape(-1)
        operator = operator or Operator(IdentityOperator(kind="identity"), shape)
        self._operator = operator.to(device)
        self._distributed = distributed or DistributedContext()
        self._config = config
        self._objective = objective
        self._schedule = Schedule(
            config,
            "distill",
            seed=seed,
            precision=precision,
            device=device,
            distributed=self._distributed,
        )
        self._loss = divergence_of(config.divergence, alpha=config.alpha)
        obstacle = capture_obstacle(self._distributed, recomputes=activation_checkpointing)
        if config.divergence not in DIVERGENCES:
            obstacle = "a divergence of your own may do more than compute on tensors"
        self._update = CompiledStep(
            self._update_both,
            networks=[self.teacher, self.fake, student],
            optimizers=self.optimizers,
            compilation=compilation,
            obstacle=obstacle,
            device=device,
        )

    @property
    def num_steps(self) -> int:
        """Steps in the whole distillation."""
        return self._schedule.num_steps

    @property
    def _parts(self) -> list[slice]:
        """This process' rows of each batch."""
        return self._distributed.micro_batches(self._config.batch_size)

    def steps(self) -> Iterator[DistillStep]:
        """Distil from the current step to the last; between records the state is consistent."""
        self._update.compile(self._dry_run)
        while self.step < self.num_steps:
            yield self._schedule.computed(self._step)

    def dry_run(self) -> None:
        """Add this process' share of the next step to the gradients; change nothing else.

        All steps of the fake denoiser need the same memory; only one is computed, but the images
        of another one are generated.
        """
        self._update.compile(self._dry_run)
        self._dry_run()

    def _dry_run(self) -> None:
        noise, fake_noises = self._sample_noise(self._schedule.generator(self.step))
        with self._schedule.dropout(self.step):
            self._schedule.computed(lambda: self._backward_both(noise, fake_noises[:2]))

    def _backward_both(self, noise: _GeneratorNoise, fake_noises: list[_FakeNoise]) -> None:
        x_g = self._generate_all(noise.z, retain_graph=len(self._parts) == 1)
        for fake_noise in fake_noises[:1]:
            self._backward_fake(x_g, fake_noise)
        for fake_noise in fake_noises[1:]:
            self._generate_all(fake_noise.z, retain_graph=False)
        _, grad_x = self._differentiate(x_g, noise)
        self._backward_generator(noise.z, x_g, grad_x)

    def _step(self) -> DistillStep:
        """Take one step of Algorithm 1: the fake denoiser learns, then the generator moves."""
        schedule, config = self._schedule, self._config
        schedule.set_learning_rate(self.step, self.optimizer, config.learning_rate)
        schedule.set_learning_rate(self.step, self.optimizer_fake, config.learning_rate_fake)
        noise, fake_noises = self._sample_noise(schedule.generator(self.step))
        with schedule.dropout(self.step):
            moved = self._update((noise, fake_noises))
        self.step += 1
        schedule.update_average(self.step, self._averages, self._weights)
        gaps = moved.gaps
        checked = (
            *self._checked_of_fake(moved, fake_noises),
            FiniteCheck("the gap between teacher and fake denoiser", gaps, sigma=noise.sigma),
            *norm_checks("the generator", self.generator, moved.generator),
        )
        seen = schedule.images_seen(self.step)
        return DistillStep(seen, moved.loss_fake, gaps, noise.sigma, checked)

    def _update_both(self, noises: tuple[_GeneratorNoise, list[_FakeNoise]]) -> _Moved:
        """Train the fake denoiser, then move the generator."""
        noise, fake_noises = noises
        # One part keeps what its gradient needs; several are computed again for it, since parts
        # are there to save memory.
        x_g = self._generate_all(noise.z, retain_graph=len(self._parts) == 1)
        loss_fake = self._update_fake(x_g, fake_noises)
        norms_fake = None if loss_fake is None else norms(self._fake_weights)
        gaps, grad_x = self._differentiate(x_g, noise)
        self._update_generator(noise.z, x_g, grad_x, gaps)
        return _Moved(loss_fake, gaps, norms_fake, norms(self._weights))

    def _checked_of_fake(self, moved: _Moved, noises: list[_FakeNoise]) -> Iterator[FiniteCheck]:
        """What must be finite of the fake denoiser, where there is one."""
        if moved.loss_fake is not None and moved.fake is not None:
            levels = noises[-1].denoising.sigma
            yield FiniteCheck("the fake denoiser's loss", moved.loss_fake, sigma=levels)
            yield from norm_checks("the fake denoiser", self.fake, moved.fake)

    def _sample_noise(self, random: torch.Generator) -> tuple[_GeneratorNoise, list[_FakeNoise]]:
        """All random inputs of a step, the same in every process.

        The first step of the fake denoiser and that of the generator share their latents.
        """
        config = self._config
        count, device = config.batch_size, self._sigma_y.device
        z = self._sample_latents(random)
        fakes: list[_FakeNoise] = []
        if config.needs_fake:
            fakes.append(self._sample_fake_noise(z, random))
            for _ in range(config.fake_updates_per_step - 1):
                fakes.append(self._sample_fake_noise(self._sample_latents(random), random))
        sigma = sample_generator_levels(config.noise, count, random, device)
        n = self._noise.draw((count, *self._operator.observed_shape), random)
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
        eps = self._noise.draw((count, *shape), random)
        denoising = sample_denoising_noise(
            sigma_y,
            shape,
            objective=self._objective.objective,
            noise=self._config.fake_noise,
            views=views,
            view=None if views is None else views.draw(count, random),
            generator=random,
            added=self._noise,
        )
        return _FakeNoise(z, sigma_y, eps, denoising)

    def _generate_all(self, z: Images, *, retain_graph: bool) -> list[Tensor]:
        """Generated images of this process' rows, in micro-batches."""
        with torch.set_grad_enabled(retain_graph):
            return [self._generate(z[rows]) for rows in self._parts]

    def _generate(self, z: Images) -> Observations:
        """x_g = A G(z): the generated image as a denoiser sees it, without noise."""
        with self._schedule.autocast():
            x_g: Tensor = self.generator(z)
        if self._config.clamp_output:
            x_g = project_to_range(x_g)
        return self._operator.mapped(x_g)

    def _update_fake(self, x_g: list[Tensor], noises: list[_FakeNoise]) -> PerSample | None:
        """Take all steps of the fake denoiser: on ``x_g`` first, then on more images."""
        loss = None
        for number, noise in enumerate(noises):
            if number > 0:
                x_g = self._generate_all(noise.z, retain_graph=False)
            self.optimizer_fake.zero_grad(set_to_none=True)
            loss = self._backward_fake(x_g, noise)
            self._distributed.all_reduce_sum_([*gradients(self._fake_weights), loss])
            self.optimizer_fake.step()
        return loss

    def _backward_fake(self, x_g: list[Tensor], noise: _FakeNoise) -> PerSample:
        """Add this process' share to the gradients of the fake denoiser.

        Returns:
            The loss of each sample of the batch, zero for those of other processes.
        """
        batch = self._config.batch_size
        losses = torch.zeros_like(noise.denoising.sigma)
        self._let_fake_learn(True)
        for rows, images in zip(self._parts, x_g, strict=True):
            loss = self._fake_loss(images.detach(), noise[rows])
            (loss.sum() / batch).backward()
            losses[rows] = loss.detach()
        return losses

    def _let_fake_learn(self, learns: bool) -> None:
        """Switch dropout and the weights' gradients on or off, without a search for modules."""
        for module in self._fake_modules:
            module.training = learns
        for weight in self._fake_weights:
            weight.requires_grad_(learns)

    def _fake_loss(self, x_g: Observations, noise: _FakeNoise) -> PerSample:
        """The teacher's objective on generated images that are observed like the data."""
        noisy = x_g + append_dims(noise.sigma_y, x_g) * noise.eps
        y_g = self._operator.project(noisy, noise.denoising.view)
        with self._schedule.autocast():
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
        self._let_fake_learn(False)
        for rows, images in zip(self._parts, x_g, strict=True):
            images = images.detach().requires_grad_()
            with self._schedule.autocast():
                denoised = self._denoise_both(images, noise[rows])
            loss = self._loss(images, denoised).sum() / batch
            grad_x.extend(torch.autograd.grad(loss, images))
            gaps[rows] = gap(denoised).detach()
        return gaps, grad_x

    def _denoise_both(self, x_g: Observations, noise: _GeneratorNoise) -> DenoiserPair:
        """Teacher and fake at x_t = x_g + sigma n; without a fake x_g itself stands for its."""
        x_t = x_g + append_dims(noise.sigma, x_g) * noise.n
        teacher = with_view(self.teacher, noise.given)(x_t, noise.sigma)
        if not self._config.needs_fake:
            return DenoiserPair(teacher, x_g)
        return DenoiserPair(teacher, with_view(self.fake, noise.given)(x_t, noise.sigma))

    def _update_generator(
        self, z: Images, x_g: list[Tensor], grad_x: list[Tensor], gaps: PerSample
    ) -> None:
        """Move the generator down the gradient; sum ``gaps`` over the processes by the way."""
        self.optimizer.zero_grad(set_to_none=True)
        self._backward_generator(z, x_g, grad_x)
        self._distributed.all_reduce_sum_([*gradients(self._weights), gaps])
        self.optimizer.step()

    def _backward_generator(self, z: Images, x_g: list[Tensor], grad_x: list[Tensor]) -> None:
        """Pass the gradients with respect to ``x_g`` on to the generator's weights."""
        if len(x_g) == 1:
            x_g[0].backward(grad_x[0])
            return
        for rows, gradient in zip(self._parts, grad_x, strict=True):
            self._generate(z[rows]).backward(gradient)
