"""From measured rates to the time, memory and disk of each stage: arithmetic alone.

How often a stage does what follows the stages' own loops; how long once takes was measured
(``pipeline.planning.probes``).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

from pipeline.params.model import Params

__all__ = ["Images", "Line", "Measured", "Memory", "SpaceRates", "StagePlan", "Steps", "forecast"]

_UNSURE = 0.3
"""Share by which a time may be off where few things were measured, and those once."""

_UNSURE_STEPS = 0.1
"""The same for training, of which many steps were measured, at least."""

_MODELS = 4
"""Sets of images that ``evaluate`` measures: of the generator, and three of the teacher."""

_PAIRED = 4
"""Measures that look at pairs, as against the search for copies; about."""

_PICTURE_IMAGES, _PICTURE_CALLS = 32, 37
"""Images in a picture of the teacher, and evaluations of the network for each."""


class Memory(NamedTuple):
    """Bytes at the peak."""

    host: float
    gpu: float = 0.0


@final
@dataclass(frozen=True)
class Images:
    """What there is to learn from."""

    count: int
    shape: tuple[int, int, int]
    """Channels, height and width of a prepared image."""

    observed_shape: tuple[int, int, int]
    prepared_bytes: int
    """Of one image in ``data/prepare``."""

    @property
    def observed_bytes(self) -> int:
        """Of one observation: float32 numbers."""
        return 4 * math.prod(self.observed_shape)


class Line(NamedTuple):
    """Seconds of work on some images: ``base + each * images``."""

    base: float
    each: float


@final
@dataclass(frozen=True)
class Steps:
    """Steps of a training, at the batch size of the parameters."""

    low: float
    """Mean seconds of the faster half of the steps."""

    high: float
    """Of the slower half."""

    memory: Memory


@final
@dataclass(frozen=True)
class SpaceRates:
    """What a feature space costs, in seconds."""

    dim: int
    extract: float
    """For an image."""

    moments: float
    """For an image, features made."""

    distance: float
    """For a Frechet distance, moments made."""

    pairs: float
    """For a pair of images, in all measures that compare images in pairs."""


@final
@dataclass(frozen=True)
class Measured:
    """All that the probes found out on this machine."""

    start_up: float
    """Seconds until a stage begins to work."""

    images: Images
    prepare: Line
    corrupt: Line
    weights: int
    """Bytes of one model's tensors."""

    trained: int
    """Bytes of those that are trained."""

    pretrain: Steps
    distill: Steps
    forward: float
    """Seconds for an image of the generator, in evaluation."""

    sampler: float
    """Seconds for an image of the teacher."""

    observe: float
    """Seconds for making a generated image as noisy as the data."""

    spaces: Mapping[str, SpaceRates]
    cache_limit: int
    """Bytes of features that are kept on disk at most."""

    memory_data: Memory
    """Of ``prepare`` and ``corrupt``."""

    memory_evaluate: Memory
    """Of ``evaluate`` without the data."""


class StagePlan(NamedTuple):
    """What a stage will take."""

    stage: str
    low: float
    """Seconds at least, about."""

    high: float
    memory: Memory
    kept: float
    """Bytes of its artifact."""

    running: float
    """Bytes on disk besides, until it ends."""


def forecast(params: Params, measured: Measured) -> list[StagePlan]:
    """The plan of all five stages, in order, each in one process and from the beginning."""
    makers = (_prepare, _corrupt, _pretrain, _distill, _evaluate)
    return [make(params, measured) for make in makers]


def _prepare(params: Params, measured: Measured) -> StagePlan:
    images = measured.images
    low, high = _around(measured.start_up + _on(measured.prepare, images.count), _UNSURE)
    kept = images.count * images.prepared_bytes
    return StagePlan("prepare", low, high, measured.memory_data, kept, 0.0)


def _corrupt(params: Params, measured: Measured) -> StagePlan:
    images = measured.images
    low, high = _around(measured.start_up + _on(measured.corrupt, images.count), _UNSURE)
    # Beside each observation its noise level and number.
    kept = images.count * (images.observed_bytes + 4 + 8)
    return StagePlan("corrupt", low, high, measured.memory_data, kept, 0.0)


def _pretrain(params: Params, measured: Measured) -> StagePlan:
    config, images = params.pretrain, measured.images
    steps = _steps(config.kimg, config.batch_size)
    pictures = _occasions(steps, config.sample_every_kimg, config.batch_size)
    other = pictures * _PICTURE_IMAGES * _PICTURE_CALLS * measured.forward
    data = (images.count - params.corrupt.num_heldout) * images.observed_bytes
    state = 2 * measured.weights + 2 * measured.trained
    low, high = _training(steps, measured.pretrain, measured.start_up + other)
    return StagePlan(
        "pretrain", low, high, _with_data(measured.pretrain.memory, data), measured.weights,
        _all_kept(state),
    )  # fmt: skip


