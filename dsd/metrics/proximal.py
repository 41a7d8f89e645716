"""Frechet distances of saved images to a fixed reference, clean or noisy.

Proximal FID judges a generator without clean images: its samples are observed like the data,
through the same operator and with noise of the same level, and compared with the observations.
Both sides are what a file would hold: samples are 8-bit before that, and re-noised samples and
observations are clamped to [-1, 1] and quantised alike. A reference is measured once, then used
for any number of sets.

Reference:
    Denoising Score Distillation (arXiv:2503.07578).
"""

from typing import final

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dsd.features import Extractor, extract
from dsd.images import from_uint8, to_uint8
from dsd.metrics.frechet import Moments, frechet_distance, moments_of_batches
from dsd.operators import Operator
from dsd.seeds import derive_seed
from dsd.shapes import Level, Pixels, State

__all__ = ["FrechetReference", "ProximalReference", "measure", "renoise"]


def renoise(
    images: Pixels, sigma: Level, *, seed: int, operator: Operator | None = None
) -> UInt8[Tensor, " b c v u"]:
    """Saved images as observations: with noise of level ``sigma``, clamped and quantised again.

    The noise (and view) of an image depends on ``seed`` and its position alone, not on the other
    images, the device or the global random state. With ``sigma`` 0 and no operator nothing
    changes.

    Args:
        images: Images.
        sigma: Level for each image.
        seed: Of the noise.
        operator: What is lost besides; None if nothing is.
    """
    x = from_uint8(images)
    v = x if operator is None else operator.mapped(x)
    eps = torch.stack([_noise(seed, i, v.shape[1:]) for i in range(len(v))]).to(v.device)
    y = v + sigma.to(v)[:, None, None, None] * eps
    if operator is not None and operator.views is not None:
        views = operator.views.of_images(derive_seed(seed, "renoise"), np.arange(len(y)))
        y = operator.project(y, views.to(y.device))
    return to_uint8(y)


def _noise(seed: int, index: int, shape: torch.Size) -> State:
    generator = torch.Generator().manual_seed(derive_seed(seed, "renoise", index))
    return torch.randn(shape, generator=generator)


def measure(extractor: Extractor, images: Pixels, *, batch_size: int) -> Moments:
    """Moments of the features of many images, without holding all features at once."""
    return moments_of_batches(
        extract(extractor, batch, batch_size=batch_size) for batch in images.split(batch_size)
    )


@final
class FrechetReference:
    """Images to compare others with, in one feature space.

    Args:
        images: The reference images, as saved.
        extractor: Makes the features of both sides.
        batch_size: Images that go through the extractor at once.
    """

    def __init__(self, images: Pixels, extractor: Extractor, *, batch_size: int) -> None:
        self._extractor = extractor
        self._batch_size = batch_size
        self._moments = measure(extractor, images, batch_size=batch_size)

    def distance(self, images: Pixels) -> float:
        """Frechet distance of ``images`` to the reference."""
        generated = measure(self._extractor, images, batch_size=self._batch_size)
        return frechet_distance(generated, self._moments)


@final
class ProximalReference:
    """Noisy observations to compare generated clean images with.

    Args:
        observations: The noisy images, clamped and quantised by ``dsd.images.to_uint8``.
        sigma: Their noise levels, in data units.
        extractor: Makes the features of both sides.
        batch_size: Images that go through the extractor at once.
        seed: Of the noise put on generated images, the same for each set.
    """

    def __init__(
        self,
        observations: Pixels,
        sigma: Level,
        extractor: Extractor,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._reference = FrechetReference(observations, extractor, batch_size=batch_size)
        self._sigma = sigma
        self._seed = seed

    def distance(self, images: Pixels, *, operator: Operator | None = None) -> float:
        """Proximal distance of clean ``images``, which take the observations' levels in turn.

        Args:
            images: Generated images.
            operator: Through which the data were observed; None if that is done to ``images``
                already.
        """
        sigma = self._sigma[torch.arange(len(images)) % len(self._sigma)]
        observed = renoise(images, sigma, seed=self._seed, operator=operator)
        return self._reference.distance(observed)
