"""Models as plain functions of tensors in raw units, for other programs."""

from typing import final

import torch
from torch import Tensor, nn

from dsd.model.denoiser import AnyDenoiser
from dsd.model.generator import OneStepGenerator
from dsd.model.pictures import intensity_of
from dsd.operators.gaussian_noise import noise_under
from dsd.utils.intensity import Intensity

__all__ = ["ExportedDenoiser", "ExportedGenerator", "unit_of"]


def unit_of(intensity: Intensity) -> str:
    """Unit of an exported model's images: raw, unless a camera's map is no line."""
    return "raw" if intensity.camera is None else "data"


def _line(intensity: Intensity) -> tuple[float, float]:
    """Gain and offset from raw to data units; those of data units where these are kept."""
    if intensity.camera is not None:
        return 1.0, 0.0
    return intensity.scale, intensity.offset


@final
class ExportedGenerator(nn.Module):
    """Latents [n, c, h, w], standard normal, to images in raw units.

    Args:
        generator: The generator.
    """

    def __init__(self, generator: OneStepGenerator) -> None:
        super().__init__()
        self._denoiser = generator.denoiser
        self._level = generator.sigma_init
        self._gain, self._offset = _line(intensity_of(generator.denoiser))

    def forward(self, latents: Tensor) -> Tensor:
        """Images that are neither rounded nor clipped."""
        # In this way the number of images stays open in a traced graph.
        levels = torch.full_like(latents[:, 0, 0, 0], self._level)
        noise = noise_under(self._denoiser)
        if noise.kernel is not None:
            latents = noise.colour(latents)
        x: Tensor = self._denoiser(self._level * latents, levels)
        return (x - self._offset) / self._gain


@final
class ExportedDenoiser(nn.Module):
    """Noisy tiles [n, c, h, w] in raw units to tiles without noise.

    Args:
        denoiser: A teacher.
        sigma: Noise level in data units.
    """

    def __init__(self, denoiser: AnyDenoiser, sigma: float) -> None:
        super().__init__()
        self._denoiser = denoiser
        self._level = sigma
        self._gain, self._offset = _line(intensity_of(denoiser))

    def forward(self, noisy: Tensor) -> Tensor:
        """E[x0 | y]."""
        levels = torch.full_like(noisy[:, 0, 0, 0], self._level)
        x: Tensor = self._denoiser(noisy * self._gain + self._offset, levels)
        return (x - self._offset) / self._gain
