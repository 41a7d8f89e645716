"""Whether compiled trainings do what plain ones do, in float32 and bfloat16, also when resumed."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu.measures import Kind, new_training
from bench.gpu.worker import Figures
from bench.speed.trainings import Setting
from dsd.training.distributed import DistributedContext
from dsd.training.nonfinite import NonFiniteMonitor
from dsd.training.state import TrainingState
from dsd.utils.config import Precision
from dsd.utils.errors import NonFiniteError

__all__ = ["compare", "find_nan", "resume"]

_STEPS = 8
"""The first are plain or warm-ups; the last ones replay a captured graph."""

BOUNDS = {
    "float32": {"losses": 1e-3, "gradients": 1e-2, "weights": 2e-2},
    "bfloat16": {"losses": 2e-2, "gradients": 1e-1, "weights": 3e-1},
}
"""Relative differences that are allowed. Weights: of their change in three steps. Adam's first
steps have the size of the step size whatever the gradient, so that a gradient near 0, whose sign
is rounding, moves its weight by that much either way."""


def compare(
    kind: Kind,
    setting: Setting,
    device: torch.device,
    first: tuple[Precision, bool],
    second: tuple[Precision, bool],
    bounds: Precision,
) -> Figures:
    """Relative differences of losses, gradients of the first step, and weights.

    Args:
        kind: Which training.
        setting: Its network and batches.
        device: Where.
        first: Precision of one training, and whether it is compiled.
        second: The same of the other, by which differences are divided.
        bounds: Of which precision the differences may be.
    """
    one, other = (_run(kind, setting, device, *way) for way in (first, second))
    found = {name: _off(one[name], other[name]) for name in one}
    return _judged(found, BOUNDS[bounds])


def resume(kind: Kind, setting: Setting, device: torch.device) -> Figures:
    """Relative differences of a compiled bfloat16 training that is saved and resumed half-way."""
    straight = new_training(kind, setting, "bfloat16", device)
    broken = new_training(kind, setting, "bfloat16", device)
    _take(broken, _STEPS // 2)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "state"
        _state(broken).save(file, {})
        again = new_training(kind, setting, "bfloat16", device)
        _state(again).load(file)
    again.step = broken.step
    before = _weights(straight)
    _take(straight, _STEPS)
    _take(again, _STEPS - _STEPS // 2)
    moved = [_weights(training) - before for training in (again, straight)]
    return _judged({"weights": _off(*moved)}, BOUNDS["bfloat16"])


def find_nan(kind: Kind, setting: Setting, device: torch.device) -> Figures:
    """Whether a NaN weight, put in after some steps, is reported within the next ones."""
    training = new_training(kind, setting, "bfloat16", device)
    watch, steps = NonFiniteMonitor(DistributedContext()), training.steps()
    for record in islice(steps, _STEPS):
        watch.check(record)
    watch.flush()
    with torch.no_grad():
        next(_trained(training).parameters()).view(-1)[0] = torch.nan
    try:
        for record in islice(steps, 3):
            watch.check(record)
        watch.flush()
    except NonFiniteError as error:
        return {"ok": True, "message": str(error).partition(";")[0]}
    return {"ok": False, "message": "nothing was reported"}


def _run(
    kind: Kind, setting: Setting, device: torch.device, precision: Precision, compiled: bool
) -> dict[str, Tensor]:
    """Losses of all steps, gradients of the first, and changes of weights by the last three."""
    training = new_training(kind, setting, precision, device, compiled=compiled)
    steps, losses = training.steps(), list[Tensor]()
    for number, record in enumerate(islice(steps, _STEPS)):
        losses.append(record.loss if kind == "teacher" else record.loss_fake)
        if number == 0:
            gradients = _flat(
                w.grad for w in _trained(training).parameters() if w.grad is not None
            )
        if number == _STEPS - 4:
            before = _weights(training)
    found = {"losses": _flat(losses), "gradients": gradients}
    return found | {"weights": _weights(training) - before}


def _take(training: Any, count: int) -> None:  # noqa: ANN401 - one of both trainings
    for _ in islice(training.steps(), count):
        pass


def _trained(training: Any) -> nn.Module:  # noqa: ANN401 - one of both trainings
    found: nn.Module = getattr(training, "fake", None) or training.denoiser
    return found


def _modules(training: Any) -> dict[str, nn.Module]:  # noqa: ANN401 - one of both trainings
    names = ("denoiser", "generator", "fake", "average")
    return {name: getattr(training, name) for name in names if hasattr(training, name)}


def _state(training: Any) -> TrainingState:  # noqa: ANN401 - one of both trainings
    optimizers = {str(at): optimizer for at, optimizer in enumerate(training.optimizers)}
    return TrainingState(_modules(training), optimizers)


def _weights(training: Any) -> Tensor:  # noqa: ANN401 - one of both trainings
    return _flat(w for module in _modules(training).values() for w in module.parameters())


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten().double().cpu() for tensor in tensors])


def _off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _judged(found: dict[str, float], bounds: dict[str, float]) -> Figures:
    ok = all(found[name] <= bounds[name] for name in found)
    return {**found, "bounds": {name: bounds[name] for name in found}, "ok": ok}
