"""Features of the teacher itself, which was fitted to noisy images alone.

Its features need neither clean nor foreign images. They come from every resolution, because a
checkpoint may be wrong in fine or in coarse structure, and are averaged over space like the last
layer of a classifier.
"""

from pathlib import Path
from typing import final

import torch

from dsd.model.checkpoint import load_denoiser, read_spec
from dsd.model.denoiser import AnyDenoiser
from dsd.utils.images import from_uint8
from dsd.utils.shapes import Features, Pixels

__all__ = ["LEAST_SIGMA", "TeacherFeatures", "load_teacher_features"]

LEAST_SIGMA = 0.002
"""Level at which images without noise are encoded: EDM's lowest."""


@final
class TeacherFeatures:
    """Mean over space of the encoder's resolutions and of the bottleneck, at one noise level.

    Args:
        denoiser: The teacher, in evaluation mode.
        sigma: Noise level of the images, in data units.
        weights: Hash of the teacher's weights.

    Reference:
        Kynkaanniemi et al. 2019 (arXiv:1904.06991) and others compare images by activations of
        networks; activations of denoisers as representations: Baranchuk et al. 2022
        (arXiv:2112.03126).
    """

    name = "teacher"

    def __init__(self, denoiser: AnyDenoiser, sigma: float, *, weights: str) -> None:
        self._denoiser = denoiser
        self._sigma = max(sigma, LEAST_SIGMA)
        self.protocol = (
            f"teacher {weights[:16]}, means over space of encoder and bottleneck, "
            f"level {self._sigma:g}"
        )

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return next(self._denoiser.parameters()).device

    def __call__(self, images: Pixels) -> Features:
        """Features of 8-bit images as noisy as the data, of the teacher's shape."""
        sigma = torch.full((len(images),), self._sigma, device=images.device)
        levels = self._denoiser.encode(from_uint8(images), sigma)
        return torch.cat([h.float().mean(dim=(2, 3)) for h in levels], dim=1)


def load_teacher_features(folder: Path, *, sigma: float, device: torch.device) -> TeacherFeatures:
    """Features of the teacher in a model folder, for images of the noise level ``sigma``.

    Raises:
        DataError: The model is missing or damaged.
    """
    weights = read_spec(folder).weights_sha256
    return TeacherFeatures(load_denoiser(folder, device), sigma, weights=weights)
