"""A small network for points instead of images: residual layers of one width.

It stands where the U-Net stands, inside :class:`dsd.model.denoiser.Denoiser`, so that losses,
training and samplers are the same for the paper's two-dimensional toys as for images.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsd.utils.shapes import Level, State

__all__ = ["MLP"]

_POSITION_FREQUENCIES = (1.0, 2.0, 4.0)
"""Of the waves that show the network each coordinate, per standard deviation of its input. Without
them it learns features much smaller than the data very slowly."""

_NOISE_FREQUENCIES = (0.5, 1.0, 2.0)
"""Of the waves that show the network ``c_noise``, per unit of it. From 0.002 to 80 that spans 2.6
units: waves as slow as these vary little also at levels below the data's noise, where the network
is not trained but is used by distillation."""


@final
class MLP(nn.Module):
    """Raw network ``F(x; c_noise)`` of the EDM preconditioning; each sample is treated alone.

    Args:
        dimensions: Numbers in one sample, whatever their layout.
        width: Features in each hidden layer.
        depth: Residual layers.
    """

    position_frequencies: Tensor
    noise_frequencies: Tensor

    def __init__(self, *, dimensions: int, width: int, depth: int) -> None:
        super().__init__()
        for name, values in (("position", _POSITION_FREQUENCIES), ("noise", _NOISE_FREQUENCIES)):
            self.register_buffer(f"{name}_frequencies", torch.tensor(values), persistent=False)
        self.stem = nn.Linear(dimensions * (1 + 2 * len(_POSITION_FREQUENCIES)), width)
        self.shift = nn.Linear(2 * len(_NOISE_FREQUENCIES), depth * width, bias=False)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, dimensions)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: State, c_noise: Level) -> State:
        """Raw output for scaled samples ``x`` and noise conditioning ``c_noise``."""
        position = x.flatten(1)
        waves = _waves(position, self.position_frequencies)
        h = self.stem(torch.cat([position, waves], dim=1))
        shifts = self.shift(_waves(c_noise[:, None], self.noise_frequencies))
        for layer, shift in zip(self.layers, shifts.chunk(len(self.layers), dim=1), strict=True):
            h = h + layer(functional.silu(h + shift))
        out: Tensor = self.head(functional.silu(h))
        return out.reshape(x.shape)


def _waves(values: Tensor, frequencies: Tensor) -> Tensor:
    angles = (values[:, :, None] * frequencies).flatten(1)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
