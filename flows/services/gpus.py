"""Which GPUs the workers of this machine share out."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from itertools import takewhile

from flows.services.supervisor import ServiceError

__all__ = ["gpus_of_workers"]

_GPU = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")
"""A number or a UUID. CUDA stops reading at anything else, such as SLURM's ``NoDevFiles``."""


def gpus_of_workers(wanted: str, each: int, environment: Mapping[str, str]) -> list[str]:
    """The GPUs of each worker, as ``CUDA_VISIBLE_DEVICES`` takes them; none for the CPU alone.

    Raises:
        ServiceError: ``wanted`` is neither, or more than there are, or not a multiple of ``each``.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    listed = [word.strip() for word in (visible or "").split(",")]
    there = _installed() if visible is None else [*takewhile(_GPU.fullmatch, listed)]
    count = len(there) if wanted == "auto" else int(wanted) if wanted.isdecimal() else -1
    if not 0 <= count <= len(there):
        msg = f"--gpus {wanted}: give auto, or a number up to {len(there)}, the GPUs visible here"
        raise ServiceError(msg)
    if each < 1 or count % each:
        msg = f"--gpus-per-worker {each}: {count} GPUs cannot be shared out like that"
        raise ServiceError(msg)
    return [",".join(there[i : i + each]) for i in range(0, count, each)]


def _installed() -> list[str]:
    """Indices of the NVIDIA GPUs of this machine, without importing torch."""
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], text=True, capture_output=True).stdout
    lines = [line for line in listing.splitlines() if line.startswith("GPU ")]
    return [str(index) for index, _ in enumerate(lines)]
