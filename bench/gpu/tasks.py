"""All rows of ``python -m bench.gpu``, the most important ones of each part first."""

from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from bench.gpu import correctness, measures, real_run
from bench.gpu.measures import Kind, Timing
from bench.gpu.worker import Figures
from bench.speed import trainings
from bench.speed.trainings import Setting
from dsd.model.config import UNetConfig
from dsd.training.distributed import DistributedContext
from pipeline.params.presets import load_preset
from pipeline.stages import STAGES
from sandbox.tiny_params import TINY

__all__ = ["PARTS", "Setup", "Task", "of_part"]

_KINDS: tuple[Kind, ...] = ("teacher", "distillation")

_TINY: dict[str, Any] = {
    key: value for key, value in TINY.items() if key != "evaluate.features"
} | {
    "data.max_images": 80,
    "data.resolution": 16,
    "corrupt.num_heldout": 20,
    "pretrain.batch_size": 8,
    "pretrain.kimg": 0.016,
    "pretrain.lr_warmup_kimg": 0.008,
    "pretrain.sample_every_kimg": 0.016,
    "distill.batch_size": 8,
    "distill.kimg": 0.016,
    "distill.selection.features": "teacher",
    "distill.selection.every_kimg": 0.016,
    "distill.selection.num_samples": 20,
    "evaluate.num_samples": 20,
    "run.checkpoint_minutes": 1.0,
}
"""Values of the dry run; its images have colours, so that the preset's features stay."""

_LEAST_SHARE = 0.02
"""Of the preset's images: fewer show nothing."""

_OVERHEAD = 120.0
"""Seconds of a run aside from its trainings' steps: data, start, pictures, evaluation."""


class Task(NamedTuple):
    """One row."""

    name: str
    work: Callable[[], Figures]

    fresh: bool = False
    """Whether it needs a process in which nothing was done before."""

    limit: float = 150.0
    """Most seconds for it."""


class Setup(NamedTuple):
    """What was asked for."""

    device: torch.device
    edm: Path | None
    sid: Path | None
    data: Path | None
    files: Path
    """Folder of what is no row: profiles, pictures."""

    scratch: Path
    left: Callable[[], float]
    """Seconds that are left for the part."""

    @property
    def dry(self) -> bool:
        """Whether sizes are tiny, to see all parts work on a CPU."""
        return self.device.type == "cpu"

    @property
    def timing(self) -> Timing:
        """How long to measure."""
        return Timing(self.device, 0.0 if self.dry else 3.0)


_Rows: TypeAlias = Generator[Task, Figures, None]


def of_part(part: str, setup: Setup) -> _Rows:
    """The rows of a part, in order; each is answered by its figures."""
    return PARTS[part](setup)


def _correctness(setup: Setup) -> _Rows:
    setting = _default(setup)
    for kind in _KINDS:
        given = kind, setting, setup.device
        compare = partial(correctness.compare, *given)
        for short in ("float32", "bfloat16"):
            work = partial(compare, (short, True), (short, False), short)
            yield Task(f"{kind}, {short}: compiled against plain", work)
        work = partial(compare, ("bfloat16", False), ("float32", False), "bfloat16")
        yield Task(f"{kind}, plain: bfloat16 against float32", work)
        work = partial(compare, ("bfloat16", True), ("bfloat16", True), "bfloat16")
        yield Task(f"{kind}, bfloat16, compiled: one run against another", work)
        yield Task(f"{kind}: resumed against straight", partial(correctness.resume, *given))
        yield Task(f"{kind}: NaN in a compiled step", partial(correctness.find_nan, *given))


