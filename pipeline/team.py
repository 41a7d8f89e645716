"""Joining the processes that were started together for one training."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist

from dsd.config import Compute
from dsd.errors import Interrupted, ParamsError
from dsd.training.team import Team
from pipeline.compute import resolve_device

__all__ = ["joined_team"]

_PATIENCE = timedelta(hours=2)
"""How long processes wait for the one that measures; the end of one is noticed at once."""


@contextmanager
def joined_team(compute: Compute, batch_size: int) -> Iterator[tuple[Team, torch.device]]:
    """The team that this process belongs to, and the device that it computes on.

    A process that no launcher started is a team of its own.

    Args:
        compute: Which kind of device, and how much it takes at once.
        batch_size: Images of a step, which the team shares.

    Raises:
        ParamsError: There is no such device, or there are more processes than images.
    """
    device = resolve_device(compute)
    at_once = None if compute.batch_per_device == "auto" else compute.batch_per_device
    if not dist.is_torchelastic_launched():
        yield Team(at_once=at_once), device
        return
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if size > batch_size:
        msg = f"{size} processes cannot share a batch of {batch_size}: start fewer, or raise it"
        raise ParamsError(msg)
    if device.type == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # Gradients travel between GPUs, the word to stop between CPUs.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Team(rank, size, at_once), device
    except Interrupted:  # all stop at the same step
        dist.destroy_process_group()
        raise
    # Not after other errors: that would wait for processes that have ended.
    dist.destroy_process_group()
