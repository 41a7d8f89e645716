"""The processes that were started together for one training, and their micro-batches."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
from torch import distributed as dist

from dsd.training.distributed import DistributedContext
from dsd.training.memory import DryRunnable, find_micro_batch_size
from dsd.utils.errors import Interrupted, ParamsError
from pipeline.execution.device import resolve_device
from pipeline.params.config import Compute
from pipeline.runtime.launch import report_error

__all__ = ["choose_micro_batch_size", "init_distributed"]

_TIMEOUT = timedelta(hours=2)
"""Longest wait for the process that measures; the end of a process is noticed without it."""

_SILENCE = timedelta(seconds=10)
"""Longest silence of another host: every thread that watches answers within moments."""

_BETWEEN_SECONDS = 1.0

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
    several = size > int(os.environ["LOCAL_WORLD_SIZE"])
    try:
        with _watching_other_hosts() if several else nullcontext():
            yield DistributedContext(rank, size, asked), device
    except Interrupted:  # all stop at the same step
        dist.destroy_process_group()
        raise
    # Not after other errors: that would wait for processes that have ended.
    dist.destroy_process_group()


@contextmanager
def _watching_other_hosts() -> Iterator[None]:
    """End this process when one of another host ends during the block, or its host is silent.

    The network tells of a process that ends. Of a host that ends it tells nothing, and an
    exchange of gradients would wait for hours. So a thread of each process meets the others in a
    group that has a shorter patience.
    """
    group = dist.new_group(backend="gloo", timeout=_SILENCE)
    assert isinstance(group, dist.ProcessGroup)
    over = threading.Event()

    def watch() -> None:
        try:
            while True:
                last = torch.tensor([over.is_set()], dtype=torch.uint8)
                dist.all_reduce(last, dist.ReduceOp.MAX, group=group)
                if last.item():  # of one process, and so known to all
                    return
                over.wait(_BETWEEN_SECONDS)
        except RuntimeError:
            if not over.is_set():
                msg = "a process on another host, or the host, is gone; the same command continues"
                os._exit(report_error(msg, 128 + signal.SIGKILL))

    thread = threading.Thread(target=watch, name="hosts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_SILENCE.total_seconds())


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
