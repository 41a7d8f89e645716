"""Which device and arithmetic ``auto`` means on this machine, and how much memory there is."""

import os
from pathlib import Path

import psutil
import torch

from dsd.utils.config import Precision
from dsd.utils.errors import ParamsError
from pipeline.params.config import Compute

__all__ = ["free_memory", "resolve_device", "resolve_precision"]

_GROUPS = Path("/sys/fs/cgroup")


def resolve_device(compute: Compute) -> torch.device:
    """The device to compute on.

    Raises:
        ParamsError: A GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if compute.device == "cuda" and not available:
        msg = (
            "compute.device is cuda, but torch sees no GPU: use cpu or auto, "
            "or check the driver with `nvidia-smi`"
        )
        raise ParamsError(msg)
    if compute.device == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda")


def resolve_precision(compute: Compute, device: torch.device) -> Precision:
    """Arithmetic inside networks while training.

    ``auto`` takes bfloat16 on GPUs that have it and float32 on CPUs, where it was measured slower
    without matrix units (bench/README.md).

    Raises:
        ParamsError: TF32 is asked for where there is none.
    """
    if compute.precision == "tf32" and not _has_tf32(device):
        msg = (
            "compute.precision is tf32, which only NVIDIA GPUs have, since 2020 (compute "
            f"capability 8.0): choose auto or float32 for {_name(device)}"
        )
        raise ParamsError(msg)
    if compute.precision != "auto":
        return compute.precision
    if device.type == "cuda":
        # Older GPUs can imitate bfloat16, slowly.
        real = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if real else "float32"
    return "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"


def _has_tf32(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"


def free_memory(device: torch.device) -> float:
    """Bytes that this process may still take.

    Of a GPU: what nobody has, and what torch has but does not use. Of the main memory: what is
    available to all processes, at most what their control group (a container, a batch job) leaves;
    the processes of a training on one machine get equal parts.
    """
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + idle)
    available: int = psutil.virtual_memory().available
    left = [available, *_left_by_groups(_GROUPS, _own_group())]
    return min(left) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _own_group() -> str:
    """Name of this process' control group (version 2), which contain each other like folders."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return "/"
    return next((line[3:] for line in lines if line.startswith("0::")), "/")


def _left_by_groups(root: Path, name: str) -> list[int]:
    """Bytes that the limits of a group and of all around it leave; none without limits."""
    own = root / name.lstrip("/")
    folders = [own, *own.parents]
    return [
        left
        for folder in folders[: folders.index(root) + 1]
        if (left := _left_by_group(folder)) is not None
    ]


def _left_by_group(folder: Path) -> int | None:
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    if limit == "max":
        return None
    # Copies of files, which the system gives up when it needs to.
    cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(0, int(limit) - used + cached)
