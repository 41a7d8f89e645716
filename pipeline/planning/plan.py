"""``python -m pipeline plan``: what each stage will take here, before anything starts."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, final

import psutil
from rich.console import Console
from rich.table import Table

from pipeline.params.model import Params
from pipeline.planning.forecast import Measured, Memory, StagePlan, forecast
from pipeline.runtime import launch
from pipeline.runtime.parent_death import end_with_parent
from pipeline.stage_io.paths import Paths

# The probes import torch, and are imported by the processes in which they run.
if TYPE_CHECKING:
    from pipeline.planning.probes import DataRates, EvaluationRates, Training

__all__ = ["disk_needed", "duration", "probe", "remedies", "show_plan", "size"]

_MINUTE, _HOUR, _DAY = 60, 3600, 86400

_PROBE_SECONDS = 27.0
"""For all probes; what is started and printed besides makes it half a minute."""

_LEAST_SECONDS = 18.0
"""For the trainings and evaluation, even where a busy machine or a slow disk took more before."""

_SHARES = {"pretrain": 0.25, "distill": 0.25, "evaluate": 0.5}
"""Of the time that is left when the data are there."""


@final
class Probe(NamedTuple):
    """Rates, and what to know about them."""

    measured: Measured
    notes: list[str]


def show_plan(params: Params, paths: Paths, console: Console | None = None) -> None:
    """Measure for half a minute and print what each stage will take.

    It takes longer where once is too long: each thing is measured at least once.

    Raises:
        DataError: The images of ``params.data`` are not there or not usable.
        ParamsError: A parameter does not go with the images, or there is no such device.
    """
    console = Console() if console is None else console
    started = time.monotonic()
    found = probe(params, paths)
    plans = forecast(params, found.measured)
    console.print(_table(plans))
    lines = [
        *remedies(plans, paths),
        f"Measured in {time.monotonic() - started:.0f} s: {'; '.join(found.notes)}.",
        *_processes(params),
        "All stages from the beginning; DVC skips those that are up to date. Times hold for the "
        "machine as busy as now.",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def probe(params: Params, paths: Paths) -> Probe:
    """Measure all stages, one after the other, each in a process of its own.

    Raises:
        DataError: As for :func:`show_plan`.
        ParamsError: As for :func:`show_plan`.
    """
    end = time.monotonic() + _PROBE_SECONDS
    with TemporaryDirectory(prefix="dsd-plan-") as temporary:
        folder = Path(temporary)
        data: DataRates = _apart("data", params, paths, folder)
        left = max(_LEAST_SECONDS, end - time.monotonic())
        shares = {name: share * left for name, share in _SHARES.items()}
        teacher: Training = _apart("pretrain", params, folder, shares["pretrain"])
        distillation: Training = _apart("distill", params, folder, shares["distill"])
        rest: EvaluationRates = _apart("evaluate", params, folder, shares["evaluate"])
    measured = Measured(
        start_up=data.start_up,
        images=data.images,
        prepare=data.prepare,
        corrupt=data.corrupt,
        weights=teacher.weights,
        trained=teacher.trained,
        pretrain=teacher.steps,
        distill=distillation.steps,
        forward=rest.forward,
        sampler=rest.sampler,
        observe=rest.observe,
        spaces=rest.spaces,
        cache_limit=rest.cache_limit,
        memory_data=data.memory,
        memory_evaluate=rest.memory,
    )
    notes = [f"pretrain {teacher.timed}", f"distill {distillation.timed}"]
    notes += [f"without {name}, because {why}" for name, why in rest.missing.items()]
    return Probe(measured, notes + _left_out(params))


def _apart(name: str, *arguments: object) -> Any:  # noqa: ANN401 - each probe has its own type
    with ProcessPoolExecutor(1, _context(), initializer=_be_a_probe) as pool:
        return pool.submit(_measure, name, *arguments).result()


def _context() -> BaseContext:
    """Where processes can begin with all that probes import, which takes seconds, they do."""
    if not sys.platform.startswith("linux"):
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["pipeline.planning.probes"])
    return context


def _be_a_probe() -> None:
    """End at once with Ctrl-C, and with the process that asked."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent(os.getppid())


def _measure(name: str, *arguments: object) -> object:
    return getattr(import_module("pipeline.planning.probes"), name)(*arguments)


