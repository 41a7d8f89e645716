"""Speed and memory of trainings and samplers, ours and the references', and a profile."""

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from bench.gpu.worker import Figures
from bench.speed import trainings
from bench.speed.references import EdmTeacher, SidDistillation, reference_network
from bench.speed.trainings import Setting, our_denoiser
from dsd.model.generator import OneStepGenerator, make_latents
from dsd.model.networks.block_call import plain_call
from dsd.model.samplers import sample_teacher
from dsd.training.compiled import Compilation, missing_compiler
from dsd.utils.config import Precision

__all__ = [
    "Kind", "Timing", "measure_reference", "measure_sampler", "measure_training", "new_training",
    "profile_training",
]  # fmt: skip

Kind = Literal["teacher", "distillation"]

_WARM_UPS = 5
"""Calls that are not timed: the first compiles, and the fifth replays a captured graph."""

_GIB = 2**30

_said: list[str] = []
"""Messages about compiling since the row began: its seconds, and steps that stayed plain."""


class Timing(NamedTuple):
    """Where and how long to measure."""

    device: torch.device
    seconds: float
    """Time of each measurement, warm-up aside."""


def compilation(device: torch.device) -> Figures:
    """The option of trainings that compiles them; none for a CPU, where it takes minutes."""
    if device.type == "cpu":
        return {}
    why = missing_compiler(device)
    if why is not None:
        msg = f"nothing is compiled: {why}"
        raise RuntimeError(msg)
    return {"compilation": Compilation(_said.append)}


def new_training(
    kind: Kind,
    setting: Setting,
    precision: Precision,
    device: torch.device,
    *,
    compiled: bool = True,
    **options: Any,  # noqa: ANN401 - of both trainings
) -> Any:  # noqa: ANN401 - one of both trainings
    """A training at its first step, with weights that answer; fresh ones end in zeros."""
    make = {"teacher": trainings.teacher_training, "distillation": trainings.distillation}[kind]
    options |= compilation(device) if compiled else {}
    denoiser = our_denoiser(setting, device)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=random).to(device)
    return make(denoiser, setting, precision, **options)


def measure_training(
    kind: Kind,
    setting: Setting,
    precision: Precision,
    timing: Timing,
    *,
    compiled: bool = True,
    **options: Any,  # noqa: ANN401 - of both trainings
) -> Figures:
    """Images a second and memory of our steps."""
    _forget()
    training = new_training(kind, setting, precision, timing.device, compiled=compiled, **options)
    return _rate(training.steps().__next__, training.batch_size, timing)


def measure_reference(
    name: Literal["EDM", "SiD"], checkout: Path | None, setting: Setting, timing: Timing
) -> Figures:
    """The same of a reference's steps, in float32 as its loop computes them."""
    if checkout is None:
        return {"problem": f"no --{name.lower()}"}
    _forget()
    network = reference_network(checkout, setting, timing.device)
    batch = setting.batch_size if name == "EDM" else setting.batch_size_distill
    make = {"EDM": EdmTeacher, "SiD": SidDistillation}[name]
    step = make(checkout, network, batch, setting.shape, timing.device).advance
    return _rate(step, batch, timing)


def measure_sampler(
    kind: Literal["one step", "heun"], setting: Setting, precision: Precision, timing: Timing
) -> Figures:
    """Images a second of the generator, or of 18 steps of Heun's method; compiled in bfloat16."""
    _forget()
    device = timing.device
    denoiser = our_denoiser(setting, device).eval().requires_grad_(False)
    z = make_latents(setting.sample, setting.shape, seed=0).to(device)
    if kind == "one step":
        generate: Callable[[], object] = partial(
            OneStepGenerator(denoiser, sigma_init=2.5, shape=setting.shape).eval(), z
        )
    else:
        config = trainings.parameters().evaluate.sampler
        # At level 0 the three kinds of samples are one.
        generate = partial(sample_teacher, denoiser, z, config=config, sigma_y=0.0)
    fast = precision == "bfloat16"
    if fast and device.type == "cuda":
        torch._dynamo.config.recompile_limit = 256  # kinds of blocks
        denoiser.network.call_block = torch.compile(
            plain_call, dynamic=False, options={"layout_optimization": False}
        )

    def sample() -> None:
        fewer_bits = torch.autocast(device.type, torch.bfloat16) if fast else nullcontext()
        with torch.inference_mode(), fewer_bits:
            generate()

    return _rate(sample, len(z), timing)


def profile_training(
    kind: Kind, setting: Setting, device: torch.device, target: Path, *, compiled: bool = True
) -> Figures:
    """Write PyTorch's table of the operations of three bfloat16 steps to the file ``target``."""
    _forget()
    step = new_training(kind, setting, "bfloat16", device, compiled=compiled).steps().__next__
    for _ in range(_WARM_UPS):
        step()
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as found:
        for _ in range(3):
            step()
        _wait(device)
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    target.parent.mkdir(parents=True, exist_ok=True)
    table = found.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=60)
    target.write_text(table)
    return {"file": target.name}


def _rate(do: Callable[[], object], images: int, timing: Timing) -> Figures:
    """Images a second of calls for ``images`` each, and the memory that they need."""
    device, started = timing.device, time.perf_counter()
    do()
    _wait(device)
    first = time.perf_counter() - started
    for _ in range(_WARM_UPS - 1 if timing.seconds else 0):
        do()
    seconds = _seconds_of_a_call(do, timing)
    figures = {"images_per_second": images / seconds, "ms": 1e3 * seconds, "batch": images}
    figures["first_call_s"] = first
    if _said:
        figures["said"] = "; ".join(_said)
    if device.type == "cuda":
        figures["peak_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
        figures["reserved_gib"] = torch.cuda.max_memory_reserved(device) / _GIB
    return figures


def _seconds_of_a_call(do: Callable[[], object], timing: Timing) -> float:
    """Median over blocks of calls; the GPU is waited for at the end of a block only."""
    times: list[float] = []
    calls, begun = 1, time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begun < timing.seconds:
        _wait(timing.device)
        started = time.perf_counter()
        for _ in range(calls):
            do()
        _wait(timing.device)
        taken = time.perf_counter() - started
        if taken < timing.seconds / 10:
            times.clear()  # too short to be timed
            calls *= 2
        else:
            times.append(taken / calls)
    return float(torch.tensor(times).median())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget() -> None:
    """Free the GPU's memory, and count its peak from here on."""
    _said.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
