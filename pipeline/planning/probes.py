"""Short measurements of what the stages do, with params.yaml's networks, batches and precision.

Each function is for a process of its own, so that the peak of its memory is that of one stage; it
may be forked from one that has imported this module. The first writes a few images as the stages
``prepare`` and ``corrupt`` do, with which the others work.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar, final

import numpy as np
import psutil
import torch
from PIL import Image

from dsd.distillation.trainer import Distillation
from dsd.evaluation.kid import kernel_distance
from dsd.evaluation.precision_recall import Manifold, density_coverage, precision_recall
from dsd.features.cache import MAX_BYTES
from dsd.features.extractor import Extractor, extract, load_extractor
from dsd.features.teacher import TeacherFeatures
from dsd.metrics.frechet import frechet_distance, moments
from dsd.model.checkpoint import build_denoiser
from dsd.model.denoiser import AnyDenoiser
from dsd.model.generator import OneStepGenerator, make_latents
from dsd.model.samplers import sample_teacher
from dsd.operators.operator import Operator
from dsd.pretraining.config import Pretrain
from dsd.pretraining.trainer import TeacherTraining
from dsd.selection.proximal import observe_like
from dsd.sources.config import Data
from dsd.storage.image_store import ImageStore
from dsd.training.distributed import Team
from dsd.training.memory import largest_part
from dsd.utils.errors import DataError, ParamsError
from dsd.utils.images import to_uint8
from dsd.utils.shapes import Pixels
from pipeline.checks.check import TORCHVISION_SETS, look
from pipeline.checks.needs import Prepared, require
from pipeline.execution.device import free_memory, resolve_device, resolve_precision
from pipeline.execution.run import run_stage
from pipeline.params.model import Params
from pipeline.planning.forecast import Images, Line, Memory, SpaceRates, Steps
from pipeline.planning.gauge import (
    Climb,
    climb,
    library_memory,
    peak_memory,
    seconds_of,
    typical_seconds,
)
from pipeline.runtime.launch import FollowerLog
from pipeline.runtime.signals import StopSignal
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, prepare
from pipeline.tracking import tracker as tracking  # noqa: F401 - stages import tracking too

__all__ = ["DataRates", "EvaluationRates", "Training", "data", "distill", "evaluate", "pretrain"]

_START_UP = time.time() - psutil.Process().create_time()
"""Seconds that a stage needs to begin, too: until all is imported that stages import."""

_LIBRARIES = library_memory()
"""Bytes of libraries in the memory of a process that has imported all itself."""

_FEW, _MANY = 64, 4096
"""Images of the first and, at most, the second measurement of ``prepare`` and ``corrupt``."""

_STAND_INS = 512
"""Random images in the place of those that a plan does not download."""

_DATA_SECONDS = 1.5
"""For the second measurement of ``prepare`` and ``corrupt``, about."""

_COMPARED = 1000
"""Vectors that are compared in pairs, at most."""

_STAND_IN_SIGMA = 0.5

Build: TypeAlias = Callable[[int], TeacherTraining | Distillation]
_Config = TypeVar("_Config")


@final
@dataclass(frozen=True)
class DataRates:
    """What the first two stages take."""

    start_up: float
    images: Images
    prepare: Line
    corrupt: Line
    memory: Memory


@final
@dataclass(frozen=True)
class Training:
    """What a training takes."""

    steps: Steps
    weights: int
    """Bytes of one model, and of what of it is trained."""

    trained: int
    timed: str
    """What was measured, for people."""


@final
@dataclass(frozen=True)
class EvaluationRates:
    """What evaluation takes; seconds for an image."""

    forward: float
    sampler: float
    observe: float
    spaces: dict[str, SpaceRates]
    missing: dict[str, str]
    """Feature spaces that cannot be had, and why."""

    cache_limit: int
    memory: Memory


def data(params: Params, paths: Paths, folder: Path) -> DataRates:
    """Write some images below ``folder`` as ``data/prepare`` and ``data/corrupt``.

    Raises:
        DataError: There are no images, or the first of them are not usable.
        ParamsError: A parameter does not go with the images.
    """
    found = look(params.data, paths.root)
    count = found.count
    if found.prepared is not None:
        require(params, Prepared(count, found.prepared))
    sampled = _source(params.data, paths, folder)
    work = Paths(folder)
    few = min(_FEW, count)
    first = _write(params, sampled, work, few)
    most = _MANY if params.data.name is None else _STAND_INS
    many = min(count, most, max(few, int(few * _DATA_SECONDS / max(first))))
    second = _write(params, sampled, work, many) if many > few else first
    prepared, corrupted = (_line(few, a, many, b) for a, b in zip(first, second, strict=True))
    clean = ImageStore.open(work.artifact("prepare"))
    noisy = ImageStore.open(work.artifact("corrupt") / "train")
    images = Images(count, clean.shape, noisy.shape, clean.meta.layout.itemsize)
    memory = _with_libraries(peak_memory(torch.device("cpu")))
    return DataRates(_START_UP, images, prepared, corrupted, memory)


def _source(data: Data, paths: Paths, folder: Path) -> Data:
    """Where to take some images from; nothing is downloaded."""
    if data.name is None:
        return data.model_copy(update={"path": str(paths.root / data.path)})
    _, (channels, height, width) = TORCHVISION_SETS[data.name]
    path = folder / "stand-in"
    path.mkdir()
    for number, pixels in enumerate(_random_pixels((_STAND_INS, height, width, channels))):
        Image.fromarray(pixels.squeeze()).save(path / f"{number:05d}.png")
    return data.model_copy(update={"source": "folder", "name": None, "path": str(path)})


def _random_pixels(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _write(params: Params, sampled: Data, work: Paths, count: int) -> tuple[float, float]:
    """Run both stages on some images; the seconds that they take."""
    # The sample may be too small for an estimate of the noise, and its level changes no rate.
    given: dict[str, float | None] = {"num_heldout": count // 4, "trust_sigma": True}
    if params.corrupt.sigma == "auto":
        given["sigma"] = _STAND_IN_SIGMA
    if params.corrupt.sigma_hat == "auto":
        given["sigma_hat"] = None
    small = params.model_copy(
        update={
            "data": sampled.model_copy(update={"max_images": count}),
            "corrupt": params.corrupt.model_copy(update=given),
        }
    )
    log, device = FollowerLog(StopSignal()), torch.device("cpu")
    prepared = seconds_of(partial(run_stage, prepare, small, work, log), device)
    return prepared, seconds_of(partial(run_stage, corrupt, small, work, log), device)


def _with_libraries(memory: Memory) -> Memory:
    """The peak of a process that has all libraries in memory, as stages have.

    A forked process has them only as far as it has used them.
    """
    return memory._replace(host=memory.host + max(0.0, _LIBRARIES - library_memory()))


def _line(few: int, first: float, many: int, second: float) -> Line:
    """The line through two measurements, which does not fall; through 0 if there is one."""
    if many == few:
        return Line(0.0, first / few)
    each = max(0.0, second - first) / (many - few)
    return Line(max(0.0, second - each * many), each)


def pretrain(params: Params, folder: Path, seconds: float) -> Training:
    """Train teachers with fresh weights for a few steps, within so many seconds if possible.

    Raises:
        ParamsError: The images do not fit the network, or there is no such device.
    """
    noisy, operator, device = _observations(params, folder)
    view = operator.stored_view(noisy.meta.info, noisy.index.numpy())
    denoiser = _denoiser(params, operator).to(device)
    images, sigma = noisy.all().to(device), noisy.sigma.to(device)

    def build(size: int) -> TeacherTraining:
        return TeacherTraining(
            denoiser,
            images,
            sigma,
            _pretrain_of(params.pretrain, size),
            seed=params.seed,
            precision=resolve_precision(params.compute, device),
            view=None if view is None else view.to(device),
            team=Team(at_once=_at_once(params)),
            activation_checkpointing=params.compute.activation_checkpointing,
        )

    return _training(params, build, params.pretrain.batch_size, denoiser, device, seconds)


def distill(params: Params, folder: Path, seconds: float) -> Training:
    """Distil a teacher with fresh weights for a few steps, within so many seconds if possible.

    Raises:
        ParamsError: As for :func:`pretrain`.
    """
    noisy, operator, device = _observations(params, folder)
    teacher = _denoiser(params, operator).to(device).eval()
    sigma = noisy.sigma.to(device)

    def build(size: int) -> Distillation:
        return Distillation(
            teacher,
            sigma,
            operator.shape,
            params.distill.model_copy(update={"batch_size": size, "kimg": 1e9}),
            params.pretrain,
            seed=params.seed,
            precision=resolve_precision(params.compute, device),
            operator=operator,
            team=Team(at_once=_at_once(params)),
            activation_checkpointing=params.compute.activation_checkpointing,
        )

    return _training(params, build, params.distill.batch_size, teacher, device, seconds)


def _observations(params: Params, folder: Path) -> tuple[ImageStore, Operator, torch.device]:
    noisy = ImageStore.open(Paths(folder).artifact("corrupt") / "train")
    return noisy, Operator.of_store(noisy.meta.info), resolve_device(params.compute)


def _denoiser(params: Params, operator: Operator) -> AnyDenoiser:
    try:
        return build_denoiser(
            params.network, operator.observed_shape, seed=0, views=operator.views
        )
    except ValueError as error:
        raise ParamsError(str(error)) from error


def _at_once(params: Params) -> int | None:
    most = params.compute.micro_batch_size
    return None if most == "auto" else most


def _pretrain_of(config: Pretrain, size: int) -> Pretrain:
    """The same training with batches of another size, and without an end."""
    few = max(1, config.consistency.batch_size * size // config.batch_size)
    consistency = config.consistency.model_copy(update={"batch_size": few})
    changes = {"batch_size": size, "kimg": 1e9, "consistency": consistency}
    return config.model_copy(update=changes)


def _training(
    params: Params,
    build: Build,
    batch: int,
    denoiser: AnyDenoiser,
    device: torch.device,
    seconds: float,
) -> Training:
    def make(size: int) -> Callable[[], object]:
        return partial(next, build(size).steps())

    found = climb(make, batch, share=seconds, device=device, at_once=_at_once(params))
    ordered = sorted(found.seconds)
    half = max(1, len(ordered) // 2)
    low, high = (sum(part) / len(part) for part in (ordered[:half], ordered[-half:]))
    weights = sum(tensor.nbytes for tensor in denoiser.state_dict().values())
    trained = sum(tensor.nbytes for tensor in denoiser.parameters())
    timed = f"{len(ordered)} steps of {found.size} images"
    whole = _with_libraries(found.memory)
    memory = _memory(params, whole, partial(build, batch), device)
    return Training(Steps(low, high, memory), weights, trained, timed)


def _memory(
    params: Params,
    whole: Memory,
    build: Callable[[], TeacherTraining | Distillation],
    device: torch.device,
) -> Memory:
    """The peak of whole batches or, where they do not fit, of the parts that the stage takes."""
    free, on_gpu = free_memory(device), device.type == "cuda"
    if params.compute.micro_batch_size != "auto" or (whole.gpu if on_gpu else whole.host) <= free:
        return whole
    needed = largest_part(build(), Team(), free=free, device=device).needed
    if on_gpu:
        return whole._replace(gpu=torch.cuda.memory_allocated(device) + needed)
    now = _with_libraries(Memory(psutil.Process().memory_info().rss))
    return whole._replace(host=now.host + needed)


def evaluate(params: Params, folder: Path, seconds: float) -> EvaluationRates:
    """Sample, make features and compare them, with fresh weights and random features.

    That takes so many seconds, if they are enough to do everything once.
    """
    noisy, operator, device = _observations(params, folder)
    clean = ImageStore.open(Paths(folder).artifact("prepare"))
    denoiser = _denoiser(params, operator).to(device).eval()
    most = params.run.eval_batch_size
    names = {*params.evaluate.features, params.distill.selection.features}
    # The network, the sampler, the observation, and four things in each space.
    share = seconds / (3 + 4 * len(names))
    timed = partial(climb, most=most, share=share, device=device)
    with torch.inference_mode():
        forward = timed(partial(_generate, params, denoiser, operator))
        sampler = _sampler(params, denoiser, operator, forward, share)
    pixels = to_uint8(clean.take(torch.arange(min(len(clean), most))))
    observing = partial(observe_like, pixels, noisy.sigma, seed=0, operator=operator)
    observe = typical_seconds(observing, torch.device("cpu"), share) / len(pixels)
    seen = observing()
    spaces: dict[str, SpaceRates] = {}
    missing: dict[str, str] = {}
    peaks = [forward.memory]
    for name in names:
        try:
            extractor = _extractor(name, params, denoiser, device)
            extracting = timed(partial(_extract, extractor, seen))
        except DataError as error:
            missing[name] = str(error)
            continue
        features = extract(extractor, seen[:1], batch_size=1)
        spaces[name] = _compare(features.shape[1], extracting.each, params, share)
        peaks.append(extracting.memory)
    highest = Memory(*map(max, zip(*peaks, peak_memory(device), strict=True)))
    highest = _with_libraries(highest)
    return EvaluationRates(forward.each, sampler, observe, spaces, missing, MAX_BYTES, highest)


def _generate(
    params: Params, denoiser: AnyDenoiser, operator: Operator, size: int
) -> Callable[[], object]:
    generator = OneStepGenerator(
        denoiser, sigma_init=params.distill.sigma_init, shape=operator.shape
    )
    device = next(denoiser.parameters()).device
    return partial(generator, make_latents(size, operator.shape, seed=0).to(device))


def _sampler(
    params: Params, denoiser: AnyDenoiser, operator: Operator, forward: Climb, share: float
) -> float:
    """Seconds for an image of the teacher: a batch through the sampler, or what its calls take."""
    config = params.evaluate.sampler
    calls = config.num_steps * (2 if config.method == "heun" else 1) + 2
    size = min(forward.size, int(share / (calls * forward.each)))
    if size == 0:
        return calls * forward.each
    device = next(denoiser.parameters()).device
    latents = make_latents(size, operator.observed_shape, seed=0).to(device)
    sampling = partial(
        sample_teacher, denoiser, latents, config=config, sigma_y=_STAND_IN_SIGMA, seed=0
    )
    return seconds_of(sampling, device) / size


def _extractor(
    name: str, params: Params, denoiser: AnyDenoiser, device: torch.device
) -> Extractor:
    if name == "teacher":
        return TeacherFeatures(denoiser, _STAND_IN_SIGMA, weights="fresh")
    return load_extractor(
        name, device=device, inception_weights=params.evaluate.inception_weights_path
    )


def _extract(extractor: Extractor, pixels: Pixels, size: int) -> Callable[[], object]:
    images = pixels[torch.arange(size) % len(pixels)]
    return partial(extract, extractor, images, batch_size=size)


def _compare(dim: int, extracting: float, params: Params, share: float) -> SpaceRates:
    """Rates of the measures, on random features of which there are more than one for each number.

    With fewer a distance is cheaper, because covariances have a lower rank.
    """
    count = max(_COMPARED, 2 * dim)
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(count, dim, generator=random, dtype=torch.float64) for _ in range(2))
    timed = partial(typical_seconds, device=torch.device("cpu"), share=share)
    summing = timed(partial(moments, a)) / count
    distance = timed(partial(frechet_distance, moments(a), moments(b)))
    few = min(_COMPARED, params.evaluate.num_samples)
    reference = Manifold(b[:few])  # found once for all models, so not timed but at first

    def in_pairs() -> None:
        generated = Manifold(a[:few])
        kernel_distance(generated.features, reference.features, seed=0)
        precision_recall(generated, reference)
        density_coverage(generated, reference)

    pairs = timed(in_pairs)
    return SpaceRates(dim, extracting, summing, distance, pairs / few**2)
