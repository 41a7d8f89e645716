"""Less memory: batches in micro-batches that fit, and activation checkpointing."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn, optim

from dsd.training.distributed import DistributedContext

__all__ = ["DryRunnable", "enable_activation_checkpointing", "find_micro_batch_size"]


@runtime_checkable
class DryRunnable(Protocol):
    """A training whose next step can be computed without taking it."""

    @property
    def batch_size(self) -> int:
        """Images of a step."""

    @property
    def optimizers(self) -> Sequence[optim.Optimizer]:
        """Optimizers of the weights that are trained."""

    def dry_run(self) -> None:
        """Add this process' share of the next step to the gradients; change nothing else."""


def enable_activation_checkpointing(module: nn.Module, enabled: bool) -> None:
    """Let the networks in ``module`` compute blocks twice while training, for less memory.

    Networks that can do so have the attribute ``recomputes``.
    """
    for network in module.modules():
        if hasattr(network, "recomputes"):
            setattr(network, "recomputes", enabled)  # noqa: B010 - nn.Module types no flags


def find_micro_batch_size(training: DryRunnable, distributed: DistributedContext) -> int:
    """Halve a process' share of a batch until a step fits into memory; set it in ``distributed``.

    All processes get the same number. The training is as it was afterwards.

    Raises:
        torch.OutOfMemoryError: A step on single images does not fit.

    Reference:
        ``find_executable_batch_size`` of Hugging Face's Accelerate.
    """
    distributed.micro_batch_size = -(-training.batch_size // distributed.world_size)
    while True:
        error = _memory_error(training)
        torch.cuda.empty_cache()
        (failed,) = distributed.all_reduce_max(error is not None)
        if not failed:
            return distributed.micro_batch_size
        if distributed.micro_batch_size == 1:
            raise error or torch.OutOfMemoryError("out of memory in another process")
        distributed.micro_batch_size = -(-distributed.micro_batch_size // 2)


def _memory_error(training: DryRunnable) -> torch.OutOfMemoryError | None:
    """Return the error of a step that does not fit, without what its frames hold in memory."""
    optimizers = training.optimizers
    trained = [(w, o) for o in optimizers for group in o.param_groups for w in group["params"]]
    try:
        # Adam's two moments, which the first step brings.
        moments = [w.new_empty(2, *w.shape) for w, o in trained if w not in o.state]
        training.dry_run()
        del moments
    except torch.OutOfMemoryError as error:
        return error.with_traceback(None)
    finally:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
    return None
