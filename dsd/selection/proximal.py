"""Frechet distances of saved images to a fixed reference, clean or noisy.

Proximal FID judges a generator without clean images: its samples are observed like the data,
through the same operator and with noise of the same level, and compared with the observations.
Both sides are as saved: samples are 8-bit before that, and re-noised samples and observations are
clamped to [-1, 1] and quantised alike. A reference is measured once for any number of sets, and
with a cache of features once for any number of runs.

Reference:
    Denoising Score Distillation (arXiv:2503.07578).
"""

from collections.abc import Sequence
from functools import partial
from typing import final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dsd.features.cache import FeatureCache
from dsd.features.extractor import Extractor, extract
from dsd.metrics.frechet import Moments, frechet_distance, moments, moments_of_batches
from dsd.metrics.intervals import FrechetEstimate, frechet_estimate
from dsd.operators.gaussian_noise import WHITE, GaussianNoise
from dsd.operators.operator import Operator
from dsd.utils.errors import DataError
from dsd.utils.images import from_uint8, to_uint8
from dsd.utils.random import derive_seed
from dsd.utils.shapes import AnyLevel, NoiseLevels, Pixels, as_levels

__all__ = ["FrechetReference", "ProximalReference", "choose", "measure", "observe_like", "renoise"]


def renoise(
    images: Pixels,
    sigma: AnyLevel | NoiseLevels,
    *,
    seed: int,
    operator: Operator | None = None,
    noise: GaussianNoise = WHITE,
) -> UInt8[Tensor, " b c v u"]:
    """Saved images as observations: with noise of level ``sigma``, clamped and quantised again.

    The noise (and view) of an image depends on ``seed`` and its position alone, not on the other
    images, the device or the global random state. With ``sigma`` 0 and no operator nothing
    changes.

    Args:
        images: Images.
        sigma: Level for each image or each of its pixels, or one for all.
        seed: Of the noise.
        operator: Operator of the observations; None for none.
        noise: Distribution of their noise.

    Raises:
        DataError: The images are not 8-bit.
    """
    x = from_uint8(images)
    v = x if operator is None else operator.mapped(x)
    seeds = [derive_seed(seed, "renoise", i) for i in range(len(v))]
    generators = [torch.Generator().manual_seed(each) for each in seeds]
    eps = torch.stack([noise.draw(v.shape[1:], g) for g in generators]).to(v.device)
    if not (isinstance(sigma, Tensor) and sigma.shape == v.shape):
        sigma = as_levels(sigma, v)[:, None, None, None]
    y = v + sigma.to(v) * eps
    if operator is not None and operator.views is not None:
        views = operator.views.of_images(derive_seed(seed, "renoise"), np.arange(len(y)))
        y = operator.project(y, views.to(y.device))
    return to_uint8(y)


def observe_like(
    images: Pixels,
    levels: Float[Tensor, " n"] | Float[Tensor, " n c v u"],
    *,
    seed: int,
    operator: Operator | None = None,
    noise: GaussianNoise = WHITE,
) -> UInt8[Tensor, " b c v u"]:
    """Generated images observed like the data, whose noise levels they take in turn.

    Args:
        images: Generated images.
        levels: Noise level of each observation or of its pixels; there may be more or fewer than
            images.
        seed: Of the noise.
        operator: Through which the data were observed; None if that is done to ``images`` already.
        noise: Distribution of the data's noise.
    """
    sigma = levels[torch.arange(len(images)) % len(levels)]
    return renoise(images, sigma, seed=seed, operator=operator, noise=noise)


def measure(extractor: Extractor, images: Pixels, *, batch_size: int) -> Moments:
    """Moments of the features of many images; features are held for one batch only."""
    batches = (
        extract(extractor, batch, batch_size=batch_size) for batch in images.split(batch_size)
    )
    return moments_of_batches(batches, protocol=extractor.protocol)