def _left_out(params: Params) -> list[str]:
    notes = ["without DVC's and MLflow's own time"]
    if params.data.source == "torchvision":
        notes.append(f"without a download, on stand-ins of {params.data.name}'s size")
    if "auto" in (params.corrupt.sigma, params.corrupt.sigma_hat):
        notes.append("without the estimate of the noise level")
    return notes


def _processes(params: Params) -> list[str]:
    counts = {stage: launch.num_processes(stage, params) for stage in ("pretrain", "distill")}
    shared = [f"{stage} in {count}" for stage, count in counts.items() if count > 1]
    if not shared:
        return []
    return [f"Times are those of one process; {', '.join(shared)} will be shorter (not measured)."]


def remedies(plans: Sequence[StagePlan], paths: Paths) -> list[str]:
    """What to do where this machine has less than is needed; nothing where it has enough."""
    lines = []
    needed, free = disk_needed(plans), shutil.disk_usage(paths.root).free
    if needed > free:
        lines.append(
            f"DISK: {size(needed)} needed, but only {size(free)} are free in {paths.root}: free "
            "some, or lower data.max_images, distill.selection.save_top_k or num_samples"
        )
    largest = max(plans, key=lambda plan: plan.memory.host)
    free = psutil.virtual_memory().available
    if largest.memory.host > free:
        lines.append(
            f"MEMORY: {largest.stage} needs {size(largest.memory.host)}, but only {size(free)} "
            f"are free: {_less_memory(largest.stage)}"
        )
    return lines + _gpu_remedies(plans)


def _gpu_remedies(plans: Sequence[StagePlan]) -> list[str]:
    largest = max(plans, key=lambda plan: plan.memory.gpu)
    if not largest.memory.gpu:
        return []
    import torch

    free = torch.cuda.mem_get_info()[0]
    if largest.memory.gpu <= free:
        return []
    return [
        f"GPU: {largest.stage} needs {size(largest.memory.gpu)}, but only {size(free)} are free: "
        f"{_less_memory(largest.stage)}"
    ]


def _less_memory(stage: str) -> str:
    if stage == "evaluate":
        return "lower run.eval_batch_size or data.max_images"
    return (
        "set compute.activation_checkpointing to true, or lower compute.micro_batch_size or "
        "data.max_images"
    )


def disk_needed(plans: Sequence[StagePlan]) -> float:
    """Bytes on disk while the stages run one after the other, and what they keep."""
    kept, most = 0.0, 0.0
    for plan in plans:
        kept += plan.kept
        most = max(most, kept + plan.running)
    return most


def _table(plans: Sequence[StagePlan]) -> Table:
    table = Table(title="What each stage will take")
    on_gpu = any(plan.memory.gpu for plan in plans)
    table.add_column("stage", no_wrap=True)
    columns = ("time", "memory", *(["GPU memory"] * on_gpu), "disk, kept", "while it runs")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for plan in plans:
        table.add_row(*_cells(plan, on_gpu=on_gpu))
    table.add_section()
    table.add_row(*_cells(_total(plans), on_gpu=on_gpu), style="bold")
    return table


def _total(plans: Sequence[StagePlan]) -> StagePlan:
    low, high = sum(plan.low for plan in plans), sum(plan.high for plan in plans)
    memory = Memory(*(max(part) for part in zip(*(plan.memory for plan in plans), strict=True)))
    kept, running = sum(plan.kept for plan in plans), max(plan.running for plan in plans)
    return StagePlan("total", low, high, memory, kept, running)


def _cells(plan: StagePlan, *, on_gpu: bool) -> list[str]:
    memory = [size(plan.memory.host), *([size(plan.memory.gpu)] * on_gpu)]
    times = f"{duration(plan.low)} to {duration(plan.high)}"
    return [plan.stage, times, *memory, size(plan.kept), size(plan.running)]


def duration(seconds: float) -> str:
    """Seconds as people say them: ``3:05 min``, ``2:30 h``, ``11 days``."""
    if seconds < _HOUR:
        whole = round(seconds)
        return f"{whole // _MINUTE}:{whole % _MINUTE:02d} min"
    if seconds < 2 * _DAY:
        minutes = round(seconds / _MINUTE)
        return f"{minutes // 60}:{minutes % 60:02d} h"
    return f"{seconds / _DAY:,.0f} days"


def size(amount: float) -> str:
    """Bytes as people say them, in powers of 1000 as tools for disks do."""
    for unit in ("B", "kB", "MB", "GB"):
        if round(amount) < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"
