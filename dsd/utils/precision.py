"""Arithmetic of GPUs in float32 products: full, or the short one of their matrix units.

TF32 rounds the factors of matrix products and convolutions to 10 bits behind the point and adds up
in float32. PyTorch computes convolutions on GPUs that way unless it is told not to.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["float32_products"]


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Whether products of float32 tensors on GPUs may be computed in TF32, here and in gradients.

    Without ``tf32`` they are real float32. What was allowed before is allowed again afterwards.
    """
    # Not ``fp32_precision``: torch before 2.9 lacks it, and where one operation has been set by
    # it, torch's own ``cudnn.flags`` and every library that asks ``allow_tf32`` fail.
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
