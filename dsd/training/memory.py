"""How many images of a batch fit into memory at once, found by trying a few of them.

What a part of a batch needs is a straight line in its images. Two points of that line are measured
by computing gradients on a few images of a real step, in which nothing is moved. Gradients and the
optimiser's moments, which the first real step brings, are counted.
"""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import nn, optim
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from dsd.model.networks.unet import UNet
from dsd.training.distributed import Team

__all__ = [
    "Line",
    "Part",
    "Rehearsing",
    "bytes_of_parts",
    "bytes_to_come",
    "largest_part",
    "peak_bytes",
    "recompute_activations",
]

_USABLE = 0.8
"""Share of the free memory that is filled; the rest is for what libraries take and for gaps."""

_FEW, _MORE = 2, 4
"""Images of the two measurements; one alone would leave some libraries another way to go."""


@runtime_checkable
class Rehearsing(Protocol):
    """A training whose step can be tried on a few images."""

    @property
    def batch_size(self) -> int:
        """Images of a step."""

    @property
    def least(self) -> int:
        """Fewest images that need memory as many do, for each."""

    @property
    def optimizers(self) -> Sequence[optim.Optimizer]:
        """What moves the weights."""

    def rehearse(self, team: Team) -> None:
        """Add to gradients as the first process of ``team`` would; change nothing else."""


@final
@dataclass(frozen=True)
class Line:
    """Bytes as a straight line in the number of images."""

    base: float
    each: float

    def at(self, images: int) -> float:
        """Bytes for so many images."""
        return self.base + self.each * images

    def most(self, free: float) -> int:
        """For how many images ``free`` bytes are enough, 0 or less for none."""
        return math.floor((free - self.base) / max(self.each, 1.0))


@final
@dataclass(frozen=True)
class Part:
    """The largest part of a batch that fits."""

    images: int
    """0 if not even one image does."""

    share: int
    """Images that the process takes in a step, of which this is a part."""

    needed: float
    """Predicted bytes besides those taken already, at the peak; for one image if none fits."""

    usable: float
    """Bytes that may be taken: a share of those that are free."""


def recompute_activations(module: nn.Module, wanted: bool) -> None:
    """Let the U-Nets in ``module`` trade computing for memory while gradients are computed."""
    for network in module.modules():
        if isinstance(network, UNet):
            network.recomputes = wanted


def largest_part(training: Rehearsing, team: Team, *, free: float, device: torch.device) -> Part:
    """The largest of equal parts of a process' share of a batch that fits into ``free`` bytes.

    Args:
        training: Rehearsed a few times; it is as it was afterwards.
        team: The processes that share the batch.
        free: Bytes of the device that nobody has taken.
        device: Where the training computes.
    """
    share = -(-training.batch_size // team.size)
    usable = _USABLE * free
    left = usable - bytes_to_come(training.optimizers)
    # What is measured begins with gradients in memory: they are not counted again.
    training.rehearse(_few_of(training, training.least, parts=1))
    lines = [bytes_of_parts(training, parts=1, device=device)]
    most = share if lines[0].at(share) <= left else 0
    if not most and training.batch_size >= 2 * _FEW * training.least:
        lines.append(bytes_of_parts(training, parts=2, device=device))
        most = min(share, max(0, lines[1].most(left)))
    for optimizer in training.optimizers:
        optimizer.zero_grad(set_to_none=True)
    images = -(-share // -(-share // most)) if most else 0
    needed = lines[-1].at(max(1, images)) + usable - left
    return Part(images, share, needed, usable)


def _few_of(training: Rehearsing, count: int, *, parts: int) -> Team:
    """A team whose first process takes about ``count`` images in each of its parts."""
    size = max(1, training.batch_size // (count * parts))
    share = training.batch_size // size
    return Team(0, size, -(-share // parts))


def bytes_of_parts(training: Rehearsing, *, parts: int, device: torch.device) -> Line:
    """Peak of a step in so many parts, by the images of one; besides weights and gradients."""
    peaks: dict[int, int] = {}
    for count in (_FEW * training.least, _MORE * training.least):
        team = _few_of(training, count, parts=parts)
        images = max(part.stop - part.start for part in team.parts(training.batch_size))
        peaks[images] = peak_bytes(partial(training.rehearse, team), device)
    return _line(peaks)


def _line(peaks: Mapping[int, int]) -> Line:
    few, more = min(peaks), max(peaks)
    if few == more:
        return Line(0.0, peaks[few] / few)
    each = (peaks[more] - peaks[few]) / (more - few)
    return Line(peaks[few] - each * few, each)


def bytes_to_come(optimizers: Sequence[optim.Optimizer]) -> int:
    """Bytes of gradients, and of Adam's two moments, that are not in memory yet."""
    return sum(
        weight.nbytes * ((weight.grad is None) + 2 * (weight not in optimizer.state))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for weight in group["params"]
    )


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors that ``work`` had at once, besides those that were there before.

    On a GPU this is what the allocator counts, with the workspaces of libraries. On a CPU it is
    what torch's operations return, forward and backward, for as long as it is alive.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = int(torch.cuda.memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    seen = _Allocations()
    with seen:
        work()
    return seen.peak


@final
class _Allocations(TorchDispatchMode):
    """Counts the memory of the tensors that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._known.setdefault(tensor.untyped_storage(), None)
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known[storage] = None
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, storage.nbytes()).atexit = False

    def _forget(self, size: int) -> None:
        self._now -= size


def _tensors(values: object) -> list[torch.Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, torch.Tensor)]
