"""Which device and arithmetic ``auto`` means on this machine."""

from typing import Literal

import torch

from dsd.config import Compute
from dsd.errors import ParamsError

__all__ = ["resolve_device", "resolve_precision"]


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


def resolve_precision(compute: Compute, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Arithmetic inside networks while training.

    ``auto`` takes bfloat16 on GPUs that have it and float32 on CPUs, where it was measured slower
    without matrix units (docs/performance.md).
    """
    if compute.precision != "auto":
        return compute.precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"
