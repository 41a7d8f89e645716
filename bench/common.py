"""What the studies share: clean images, cached features, tables, and where results come from."""

import csv
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from dsd.features.cache import FeatureCache
from dsd.features.extractor import load_extractor
from dsd.sources.reader import Reader, find_images
from dsd.utils.images import from_uint8, to_uint8
from dsd.utils.shapes import Pixels
from pipeline.runtime.launch import NullLog
from pipeline.runtime.signals import StopSignal
from pipeline.tracking.provenance import commit_of, is_dirty
from sandbox import ROOT

__all__ = [
    "CPU", "EMBEDDED", "RESULTS", "cached_features", "clothes", "description", "images_of",
    "markdown", "noised", "origin", "silent_log", "write_rows",
]  # fmt: skip

RESULTS = ROOT / "docs" / "results"
EMBEDDED = ROOT / "data" / "embedded" / "fashion-mnist.parquet"
CPU = torch.device("cpu")
_LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "clean-fid", "dvc", "mlflow", "timm")


def images_of(path: Path, *, count: int, pad: int = 0, resolution: int | None = None) -> Pixels:
    """The first images of a Parquet file, as stage ``prepare`` makes them."""
    source = find_images("parquet", path, None)
    reader = Reader(source, pad=pad, resolution=resolution, on_error="raise", max_images=count)
    return torch.from_numpy(np.concatenate([*reader.blocks()]))


def clothes() -> Pixels:
    """The embedded clothes on which the fashion-classifier was trained."""
    from scripts.fit_fashion_classifier import labelled_images, split

    return split(labelled_images(EMBEDDED))[0][0]


def noised(images: Pixels, sigma: float) -> Pixels:
    """Images with noise of one seed, as 8-bit numbers."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return to_uint8(from_uint8(images) + sigma * noise)


def cached_features(space: str, images: Pixels) -> Tensor:
    """Features [n, d], kept in ``.dsd/cache``."""
    cache = FeatureCache(ROOT / ".dsd" / "cache" / "bench")
    return cache.features(load_extractor(space, device=CPU), images, batch_size=500)


def silent_log() -> NullLog:
    """A log for stages that run outside of the pipeline."""
    return NullLog(StopSignal())


def write_rows(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows with the same keys as CSV."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], rule: str = "---") -> str:
    """A table; ``rule`` aligns all columns but the first."""
    lines = [head, ["---", *[rule] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def origin(device: torch.device = CPU) -> dict[str, Any]:
    """Where and when results come from that begin now."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit_of(ROOT),
        "dirty": is_dirty(ROOT),
        "machine": description(device),
    }


def description(device: torch.device) -> dict[str, Any]:
    """Processor, GPU, memory and versions, without anything that names the machine."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _LIBRARIES},
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.is_file() else []
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor())


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
