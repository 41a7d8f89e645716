"""Fitting the teacher denoiser to noisy images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, optim

from dsd.model.config import TeacherNoise
from dsd.model.denoiser import AnyDenoiser, MaskedDenoiser, append_dims, with_view
from dsd.model.noise_levels import level_to_add, sample_teacher_levels
from dsd.operators.gaussian_noise import WHITE, GaussianNoise, noise_under
from dsd.operators.operator import View, Views
from dsd.pretraining.config import Objective, Pretrain, Weighting
from dsd.pretraining.consistency_loss import (
    PAIR_RATIO,
    consistency_loss,
    posterior_draw,
    reverse_steps,
)
from dsd.pretraining.denoising_loss import (
    ambient_denoising_loss,
    mapped_denoising_loss,
    projected_denoising_loss,
)
from dsd.training.compiled import Compilation, CompiledStep, capture_obstacle
from dsd.training.distributed import DistributedContext, TensorBatch, gradients
from dsd.training.loss_meter import step_line
from dsd.training.memory import enable_activation_checkpointing
from dsd.training.nonfinite import FiniteCheck, Norms, norm_checks, norms
from dsd.training.optim import adam, frozen_copy
from dsd.training.schedule import Schedule
from dsd.utils.config import Precision
from dsd.utils.images import require_data_units
from dsd.utils.precision import weight_layout
from dsd.utils.random import EpochSampler
from dsd.utils.shapes import (
    AnyLevel,
    Level,
    NoiseLevels,
    PerSample,
    State,
    as_levels,
    highest,
)

__all__ = [
    "ConsistencyNoise",
    "DenoisingNoise",
    "TeacherStep",
    "TeacherTraining",
    "consistency_step_loss",
    "denoising_step_loss",
    "sample_consistency_noise",
    "sample_denoising_noise",
]


@dataclass(frozen=True)
class TeacherStep:
    """One step's record; its tensors stay on the device until they are read."""

    images_seen: int
    loss: PerSample
    sigma: Level
    checks: tuple[FiniteCheck, ...]

    def __repr__(self) -> str:
        return step_line("TeacherStep", self.images_seen, self.sigma, loss=self.loss)


@final
@dataclass(frozen=True)
class DenoisingNoise(TensorBatch):
    """Random inputs of a denoiser's loss on observations."""

    sigma_y: NoiseLevels
    """Noise level that the objective takes the observations, or their pixels, to have."""

    sigma: Level
    """Total level of each diffused state."""

    sigma_add: NoiseLevels
    """Level of the noise to add."""

    n: State
    """Noise of variance 1, white or with the covariance of the data's."""

    view: View | None
    """What was observed; None where the denoiser has no views."""

    given: View | None
    """The part of it that the denoiser is given."""


def sample_denoising_noise(
    sigma_y: NoiseLevels,
    shape: tuple[int, ...],
    *,
    objective: Objective,
    noise: TeacherNoise,
    views: Views | None,
    view: View | None,
    generator: torch.Generator,
    added: GaussianNoise = WHITE,
) -> DenoisingNoise:
    """Draw the random inputs of :func:`denoising_step_loss` for a batch of observations.

    Args:
        sigma_y: Noise level of each observation, or of its pixels.
        shape: Of one observation.
        objective: ``standard`` takes observations to have no noise.
        noise: Distribution of the levels.
        views: Distribution of the denoiser's views, if it has them.
        view: What was observed, where the denoiser has views.
        generator: Source of randomness, on the device of ``sigma_y``.
        added: Distribution of the noise to add: that of the noise in the observations.
    """
    if objective == "standard":
        sigma_y = torch.zeros_like(sigma_y)
    sigma, sigma_add = _levels(noise, sigma_y, generator)
    n = added.draw((len(sigma_y), *shape), generator)
    if views is None:
        return DenoisingNoise(sigma_y, sigma, sigma_add, n, None, None)
    assert view is not None, "what was observed of each image?"
    return DenoisingNoise(sigma_y, sigma, sigma_add, n, view, views.further(view, generator))