def _distill(params: Params, measured: Measured) -> StagePlan:
    config, images = params.distill, measured.images
    selection, steps = config.selection, _steps(config.kimg, config.batch_size)
    heldout = params.corrupt.num_heldout
    moments = 1 + _occasions(steps, selection.every_kimg, config.batch_size)
    other = 0.0
    if selection.features in measured.spaces:
        space = measured.spaces[selection.features]
        each = measured.forward + measured.observe + space.extract + space.moments
        measuring = selection.num_samples * each + space.distance
        other = moments * measuring + heldout * (space.extract + space.moments)
    low, high = _training(steps, measured.distill, measured.start_up + other)
    pixels = math.prod(images.shape)
    # The generator chosen, and the best and the last one.
    models = 1 + min(moments, selection.save_top_k + 1)
    kept = models * measured.weights + moments * selection.num_samples * pixels
    # While it runs they are in the state, from where they are copied.
    state = _all_kept(3 * measured.weights + 4 * measured.trained)
    data = heldout * images.observed_bytes + 4 * selection.num_samples * pixels
    memory = _with_data(measured.distill.memory, data)
    return StagePlan("distill", low, high, memory, kept, state + kept - measured.weights)


def _evaluate(params: Params, measured: Measured) -> StagePlan:
    config, images = params.evaluate, measured.images
    count, clean = config.num_samples, images.count * (params.data.content == "clean")
    noisy = images.count - params.corrupt.num_heldout
    references = noisy + clean
    spaces = [measured.spaces[name] for name in config.features if name in measured.spaces]
    seconds = count * (measured.forward + measured.sampler)
    seconds += sum(_space(space, count, references, measured.observe) for space in spaces)
    if config.features[0] in measured.spaces:
        seconds += _first_space(params, spaces[0], measured, noisy)
    if params.distill.selection.features in measured.spaces:
        seconds += _again(params, measured)
    low, high = _around(measured.start_up + seconds, _UNSURE)
    dims = sum(space.dim for space in spaces)
    cached = 4 * dims * references
    if params.distill.selection.features in measured.spaces:
        ruler = measured.spaces[params.distill.selection.features]
        cached += 4 * ruler.dim * params.corrupt.num_heldout
    pixels = math.prod(images.shape)
    # Clean and generated images of 8 bits, noisy ones as they are read, features of 64 bits.
    data = pixels * (clean + _MODELS * count) + 2 * noisy * images.observed_bytes
    memory = measured.memory_evaluate
    memory = memory._replace(host=memory.host + data + 8 * dims * references)
    return StagePlan("evaluate", low, high, memory, min(cached, measured.cache_limit), 0.0)


def _space(space: SpaceRates, count: int, references: int, observe: float) -> float:
    """All measures of all models and of noisy data, in one feature space."""
    # The noisy data's own features are there already, as a reference.
    extracted = references + 2 * _MODELS * count
    distances = (2 * _MODELS + 1) * _frechet(space, count)
    pairs = (_MODELS + 1) * count**2 * space.pairs
    summed = references * space.moments + _MODELS * count * observe
    return extracted * space.extract + summed + distances + pairs


def _frechet(space: SpaceRates, count: int) -> float:
    """A distance with what is known of its error."""
    # Error and limit take another pass over the features and a few decompositions.
    return 2 * count * space.moments + 4 * space.distance


def _first_space(params: Params, space: SpaceRates, measured: Measured, noisy: int) -> float:
    """Distances of checkpoints to clean images and the search for copies, in one space alone."""
    config = params.distill
    steps = _steps(config.kimg, config.batch_size)
    moments = 1 + _occasions(steps, config.selection.every_kimg, config.batch_size)
    sets = moments * (params.data.content == "clean")
    each = space.extract + space.moments
    images = sets * config.selection.num_samples * each
    heldout, count = params.corrupt.num_heldout, params.evaluate.num_samples
    copies = count * measured.observe + count * (noisy + heldout) * space.pairs / _PAIRED
    return images + sets * space.distance + copies


def _again(params: Params, measured: Measured) -> float:
    """The chosen generator measured once more, in the space in which it was chosen."""
    selection, space = params.distill.selection, measured.spaces[params.distill.selection.features]
    count = min(selection.num_samples, params.evaluate.num_samples)
    heldout = params.corrupt.num_heldout * (space.extract + space.moments)
    return heldout + count * (measured.observe + space.extract) + _frechet(space, count)


def _on(line: Line, images: int) -> float:
    return line.base + line.each * images


def _around(seconds: float, unsure: float) -> tuple[float, float]:
    return seconds * (1 - unsure), seconds * (1 + unsure)


def _training(steps: int, measured: Steps, other: float) -> tuple[float, float]:
    middle = steps * (measured.low + measured.high) / 2
    low, high = _around(middle, _UNSURE_STEPS)
    before, after = _around(other, _UNSURE)
    return min(low, steps * measured.low) + before, max(high, steps * measured.high) + after


def _steps(kimg: float, batch_size: int) -> int:
    return math.ceil(kimg * 1000 / batch_size)


def _occasions(steps: int, every_kimg: float, batch_size: int) -> int:
    """How often something is done at an interval, and at the end."""
    return math.ceil(steps / max(1, round(every_kimg * 1000 / batch_size)))


def _all_kept(state: float) -> float:
    """The last state, the one before it and, for a moment, the next one."""
    return 3 * state


def _with_data(memory: Memory, data: float) -> Memory:
    """With images that are in memory, on the GPU too if there is one."""
    return Memory(memory.host + data, memory.gpu + data if memory.gpu else 0.0)
