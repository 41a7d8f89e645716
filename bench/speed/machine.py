"""What the machine can do at most, and what it is."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.speed.work import Work
from dsd.arithmetic import float32_products

__all__ = ["copy", "description", "matrix_product"]

_MATRIX = {"cpu": 2048, "cuda": 16384}
_BLOCK_BYTES = {"cpu": 2**27, "cuda": 2**31}
"""Much more than caches hold."""

_LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "clean-fid", "dvc", "mlflow", "timm")


def matrix_product(device: torch.device, options: Mapping[str, Any]) -> Work:
    """A large matrix product, near to the most arithmetic that there is; counted in GFLOP."""
    size, precision = _MATRIX[device.type], options["precision"]
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        with float32_products(tf32=precision == "tf32"):
            torch.mm(a, b)

    return Work(multiply, 2e-9 * size**3)


def copy(device: torch.device, options: Mapping[str, Any]) -> Work:
    """A copy from memory to memory, counted in GB: each byte is read once and written once."""
    source = torch.ones(_BLOCK_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Work(lambda: target.copy_(source), 2e-9 * source.numel())


def description(device: torch.device) -> dict[str, Any]:
    """The machine and its libraries, without anything that names it."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": gpu,
        "cuda": torch.version.cuda,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _LIBRARIES},
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    names = Path("/proc/cpuinfo")
    if names.is_file():
        for line in names.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
