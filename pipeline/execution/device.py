"""Which device and arithmetic ``auto`` means on this machine."""

import torch

from dsd.training.compiled import missing_compiler
from dsd.utils.config import Precision
from dsd.utils.errors import ParamsError
from pipeline.params.config import Compute

__all__ = ["obstacle_to_compiling", "resolve_device", "resolve_precision"]


def resolve_device(compute: Compute) -> torch.device:
    """The device to compute on.

    Raises:
        ParamsError: A GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if compute.device == "cuda" and not available:
        msg = (
            "compute.device is cuda, but torch sees no GPU: use cpu or auto, ask the scheduler "
            "for one (sbatch --gres=gpu:1), or check the driver with `nvidia-smi`"
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


def obstacle_to_compiling(compute: Compute, device: torch.device) -> str | None:
    """Why a training is not compiled here, in words; None if it is.

    Raises:
        ParamsError: It has to be, and there is no compiler.
    """
    if compute.compile == "off":
        return "compute.compile is off"
    missing = missing_compiler(device)
    if compute.compile == "on" and missing is not None:
        msg = f"compute.compile is on, but {missing}: install it, or choose auto"
        raise ParamsError(msg)
    if compute.compile == "auto" and device.type != "cuda":
        return "compute.compile is auto, which compiles for GPUs only"
    return missing


def _has_tf32(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