def _levels(
    noise: TeacherNoise, sigma_y: NoiseLevels, generator: torch.Generator
) -> tuple[Level, NoiseLevels]:
    """Total levels, and those of the noise to add to each observation or pixel."""
    sigma, add = sample_teacher_levels(noise, highest(sigma_y), generator)
    return sigma, add if sigma_y.ndim == 1 else level_to_add(sigma, sigma_y)


def denoising_step_loss(
    denoiser: AnyDenoiser, y: State, noise: DenoisingNoise, weighting: Weighting
) -> PerSample:
    """Loss of a denoiser on observations: the objective of teacher and fake denoiser alike.

    Args:
        denoiser: The denoiser.
        y: Observations.
        noise: Noise and levels for these observations.
        weighting: Weight of each level.
    """
    loss_of: Callable[..., PerSample] = ambient_denoising_loss
    if isinstance(denoiser, MaskedDenoiser):
        assert noise.view is not None, "what was observed of each image?"
        assert noise.given is not None, "and what of it is given?"
        loss_of = partial(
            projected_denoising_loss,
            views=denoiser.views,
            observed=noise.view,
            given=noise.given,
        )
    elif noise.sigma_y.ndim > 1:
        loss_of = mapped_denoising_loss
    return loss_of(
        denoiser,
        y,
        sigma_y=noise.sigma_y,
        sigma=noise.sigma,
        sigma_add=noise.sigma_add,
        n=noise.n,
        weighting=weighting,
        sigma_data=denoiser.sigma_data,
    )


@final
@dataclass(frozen=True)
class ConsistencyNoise(TensorBatch):
    """Random inputs of the consistency loss."""

    sigma: Level
    """Level from which the walk starts: the upper one of the pair, or the observation's own if
    that is higher."""

    sigma_add: NoiseLevels
    """Level of the noise that brings the observation there."""

    sigma_high: Level
    """Upper level of the pair, at most ``sigma``."""

    sigma_low: Level
    """Lower level of the pair."""

    n: State
    """Noise of variance 1 that is added."""

    walk: Float[Tensor, " b steps *d"]
    """The same for the steps from ``sigma`` to ``sigma_high``."""

    ends: Float[Tensor, " b two *d"]
    """The same for two independent steps to ``sigma_low``."""

    given: View | None
    """What the denoiser is given; None where it has no views."""


def sample_consistency_noise(
    sigma_y: NoiseLevels,
    shape: tuple[int, ...],
    *,
    noise: TeacherNoise,
    num_steps: int,
    views: Views | None,
    view: View | None,
    generator: torch.Generator,
    added: GaussianNoise = WHITE,
) -> ConsistencyNoise:
    """Draw the random inputs of :func:`consistency_step_loss` for a batch of observations.

    The lower level of the pair is log-normal with the mean and deviation of ``noise``, whatever
    its ``distribution``, so it may be below ``sigma_y``, where no observation leads. The upper one
    is ``PAIR_RATIO`` times it. ``num_steps`` are those of the walk. The other arguments are those
    of :func:`sample_denoising_noise`.
    """
    given = None
    if views is not None:
        assert view is not None, "what was observed of each image?"
        given = views.further(view, generator)
    top = highest(sigma_y)
    normal = torch.randn(top.shape, generator=generator, device=top.device)
    low = (noise.P_mean + noise.P_std * normal).exp()
    high = PAIR_RATIO * low
    sigma = torch.maximum(high, top)
    noises = [added.draw((len(sigma_y), *shape), generator) for _ in range(1 + num_steps + 2)]
    n, walk, ends = torch.stack(noises, 1).split([1, num_steps, 2], 1)
    add = level_to_add(sigma, sigma_y)
    return ConsistencyNoise(sigma, add, high, low, n.squeeze(1), walk, ends, given)


