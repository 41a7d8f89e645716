"""Projection of generated images onto the pixel range [-1, 1], for training.

Saved images are clamped, so that noise around exact black or white biases them inwards. A
generator that trains through the same clamp can make exact black: it only has to stay outside.
The gradient of a plain clamp vanishes there and would trap a pixel for ever. Here it passes
wherever a descent step leads back towards the range and is zero only where it would lead further
out, as in projected gradient descent.
"""

from typing import final

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from dsd.utils.shapes import State

__all__ = ["project_to_range"]


@final
class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        # The clamp alone would hide an infinite pixel.
        return x.clamp(-1, 1).masked_fill(x.isinf(), float("nan"))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        outwards = ((x > 1) & (gradient < 0)) | ((x < -1) & (gradient > 0))
        return gradient.masked_fill(outwards, 0)


def project_to_range(x: State) -> State:
    """``x`` clamped to [-1, 1]; an infinite pixel becomes NaN.

    Gradient:
        As of the identity, but zero where a step against it would move a pixel further outside.
    """
    projected: Tensor = _Projection.apply(x)
    return projected