def _speed(setup: Setup) -> _Rows:
    paper, default, timing = _paper(setup), _default(setup), setup.timing

    def ours(kind: Kind, setting: Setting, *way: Any, **options: Any) -> partial[Figures]:  # noqa: ANN401
        return partial(measures.measure_training, kind, setting, *way, timing, **options)

    for kind in _KINDS:
        # The first of them compiles, and all aims hang on them.
        yield Task(f"paper: {kind}, bfloat16", ours(kind, paper, "bfloat16"), limit=240.0)
    for kind in _KINDS:
        yield Task(f"default: {kind}, bfloat16", ours(kind, default, "bfloat16"))
    reference = measures.measure_reference
    yield Task("paper: EDM, float32", partial(reference, "EDM", setup.edm, paper, timing))
    yield Task("paper: teacher, float32", ours("teacher", paper, "float32"))
    yield Task("paper: SiD, float32", partial(reference, "SiD", setup.sid, paper, timing))
    for kind, name in (("one step", "one step"), ("heun", "Heun 18")):
        work = partial(measures.measure_sampler, kind, paper, "bfloat16", timing)
        yield Task(f"paper: {name}, bfloat16", work)
    again = ours("teacher", paper, "bfloat16")
    yield Task("paper: teacher, bfloat16, again", again, fresh=True)
    for kind in _KINDS:
        work = ours(kind, paper, "bfloat16", activation_checkpointing=True)
        yield Task(f"paper: {kind}, bfloat16, checkpointing", work)
    parts = {"distributed": DistributedContext(micro_batch_size=max(1, paper.batch_size // 8))}
    yield Task("paper: teacher, bfloat16, 8 parts", ours("teacher", paper, "bfloat16", **parts))
    for kind in _KINDS:
        work = ours(kind, paper, "bfloat16", compiled=False)
        yield Task(f"paper: {kind}, bfloat16, plain", work)
    for kind, name in (("one step", "one step"), ("heun", "Heun 18")):
        work = partial(measures.measure_sampler, kind, paper, "float32", timing)
        yield Task(f"paper: {name}, as the stages sample", work)


def _profile(setup: Setup) -> _Rows:
    for kind in _KINDS:
        target = setup.files / f"profile_{kind}.txt"
        work = partial(measures.profile_training, kind, _paper(setup), setup.device, target)
        yield Task(f"paper: {kind}, bfloat16", work)


def _run(setup: Setup) -> _Rows:
    """Both rates, then the preset with as many images as they allow in the time that is left."""
    root, files, preset = setup.scratch / "run", setup.files, load_preset(real_run.PRESET)
    seconds = 0.0
    for kind, section in zip(_KINDS, ("pretrain", "distill"), strict=True):
        work = partial(measures.measure_training, kind, _quick(setup), "bfloat16", setup.timing)
        figures = yield Task(f"{real_run.PRESET}: {kind}, bfloat16", work)
        rate = figures.get("images_per_second", 1.0)
        seconds += 1e3 * preset[f"{section}.kimg"] / rate
    share = min(1.0, (setup.left() - _OVERHEAD) / seconds)
    if share < _LEAST_SHARE and not setup.dry:
        why = f"not measured: {setup.left():.0f} s allow {share:.1%} of the preset's images"
        yield Task("stage pretrain", partial(dict, problem=why))
        return
    changes = _TINY if setup.dry else _shortened(preset, share)
    data = setup.data or real_run.parquet_file()
    real_run.prepare_workspace(root, data, changes)
    for stage in STAGES:
        work = partial(real_run.run_stage, stage, root, files)
        found = yield Task(f"stage {stage}", work, fresh=stage == "prepare", limit=setup.left())
        if "problem" in found:
            return


def _shortened(preset: dict[str, Any], share: float) -> dict[str, float]:
    """Lengths of trainings, and what goes with them, times ``share``."""
    keys = [key for key in preset if key.split(".")[0] in {"pretrain", "distill"}]
    return {key: share * preset[key] for key in keys if key.endswith("kimg")}


PARTS = {"correctness": _correctness, "speed": _speed, "profile": _profile, "run": _run}


def _paper(setup: Setup) -> Setting:
    """The paper's DDPM++ for CIFAR-10."""
    if setup.dry:
        return _tiny((3, 8, 8))
    network = trainings.edm_network(128, [2, 2, 2], 4)
    return Setting("paper", (3, 32, 32), network, 512, 256, 512)


def _default(setup: Setup) -> Setting:
    """The network of params.yaml."""
    if setup.dry:
        return _tiny((1, 8, 8))
    return Setting("default", (1, 16, 16), trainings.parameters().network, 128, 128, 128)


def _quick(setup: Setup) -> Setting:
    """The network of the real run."""
    if setup.dry:
        return _tiny((3, 8, 8))
    preset = load_preset(real_run.PRESET)
    names = UNetConfig.model_fields.keys() - {"kind"}
    given = {name: preset[f"network.{name}"] for name in names}
    network = UNetConfig.model_validate({"kind": "unet", **given})
    sizes = preset["pretrain.batch_size"], preset["distill.batch_size"]
    return Setting("quick", (3, 32, 32), network, *sizes, 512)


def _tiny(shape: tuple[int, int, int]) -> Setting:
    network = trainings.edm_network(8, [1], 1)
    network = network.model_copy(update={"attention_resolutions": [], "dropout": 0.0})
    return Setting("tiny", shape, network, 4, 4, 2)
