"""``python -m pipeline plan``: time, memory and disk of each stage, from a few real steps.

The first four stages run on a few images in a temporary folder, the trainings for some steps. Then
samplers and extractors take a batch. The rates are multiplied by the counts in the parameters.
"""

import math
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, final

import torch
from PIL import Image
from rich import print as show
from rich.table import Table

from dsd.features.cache import MAX_BYTES
from dsd.features.extractor import extract
from dsd.model.checkpoint import build_denoiser, load_denoiser, save_model
from dsd.model.generator import OneStepGenerator, make_latents
from dsd.model.samplers import sample_teacher
from dsd.operators.operator import Operator
from dsd.sources.finders.torchvision_sets import TORCHVISION_SETS
from dsd.storage.image_store import ImageStore
from dsd.utils.errors import Interrupted
from dsd.utils.images import to_uint8
from pipeline.checks.check import look
from pipeline.checks.needs import Prepared, require
from pipeline.execution.device import resolve_device
from pipeline.execution.run import run_stage
from pipeline.params.model import Params
from pipeline.planning.times import remember
from pipeline.runtime.launch import NullLog
from pipeline.runtime.limits import available_memory
from pipeline.runtime.progress import doing, readable
from pipeline.runtime.signals import StopSignal
from pipeline.stage_io.paths import Paths
from pipeline.stages.features import open_features

__all__ = ["Rates", "StageCost", "costs", "measure", "show_plan"]

_IMAGES, _FEW, _STEPS, _SECONDS = 1024, 32, 6, 3.0
"""Images of the trial and of a step on a CPU; steps; seconds for a batch of the sampler."""

_CAVEAT = (
    "Estimates, off by a third or more: this machine as busy as it is, one process, from the "
    "beginning, without start-up, pictures, downloads, estimates of noise, distances, DVC, MLflow."
)


class Rates(NamedTuple):
    """What was measured, by name: of an image, step, state or network; peaks of memory so far."""

    images: int
    seconds: dict[str, float]
    bytes: dict[str, float]
    memory: dict[str, float]


class StageCost(NamedTuple):
    """What a stage takes: seconds, and bytes of memory and, at most, on disk."""

    stage: str
    seconds: float
    memory: float
    disk: float


def show_plan(params: Params, paths: Paths) -> None:
    """Measure, and print what each stage takes; raises as :func:`measure`."""
    found = costs(params, measure(params, paths))
    for cost in found:
        remember(cost.stage, params, paths, cost.seconds, ran=False)
    _, times, peaks, sizes = zip(*found, strict=True)
    table = Table("stage", "time", "memory, MB", "disk, MB", caption=_CAVEAT)
    for cost in (*found, StageCost("total", sum(times), max(peaks), sum(sizes))):
        amounts = (cost.memory, cost.disk)
        table.add_row(
            cost.stage, readable(cost.seconds), *(f"{amount / 1e6:,.1f}" for amount in amounts)
        )
    show(table)
    may = available_memory()
    for cost in found:
        # On a GPU the measured memory is that of the GPU.
        if cost.memory > may and resolve_device(params.compute).type == "cpu":
            print(
                f"warning: {cost.stage} needs {cost.memory / 1e6:,.0f} MB, but only "
                f"{may / 1e6:,.0f} MB are free for this job; ask for more (sbatch --mem), end "
                "other programs, or see docs/running.md#memory"
            )


def costs(params: Params, rates: Rates) -> list[StageCost]:
    """What all five stages take, in order."""
    images, seconds, size, memory = rates
    pretrain, distill, evaluate = params.pretrain, params.distill, params.evaluate
    noisy = images - params.corrupt.num_heldout
    references = noisy + images * (params.data.content == "clean")
    features = references * sum(size[space] for space in evaluate.features)
    stages = [
        StageCost(name, images * seconds[name], memory[name], images * size[name])
        for name in ("prepare", "corrupt")
    ]
    teaching = 1000 * pretrain.kimg / pretrain.batch_size * seconds["pretrain"]
    # Of a state there are the last one, the one before it and, for a moment, the next one.
    teacher = size["network"] + 3 * size["state of pretrain"]
    measured = 1 + math.ceil(distill.kimg / distill.selection.every_kimg)
    chosen_from = measured * distill.selection.num_samples
    distilling = 1000 * distill.kimg / distill.batch_size * seconds["distill"]
    distilling += chosen_from * (seconds["generator"] + seconds[distill.selection.features])
    models = 1 + min(measured, distill.selection.save_top_k + 1)
    distilled = models * size["network"] + chosen_from * size["generator"]
    distilled += 3 * size["state of distill"]
    evaluating = evaluate.num_samples * (seconds["generator"] + seconds["teacher"])
    for space in evaluate.features:
        # Of four models there are images with and without noise.
        evaluating += (references + 8 * evaluate.num_samples) * seconds[space]
    data = stages[1].disk  # which trainings and ``evaluate`` hold
    return [
        *stages,
        StageCost("pretrain", teaching, memory["pretrain"] + data, teacher),
        StageCost("distill", distilling, memory["distill"], distilled),
        StageCost("evaluate", evaluating, memory["evaluate"] + data, min(MAX_BYTES, features)),
    ]


