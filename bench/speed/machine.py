"""What the machine can do at most, and what it is."""

import os
import platform
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn import functional

from bench.speed.work import Work
from dsd.utils.precision import float32_products
from pipeline.planning.gauge import seconds_of

__all__ = ["description", "limits"]

_MATRIX = {"cpu": 1024, "cuda": 16384}
_IMAGES, _CHANNELS, _PIXELS = {"cpu": 2, "cuda": 256}, {"cpu": 256, "cuda": 512}, (32, 32)
"""Of a convolution, which some libraries compute faster than a product."""

_COPIED = {"cpu": (20, 22, 24, 26, 28), "cuda": (22, 25, 28, 31)}
"""Powers of two: bytes that a copy reads and writes in all, from what caches hold to much more."""

_LOTS, _LOT_SECONDS = 5, 0.01
"""How each of them is done in a turn: the fastest of some lots of this length, at least once."""

_LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "clean-fid", "dvc", "mlflow", "timm")


def limits(device: torch.device, options: Mapping[str, Any]) -> Work:
    """The fastest products and copies that there are, to be measured in turn with other things.

    Doing it finds operations a second by precision, and bytes a second by how many a copy moves.
    """
    precisions = options["precisions"]
    products = {name: (_product(device, name), _convolution(device, name)) for name in precisions}
    copies = {2**power: _copy(device, 2**power) for power in _COPIED[device.type]}

    def measure() -> dict[str, dict[str, float]]:
        flops = {
            name: max(count / _seconds(do, device) for count, do in works)
            for name, works in products.items()
        }
        bytes_ = {str(moved): moved / _seconds(do, device) for moved, do in copies.items()}
        return {"flops": flops, "copies": bytes_}

    return Work(measure, 1.0)


def _seconds(do: Callable[[], object], device: torch.device) -> float:
    """Of doing it once, at the best."""
    do()
    times = max(1, round(_LOT_SECONDS / seconds_of(do, device)))
    lot = partial(_repeat, do, times)
    return min(seconds_of(lot, device) for _ in range(_LOTS)) / times


def _repeat(do: Callable[[], object], times: int) -> None:
    for _ in range(times):
        do()


def _product(device: torch.device, precision: str) -> tuple[float, Callable[[], object]]:
    """Operations of a large matrix product, and how to do it."""
    size = _MATRIX[device.type]
    a, b = (torch.randn(size, size, device=device).to(_dtype(precision)) for _ in range(2))
    return 2.0 * size**3, partial(_exactly, precision, torch.mm, a, b)


def _convolution(device: torch.device, precision: str) -> tuple[float, Callable[[], object]]:
    """Operations of a convolution with many channels, and how to do it."""
    images, channels = _IMAGES[device.type], _CHANNELS[device.type]
    x, weight = (
        torch.randn(shape, device=device)
        .to(_dtype(precision))
        .contiguous(memory_format=torch.channels_last)
        for shape in ((images, channels, *_PIXELS), (channels, channels, 3, 3))
    )
    flops = 2.0 * 9 * channels**2 * images * prod(_PIXELS)
    return flops, partial(_exactly, precision, functional.conv2d, x, weight, padding=1)


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@torch.inference_mode()
def _exactly(precision: str, do: Callable[..., object], *values: object, **options: int) -> None:
    with float32_products(tf32=precision == "tf32"):
        do(*values, **options)


def _copy(device: torch.device, moved: int) -> Callable[[], object]:
    """A copy of half as many bytes, each of which is read once and written once."""
    source = torch.ones(moved // 2, dtype=torch.uint8, device=device)
    return partial(torch.empty_like(source).copy_, source)


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