@final
class FrechetReference:
    """Images to compare others with, in one feature space.

    Args:
        images: The reference images, as saved.
        extractor: Makes the features of both sides.
        batch_size: Images in one pass through the extractor.
        cache: Of features, for the reference; None makes them again.

    Raises:
        DataError: There are fewer than 2 images, they are all alike, or the extractor refuses
            them.
    """

    def __init__(
        self,
        images: Pixels,
        extractor: Extractor,
        *,
        batch_size: int,
        cache: FeatureCache | None = None,
    ) -> None:
        self._extractor = extractor
        self._batch_size = batch_size
        self._shape = images.shape[1:]
        if len(images) > 1 and bool((images == images[:1]).all()):
            msg = (
                f"all {len(images)} reference images are the same, so no distance to them means "
                "anything; look at the data"
            )
            raise DataError(msg)
        if cache is None:
            self._moments = measure(extractor, images, batch_size=batch_size)
        else:
            features = cache.features(extractor, images, batch_size=batch_size)
            self._moments = moments(features, protocol=extractor.protocol)

    def distance(self, images: Pixels) -> float:
        """Frechet distance of ``images`` to the reference.

        Raises:
            DataError: The images have another size or other channels than the reference.
        """
        self._require_same_shape(images)
        generated = measure(self._extractor, images, batch_size=self._batch_size)
        return frechet_distance(generated, self._moments)

    def _require_same_shape(self, images: Pixels) -> None:
        found, wanted = (" x ".join(map(str, s)) for s in (images.shape[1:], self._shape))
        if found != wanted:
            msg = (
                f"images of {found} cannot be compared with a reference of "
                f"{wanted} (channels x height x width): an extractor's resizing would "
                "count as a difference; bring both to one size"
            )
            raise DataError(msg)

    def estimate(self, images: Pixels) -> FrechetEstimate:
        """The distance with its error, for which all features are kept; see :meth:`distance`."""
        self._require_same_shape(images)
        features = extract(self._extractor, images, batch_size=self._batch_size)
        return frechet_estimate(features, self._moments)


@final
class ProximalReference:
    """Noisy observations to compare generated clean images with.

    Args:
        observations: The noisy images, clamped and quantised by ``dsd.utils.images.to_uint8``.
        sigma: Their noise levels or those of their pixels, in data units.
        extractor: Makes the features of both sides.
        batch_size: Images in one pass through the extractor.
        seed: Of the noise put on generated images, the same for each set.
        cache: Of features, for the observations; None makes them again.
        noise: Distribution of the observations' noise.

    Raises:
        DataError: As for :class:`FrechetReference`.
    """

    def __init__(
        self,
        observations: Pixels,
        sigma: NoiseLevels,
        extractor: Extractor,
        *,
        batch_size: int,
        seed: int,
        cache: FeatureCache | None = None,
        noise: GaussianNoise = WHITE,
    ) -> None:
        self._reference = FrechetReference(
            observations, extractor, batch_size=batch_size, cache=cache
        )
        self._observed = partial(observe_like, levels=sigma, seed=seed, noise=noise)

    def distance(self, images: Pixels, *, operator: Operator | None = None) -> float:
        """Proximal distance of clean ``images``; see :func:`observe_like`."""
        return self._reference.distance(self._observed(images, operator=operator))

    def estimate(self, images: Pixels, *, operator: Operator | None = None) -> FrechetEstimate:
        """The same with its error."""
        return self._reference.estimate(self._observed(images, operator=operator))


def choose(distances: Sequence[float], standard_errors: Sequence[float]) -> int:
    """Position of the checkpoint to keep: the last within one standard error of the best.

    The least of many distances is partly luck, and late checkpoints have learned more.

    Args:
        distances: Of the checkpoints, in the order of training.
        standard_errors: Of the distances.

    Reference:
        Breiman et al. 1984, "Classification and regression trees", section 3.4.3: the rule of one
        standard error, there in favour of the smallest tree.
    """
    best = min(range(len(distances)), key=distances.__getitem__)
    limit = distances[best] + standard_errors[best]
    return max(at for at, distance in enumerate(distances) if distance <= limit)