def consistency_step_loss(
    denoiser: Callable[..., State], y: State, noise: ConsistencyNoise
) -> PerSample:
    """Distance of a denoiser from its own mean a little further down its reverse process.

    Each step of the walk and each end calls the denoiser once, the upper level of the pair once.

    Args:
        denoiser: The denoiser.
        y: Observations.
        noise: Noise and levels for these observations.

    Returns:
        The loss of each sample. Its mean is below 1e-3 at the exact denoiser
        (see ``PAIR_RATIO``). Dropout adds its variance at the upper level, whose one value is in
        both factors.
    """
    denoise = with_view(denoiser, noise.given)
    high, low = noise.sigma_high, noise.sigma_low
    x = y + append_dims(noise.sigma_add, y) * noise.n
    x = reverse_steps(denoise, x, sigma=noise.sigma, sigma_low=high, noise=noise.walk)
    denoised = denoise(x, high)
    first, second = (
        denoise(posterior_draw(x, denoised.detach(), n, current=high, following=low), low)
        for n in noise.ends.unbind(1)
    )
    return consistency_loss(denoised, first, second)


def _for_each(sigma_y: AnyLevel | NoiseLevels, images: Tensor) -> NoiseLevels:
    """A level for each image, or the map of each."""
    if isinstance(sigma_y, Tensor) and sigma_y.shape == images.shape:
        return sigma_y
    return as_levels(sigma_y, images)


