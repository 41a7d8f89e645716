"""Arithmetic of GPUs in float32 products: full, or the short one of their matrix units.

TF32 rounds the factors of matrix products and convolutions to 10 bits behind the point and adds up
in float32. PyTorch computes convolutions on GPUs that way unless it is told not to.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dsd.utils.config import Precision

__all__ = ["float32_products", "weight_layout"]


@contextmanager
def float32_products(*, tf32: bool, searched: bool = False) -> Iterator[None]:
    """Whether products of float32 tensors on GPUs may be computed in TF32, here and in gradients.

    Without ``tf32`` they are real float32. With ``searched`` cuDNN tries its algorithms for each
    shape once and keeps the fastest. What was allowed before is allowed again afterwards.
    """
    # Not ``fp32_precision``: torch before 2.9 lacks it, and where one operation has been set by
    # it, torch's own ``cudnn.flags`` and every library that asks ``allow_tf32`` fail.
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    cudnn.benchmark = searched
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def weight_layout(device: torch.device, precision: Precision) -> torch.memory_format:
    """Layout of the weights of convolutions that is fastest in training.

    Activations take that of the weights. Only matrix units and CPUs want channels last: cuDNN's
    convolutions in full float32 are made for the other one, which EDM's own code has.
    """
    whole = device.type == "cuda" and precision == "float32"
    return torch.contiguous_format if whole else torch.channels_last
