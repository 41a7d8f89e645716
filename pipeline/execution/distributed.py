"""The processes that were started together for one training, and their micro-batches."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist

from dsd.training.distributed import DistributedContext
from dsd.training.memory import DryRunnable, find_micro_batch_size
from dsd.utils.errors import Interrupted, ParamsError
from pipeline.execution.device import resolve_device
from pipeline.params.config import Compute

__all__ = ["choose_micro_batch_size", "init_distributed"]

_TIMEOUT = timedelta(hours=2)
"""Longest wait for the process that measures; the end of a process is noticed without it."""

_SPARE = "set compute.activation_checkpointing to true, "
_SMALLER = (
    "make the network smaller (network.model_channels, network.num_blocks) or end other programs"
)


@contextmanager
def init_distributed(
    compute: Compute, batch_size: int
) -> Iterator[tuple[DistributedContext, torch.device]]:
    """The processes of this training, one without a launcher, and the device of this one.

    Args:
        compute: Section of the parameters.
        batch_size: Images of a step, which the processes share.

    Raises:
        ParamsError: There is no such device, or there are more processes than images.
    """
    device = resolve_device(compute)
    asked = None if compute.micro_batch_size == "auto" else compute.micro_batch_size
    if not dist.is_torchelastic_launched():
        yield DistributedContext(micro_batch_size=asked), device
        return
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if size > batch_size:
        msg = f"{size} processes cannot share a batch of {batch_size}: start fewer, or raise it"
        raise ParamsError(msg)
    if device.type == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # Gradients travel between GPUs, signals to stop between CPUs.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield DistributedContext(rank, size, asked), device
    except Interrupted:  # all stop at the same step
        dist.destroy_process_group()
        raise
    # Not after other errors: that would wait for processes that have ended.
    dist.destroy_process_group()


def choose_micro_batch_size(
    training: DryRunnable, distributed: DistributedContext, compute: Compute, device: torch.device
) -> str:
    """Choose the micro-batches of all processes; on a CPU ``auto`` is a process' whole share.

    Returns:
        A line for the log.

    Raises:
        ParamsError: Not even one image fits.
    """
    share = -(-training.batch_size // distributed.world_size)
    if compute.micro_batch_size == "auto" and device.type == "cuda":
        try:
            find_micro_batch_size(training, distributed)
        except torch.OutOfMemoryError as error:
            spare = "" if compute.activation_checkpointing else _SPARE
            msg = f"not even one image fits into the GPU's memory ({error}): {spare}{_SMALLER}"
            raise ParamsError(msg) from error
    images = min(share, distributed.micro_batch_size or share)
    return f"takes {images} of {share} images of a step in one pass"