@final
class TeacherTraining:
    """State and steps of the teacher's training; a step is a function of its number and the seed.

    Args:
        denoiser: The denoiser to train, in place, on the device of ``images``; it names the
            distribution of their noise.
        images: Noisy observations, float32 [n, C, H, W] in data units.
        sigma_y: Noise level of each image or of each of its pixels, or one for all.
        config: The ``pretrain`` section.
        seed: Root of all randomness.
        precision: Arithmetic inside the network.
        view: What was observed of each image, on their device; None where all was.
        distributed: The processes that share the work; None for this one alone.
        activation_checkpointing: Whether to compute blocks of the network twice, for less memory.
        compilation: Compiles the step, and reports on it; None runs it as plain PyTorch.

    Raises:
        DataError: The images are no floating-point numbers.
    """

    def __init__(
        self,
        denoiser: AnyDenoiser,
        images: Tensor,
        sigma_y: AnyLevel | NoiseLevels,
        config: Pretrain,
        *,
        seed: int,
        precision: Precision,
        view: View | None = None,
        distributed: DistributedContext | None = None,
        activation_checkpointing: bool = False,
        compilation: Compilation | None = None,
    ) -> None:
        require_data_units(images)
        layout = weight_layout(images.device, precision)
        self.denoiser = denoiser.train().to(memory_format=layout)
        self.average = frozen_copy(denoiser)
        enable_activation_checkpointing(denoiser, activation_checkpointing)
        self.optimizer: optim.Optimizer = adam(denoiser, config.learning_rate, (0.9, 0.999))
        self.optimizers = [self.optimizer]
        self.batch_size = config.batch_size
        self.step = 0
        self._weights: list[Tensor] = [*denoiser.parameters()]
        self._averages: list[Tensor] = [*self.average.parameters()]
        self._images = images
        self._order = EpochSampler(seed, len(images), images.device)
        self._sigma_y = _for_each(sigma_y, images)
        self._noise = noise_under(denoiser)
        self._views = denoiser.views if isinstance(denoiser, MaskedDenoiser) else None
        self._view = view
        self._distributed = distributed or DistributedContext()
        self._config = config
        self._schedule = Schedule(
            config,
            "pretrain",
            seed=seed,
            precision=precision,
            device=images.device,
            distributed=self._distributed,
        )
        self._update = CompiledStep(
            self._descend,
            networks=[denoiser],
            optimizers=self.optimizers,
            compilation=compilation,
            obstacle=capture_obstacle(self._distributed, recomputes=activation_checkpointing),
            device=images.device,
        )

    @property
    def num_steps(self) -> int:
        """Steps in the whole training."""
        return self._schedule.num_steps

    def steps(self) -> Iterator[TeacherStep]:
        """Train from the current step to the last; between records the state is consistent."""
        self._update.compile(self._dry_run)
        while self.step < self.num_steps:
            yield self._schedule.computed(self._step)

    def dry_run(self) -> None:
        """Add this process' share of the next step to the gradients; change nothing else."""
        self._update.compile(self._dry_run)
        self._dry_run()

    def _dry_run(self) -> None:
        batch = self._sample_batch(self._schedule.generator(self.step))
        with self._schedule.dropout(self.step):
            self._schedule.computed(lambda: self._backward(*batch))

    def _step(self) -> TeacherStep:
        """Take one step: ambient Tweedie's loss, its gradient, Adam, the average."""
        schedule = self._schedule
        schedule.set_learning_rate(self.step, self.optimizer, self._config.learning_rate)
        y, noise, consistency_noise = self._sample_batch(schedule.generator(self.step))
        with schedule.dropout(self.step):
            loss, found = self._update((y, noise, consistency_noise))
        self.step += 1
        schedule.update_average(self.step, self._averages, self._weights)
        checked = (
            FiniteCheck("the teacher's loss", loss, sigma=noise.sigma),
            *norm_checks("the teacher", self.denoiser, found),
        )
        return TeacherStep(schedule.images_seen(self.step), loss, noise.sigma, checked)

    def _descend(
        self, batch: tuple[State, DenoisingNoise, ConsistencyNoise | None]
    ) -> tuple[PerSample, Norms]:
        """Move the weights down the gradient of the loss of ``batch``; that loss, and norms."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(*batch)
        self._distributed.all_reduce_sum_([*gradients(self._weights), loss])
        self.optimizer.step()
        return loss, norms(self._weights)

    def _sample_batch(
        self, generator: torch.Generator
    ) -> tuple[State, DenoisingNoise, ConsistencyNoise | None]:
        """Observations of this step and their noise, the same in every process."""
        config = self._config
        chosen = self._order.batch(self.step, config.batch_size)
        y, sigma_y = self._images[chosen], self._sigma_y[chosen]
        view = None if self._view is None else self._view[chosen]
        denoising = sample_denoising_noise(
            sigma_y,
            y.shape[1:],
            objective=config.objective,
            noise=config.noise,
            views=self._views,
            view=view,
            generator=generator,
            added=self._noise,
        )
        if config.consistency.weight == 0:
            return y, denoising, None
        few = slice(config.consistency.batch_size)
        consistency = sample_consistency_noise(
            sigma_y[few],
            y.shape[1:],
            noise=config.noise,
            num_steps=config.consistency.num_steps,
            views=self._views,
            view=None if view is None else view[few],
            generator=generator,
            added=self._noise,
        )
        return y, denoising, consistency

    def _backward(
        self, y: State, noise: DenoisingNoise, consistency_noise: ConsistencyNoise | None
    ) -> PerSample:
        """Add this process' share to the gradients, in micro-batches.

        Returns:
            The loss of each sample of the batch, zero for those of other processes.
        """
        config = self._config
        losses = torch.zeros_like(noise.sigma)
        parts = self._distributed.micro_batches(config.batch_size)
        few = self._distributed.micro_batches(config.consistency.batch_size, len(parts))
        for rows, some in zip(parts, few, strict=True):
            with self._schedule.autocast():
                loss = denoising_step_loss(self.denoiser, y[rows], noise[rows], config.weighting)
                total = loss.sum() / config.batch_size
                if consistency_noise is not None and some.stop > some.start:
                    total = total + self._consistency_term(y[some], consistency_noise[some])
            total.backward()
            losses[rows] = loss.detach()
        return losses

    def _consistency_term(self, y: State, noise: ConsistencyNoise) -> Tensor:
        """The weighted consistency loss, as far as these observations contribute to its mean."""
        config = self._config.consistency
        loss = consistency_step_loss(self.denoiser, y, noise)
        return config.weight * (loss.sum() / config.batch_size)
