"""Two small feature spaces, as users write them (``tiny_features:rough``), and in numpy."""

import numpy as np
import torch
from torch import nn

DIMS = {"rough": 10, "fine": 4}


def _matrix(kind, size):
    """Fixed random projections of all pixels, [size, d]."""
    return np.random.default_rng(DIMS[kind]).standard_normal((size, DIMS[kind])) / np.sqrt(size)


def features_of(kind, pixels):
    """Features of 8-bit images [n, c, h, w] in float64."""
    x = np.asarray(pixels, dtype=np.float64).reshape(len(pixels), -1) / 127.5 - 1
    return np.tanh(3 * x @ _matrix(kind, x.shape[1]))


class _Projections(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, images):
        x = images.flatten(1).double() / 127.5 - 1
        return torch.tanh(3 * x @ torch.from_numpy(_matrix(self.kind, x.shape[1])).to(x))


def rough(device):
    return _Projections("rough")


def fine(device):
    return _Projections("fine")
