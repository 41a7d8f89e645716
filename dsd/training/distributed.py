"""Several processes that train one model together.

Each process keeps a copy of everything that is trained. All of them draw the random inputs of
whole batches, from the same seeds, and each computes on its own rows of a batch. The sum of their
gradients then moves all copies alike: weights are never sent, records are about whole batches
everywhere, and without dropout the number of processes changes nothing except rounding.

Deviates:
    PyTorch's DistributedDataParallel averages gradients while ``backward`` runs, once for each
    forward pass through its wrapper. Here one step has several passes through one network, a
    network that only passes gradients on, and batches in parts: summing once, after the last
    part, is less code. It does not overlap with computing: the 226 MB of the paper's network take
    some milliseconds between GPUs of one machine, beside steps of hundreds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TypeVar, final

import torch
from torch import Tensor
from torch import distributed as dist

from dsd.utils.errors import LostProcessError

__all__ = ["DistributedContext", "TensorBatch", "gradients"]

TensorBatchT = TypeVar("TensorBatchT", bound="TensorBatch")


@final
class DistributedContext:
    """The processes of one training; without arguments, this process alone.

    Args:
        rank: Number of this process, from 0.
        world_size: Number of processes; more than one need an initialised ``torch.distributed``.
        micro_batch_size: Most images in one forward pass of a process; None for its whole share.
    """

    def __init__(
        self, rank: int = 0, world_size: int = 1, micro_batch_size: int | None = None
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.micro_batch_size = micro_batch_size

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes and logs."""
        return self.rank == 0

    def micro_batches(self, total: int, count: int | None = None) -> list[slice]:
        """This process' rows of a batch, split into micro-batches.

        Args:
            total: Rows of the batch.
            count: Number of micro-batches, some of them perhaps empty; None for as few as allowed.
        """
        first, last = (total * rank // self.world_size for rank in (self.rank, self.rank + 1))
        if count is None:
            count = max(1, -(-(last - first) // (self.micro_batch_size or total or 1)))
        borders = [first + (last - first) * part // count for part in range(count + 1)]
        return [slice(*border) for border in pairwise(borders)]

    def all_reduce_sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place.

        Raises:
            LostProcessError: Another process ended.
        """
        if self.world_size == 1:
            return
        # As one message: sending many small ones takes longer.
        together = torch.cat([tensor.flatten() for tensor in tensors])
        _all_reduce(together, dist.ReduceOp.SUM)
        pieces = together.split([tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view(tensor.shape))

    def all_reduce_max(self, *values: float | int) -> list[float]:
        """Return the largest of each value over all processes.

        Raises:
            LostProcessError: Another process ended.
        """
        if self.world_size == 1:
            return [float(value) for value in values]
        # On the CPU, so that no process waits for its GPU.
        together = torch.tensor(values, dtype=torch.float64)
        _all_reduce(together, dist.ReduceOp.MAX)
        found: list[float] = together.tolist()
        return found


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    try:
        dist.all_reduce(tensor, operation)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        msg = "another process of this training ended; the same command continues"
        raise LostProcessError(msg) from error


def gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the weights that have one."""
    return [weight.grad for weight in weights if weight.grad is not None]


@dataclass(frozen=True)
class TensorBatch:
    """Base of collections of tensors that have one row for each image of a batch."""

    def __getitem__(self: TensorBatchT, rows: slice) -> TensorBatchT:
        """The same rows of every member; members that are None stay so."""
        members = {field.name: getattr(self, field.name) for field in fields(self)}
        taken = {name: value[rows] for name, value in members.items() if value is not None}
        return replace(self, **taken)