def measure(params: Params, paths: Paths) -> Rates:
    """Take all measurements; raises ParamsError and DataError where the stages would."""
    found, device = look(params.data, paths.root), resolve_device(params.compute)
    if found.prepared is not None:
        require(params, Prepared(found.count, found.prepared, is_complex=found.is_complex))
    rates, count = Rates(found.count, {}, {}, {}), min(found.count, _IMAGES)
    with TemporaryDirectory(prefix="dsd-plan-") as folder:
        work = Paths(Path(folder))
        few = _few_images(params, paths, work, count)
        doing("timing prepare and corrupt")
        for name in ("prepare", "corrupt"):
            rates.seconds[name] = _seconds(partial(_run, name, few, work)) / count
            rates.bytes[name] = _size(work.artifact(name)) / count
            rates.memory[name] = _peak(torch.device("cpu"))
        doing("timing pretrain")
        _train("pretrain", few, work, device, rates)
        _save_teacher(few, work)
        rates.bytes["network"] = _size(work.artifact("pretrain"))
        doing("timing distill")
        _train("distill", few, work, device, rates)
        doing("timing evaluate")
        _evaluate(few, work, device, rates)
        rates.memory["evaluate"] = _peak(device)
    return rates


def _few_images(params: Params, paths: Paths, work: Paths, count: int) -> Params:
    """The parameters with few images, and with random ones instead of a download."""
    source: dict[str, Any] = {"path": str(paths.root / params.data.path), "max_images": count}
    if params.data.name is not None:
        channels, height, width = TORCHVISION_SETS[params.data.name].shape
        (target := work.root / "random").mkdir()
        source |= {"source": "folder", "name": None, "path": str(target)}
        picture = Image.effect_noise((width, height), 64).convert("L" if channels == 1 else "RGB")
        for number in range(count):
            picture.save(target / f"{number:04}.png")
    # Too few to estimate their noise, whose level changes no rate.
    level = {key: 0.5 for key in ("sigma", "sigma_hat") if getattr(params.corrupt, key) == "auto"}
    noise = {"num_heldout": count // 4, "trust_sigma": True, "spectrum": "white", **level}
    chosen = {"num_samples": min(params.distill.selection.num_samples, count)}
    selection = params.distill.selection.model_copy(update=chosen)
    changes = {"data": source, "corrupt": noise, "distill": {"selection": selection}}
    changes["run"] = {"checkpoint_minutes": math.inf}
    changed = {key: getattr(params, key).model_copy(update=new) for key, new in changes.items()}
    return params.model_copy(update=changed)


@final
class _Clock(NullLog):
    """The log of a stage on trial, which notes when it makes steps and stops it after some."""

    def __init__(self) -> None:
        super().__init__(StopSignal())
        self.stepped: list[float] = []

    def update(self, images: int, **shown: float) -> None:
        self.stepped.append(_now())

    def stop_signal(self) -> int | None:
        return signal.SIGINT if len(self.stepped) >= _STEPS else None


def _run(name: str, params: Params, work: Paths) -> _Clock:
    with suppress(Interrupted):
        run_stage(import_module(f"pipeline.stages.{name}"), params, work, clock := _Clock())
    return clock


def _train(name: str, params: Params, work: Paths, device: torch.device, rates: Rates) -> None:
    """Make steps with a whole batch or, on a CPU, with a part of it, which stands for all."""
    config, before = getattr(params, name), _peak(device)
    whole: int = config.batch_size
    size = min(whole, _FEW) if device.type == "cpu" else whole
    # As short as makes a stage report each step.
    short: dict[str, Any] = {"batch_size": size, "kimg": size / 20}
    if name == "pretrain":
        part = max(1, config.consistency.batch_size * size // whole)
        short["consistency"] = config.consistency.model_copy(update={"batch_size": part})
    clock = _run(name, params.model_copy(update={name: config.model_copy(update=short)}), work)
    rates.memory[name] = before + (_peak(device) - before) * whole / size
    first, *_, last = clock.stepped
    rates.seconds[name] = (last - first) / (_STEPS - 1) * whole / size
    rates.bytes[f"state of {name}"] = max(_size(run) for run in work.state(name).iterdir())


def _save_teacher(params: Params, work: Paths) -> None:
    """Save a teacher with fresh weights where ``pretrain`` would have written its own."""
    operator = Operator.of_store(ImageStore.open(work.artifact("corrupt") / "train").meta.info)
    net = build_denoiser(params.network, operator.observed_shape, seed=0, views=operator.views)
    save = partial(save_model, network=params.network, operator=operator.choice, sigma_init=None)
    save(work.artifact("pretrain"), net, shape=operator.shape)


def _evaluate(params: Params, work: Paths, device: torch.device, rates: Rates) -> None:
    """Sample from generator and teacher, and extract features."""
    noisy = ImageStore.open(work.artifact("corrupt") / "train")
    shape, sampler = Operator.of_store(noisy.meta.info).shape, params.evaluate.sampler
    teacher = load_denoiser(work.artifact("pretrain"), device)
    generator = OneStepGenerator(teacher, sigma_init=params.distill.sigma_init, shape=shape)
    rates.bytes["generator"] = math.prod(shape)
    z = make_latents(params.run.eval_batch_size, shape, seed=0).to(device)
    with torch.inference_mode():
        rates.seconds["generator"] = each = _seconds(partial(generator, z)) / len(z)
        size = max(1, min(len(z), int(_SECONDS / each / sampler.num_steps / 2)))
        z = make_latents(size, noisy.shape, seed=0).to(device)
        sampling = partial(sample_teacher, teacher, z, config=sampler, sigma_y=0.5, seed=0)
        rates.seconds["teacher"] = _seconds(sampling) / size
    images = to_uint8(noisy.all()[: params.run.eval_batch_size])
    for name in {*params.evaluate.features, params.distill.selection.features}:
        extractor = open_features(name, params, work, noisy.sigma, device)
        extracting = partial(extract, extractor, images, batch_size=len(images))
        rates.bytes[name] = 4 * extracting().shape[1]
        rates.seconds[name] = _seconds(extracting) / len(images)


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(work: Callable[[], object]) -> float:
    started = _now()
    work()
    return _now() - started


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
