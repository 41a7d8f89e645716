"""Operators of every kind for small images."""

import torch
from pydantic import TypeAdapter

from dsd.operators.config import OperatorChoice
from dsd.operators.operator import Operator

CHOICES = {
    "identity": {"kind": "identity"},
    "mask": {"kind": "mask", "keep_prob": 0.4, "further_mask_prob": 0.1},
    "blur": {"kind": "blur", "std": 1.3, "radius": 3},
    "downsample": {"kind": "downsample", "factor": 2},
    "fourier": {"kind": "fourier", "acceleration": 3.0, "center": 0.1, "further_mask_prob": 0.2},
}

SHAPE = (2, 6, 8)


def choice(kind, **changes):
    return TypeAdapter(OperatorChoice).validate_python({**CHOICES[kind], **changes})


def operator(kind, shape=SHAPE, **changes):
    return Operator(choice(kind, **changes), shape)


def random(seed):
    return torch.Generator().manual_seed(seed)


def normal(shape, seed, count=3):
    return torch.randn(count, *shape, generator=random(seed), dtype=torch.float64)
