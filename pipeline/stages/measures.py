"""Measures of a set of images in one feature space."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, final

import torch
from jaxtyping import Int64
from torch import Tensor

from dsd.evaluation.inception_score import inception_score
from dsd.evaluation.kid import kernel_distance
from dsd.evaluation.precision_recall import Manifold, density_coverage, precision_recall
from dsd.features.cache import FeatureCache
from dsd.features.extractor import Extractor, extract
from dsd.features.fashion_classifier import FashionClassifier
from dsd.features.teacher import TeacherFeatures
from dsd.metrics.frechet import Moments, frechet_distance, moments
from dsd.metrics.intervals import frechet_estimate
from dsd.operators.gaussian_noise import WHITE, GaussianNoise
from dsd.operators.operator import Operator
from dsd.selection.proximal import observe_like
from dsd.utils.random import derive_seed
from dsd.utils.shapes import Features, Level, NoiseLevels, Pixels
from pipeline.stage_io.log import StageLog
from pipeline.stages.features import naming_key

if TYPE_CHECKING:
    from pipeline.params.model import Params

__all__ = [
    "EvaluationData",
    "FeatureSpaceEvaluator",
    "Measures",
    "Measuring",
    "published_statistics",
]

Measures: TypeAlias = dict[str, float | None]
"""Numbers by name; None where there is nothing to compare with."""

_TO_CLEAN = ("frechet", "kid", "precision", "recall", "density", "coverage")


class EvaluationData(NamedTuple):
    """The images that models are compared with."""

    clean: Pixels | None
    noisy: Pixels
    sigma: Level
    """Noise level of each of ``noisy``."""

    numbers: Int64[Tensor, " n"]
    """Number of each of ``noisy`` among the clean images."""

    heldout: Pixels
    """Noisy images on which nothing was trained."""

    heldout_sigma: Level
    operator: Operator
    """Through which the noisy images were observed."""

    noise: GaussianNoise = WHITE
    """Distribution of their noise."""

    levels: NoiseLevels | None = None
    """Noise levels of the pixels of ``noisy``; None for one level for each image."""

    heldout_levels: NoiseLevels | None = None
    """The same for ``heldout``."""

    is_complex: bool = False
    """Whether channels are real and imaginary parts."""

    def remaining_operator(self, model: str) -> Operator | None:
        """Operator that a model's images still need to be compared with noisy ones.

        Teachers of mapped images generate mapped images.
        """
        return self.operator if model == "generator" or self.operator.map is None else None


@final
class Measuring(AbstractContextManager["Measuring"]):
    """Says what is measured now, and how many images' features are computed.

    Args:
        log: Where it is said.
        planned: Images whose features are needed; those in the cache count at the end.
    """

    def __init__(self, log: StageLog, planned: int) -> None:
        self._log, self._planned, self._done = log, planned, 0
        self._progress = log.progress(planned)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the display, at 100 % unless something failed."""
        if kind is None:
            self._progress.update(self._planned)
        self._progress.__exit__(kind, error, trace)

    def now(self, what: str) -> None:
        """Print what is measured from now on."""
        self._log.say(f"measuring {what}")
        self._log.doing(f"measuring {what}")
        self._progress.update(self._done)

    def add(self, images: int) -> None:
        """Count images whose features were computed."""
        self._done = min(self._done + images, self._planned)
        self._progress.update(self._done)


@final
class _Counted:
    """An extractor that says after each batch how many images it had."""

    def __init__(self, extractor: Extractor, done: Callable[[int], None]) -> None:
        self.name, self.protocol = extractor.name, extractor.protocol
        self._extractor, self._done = extractor, done

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._extractor.device

    def __call__(self, images: Pixels) -> Features:
        """Features of a batch."""
        features = self._extractor(images)
        self._done(len(images))
        return features


@final
class FeatureSpaceEvaluator:
    """One feature space with the data in it.

    Args:
        extractor: Makes the features.
        data: Images to compare with.
        params: Seed, number of samples and batch size are read.
        cache: Of the data's features.
        published: Statistics of clean images, used if they are of this extractor's protocol.
        done: Called with the number of images of each batch whose features were computed.

    Raises:
        DataError: The extractor refuses the images.
    """

    def __init__(
        self,
        extractor: Extractor,
        data: EvaluationData,
        params: "Params",
        cache: FeatureCache,
        published: Moments | None = None,
        done: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.name, self.protocol = extractor.name, extractor.protocol
        self._extractor, self._data, self._cache = extractor, data, cache
        self._counted = _Counted(extractor, done)
        self._seed = derive_seed(params.seed, "evaluation noise")
        self._num_samples = params.evaluate.num_samples
        self._batch_size = params.run.eval_batch_size
        same = published is not None and published.protocol == self.protocol
        self._published = published if same else None
        self._noisy = self._cached(data.noisy)
        # The teacher's encoder knows noisy images only.
        images = None if isinstance(extractor, TeacherFeatures) else data.clean
        clean = None if images is None else self._cached(images)
        self._moments_noisy = self._moments(self._noisy)
        self._moments_clean = None if clean is None else self._moments(clean)
        # Equal numbers, on which shares depend, and pairs of images take time.
        self._some_clean = None if clean is None else Manifold(clean[: self._num_samples])

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about distances of as many images as are sampled."""
        return self._moments(self._noisy[: self._num_samples]).notes

    def measures(self, images: Pixels, operator: Operator | None) -> Measures:
        """All measures of saved images, which ``operator`` and noise make like the noisy ones."""
        data = self._data
        levels = data.sigma if data.levels is None else data.levels
        observed = observe_like(
            images,
            levels,
            seed=self._seed,
            operator=operator,
            noise=data.noise,
        )
        to_noisy = _frechet(self._features(observed), self._moments_noisy)
        near = {f"proximal_{name}": value for name, value in to_noisy.items()}
        return {**self._measures_to_clean(images), **near}

    def to_clean(self, images: Pixels) -> float | None:
        """Frechet distance to the clean images, if there are any and of the size of ``images``."""
        if self._moments_clean is None or not self._comparable(images):
            return None
        return frechet_distance(self._moments(self._features(images)), self._moments_clean)

    def to_heldout(self, images: Pixels) -> Measures:
        """Frechet distance of a generator's images, observed like them, to held-out noisy ones."""
        data = self._data
        heldout_levels = data.heldout_sigma
        if data.heldout_levels is not None:
            heldout_levels = data.heldout_levels
        observed = observe_like(
            images,
            heldout_levels,
            seed=self._seed,
            operator=data.operator,
            noise=data.noise,
        )
        features, reference = self._features(observed), self._moments(self._cached(data.heldout))
        found = frechet_estimate(features, reference)
        return {"frechet": found.value, "frechet_standard_error": found.standard_error}

    def measures_of_noisy(self) -> Measures:
        """Measures against clean images, of as many noisy images as are sampled."""
        return self._measures_to_clean(self._data.noisy, self._noisy[: self._num_samples])

    def _measures_to_clean(self, images: Pixels, features: Features | None = None) -> Measures:
        """Measures that need clean images; None for each where there are none of this size."""
        some, whole, published = self._some_clean, self._moments_clean, self._published
        if not self._comparable(images) or (whole is None and published is None):
            return dict.fromkeys(_TO_CLEAN)
        if features is None:
            features = self._features(images)
        elsewhere: Measures = {}
        if published is not None:
            elsewhere["frechet_published"] = frechet_distance(self._moments(features), published)
        if some is None or whole is None:
            return {**dict.fromkeys(_TO_CLEAN), **elsewhere}
        kid = kernel_distance(features, some.features, seed=self._seed)
        generated = Manifold(features)
        measured: Measures = {
            **_frechet(features, whole),
            "kid": kid.value,
            "kid_standard_error": kid.standard_error,
            **precision_recall(generated, some)._asdict(),
            **density_coverage(generated, some)._asdict(),
            **elsewhere,
        }
        if isinstance(self._extractor, FashionClassifier):
            probabilities = self._extractor.probabilities(features)
            measured["inception_score"] = inception_score(probabilities)
        return measured

    def _comparable(self, images: Pixels) -> bool:
        return images.shape[1:] == self._data.operator.shape

    def _features(self, images: Pixels) -> Features:
        return extract(self._counted, images, batch_size=self._batch_size)

    def _cached(self, images: Pixels) -> Features:
        return self._cache.features(self._counted, images, batch_size=self._batch_size)

    def _moments(self, features: Tensor) -> Moments:
        return moments(features, protocol=self.protocol)


def _frechet(features: Features, reference: Moments) -> Mapping[str, float]:
    """The distance and its error; with hardly more images than features there is no limit."""
    found = frechet_estimate(features, reference)
    measured = {"frechet": found.value, "frechet_standard_error": found.standard_error}
    if found.limit is None or found.interval is None:
        return measured
    return {
        **measured,
        "frechet_infinity": found.limit,
        "frechet_infinity_low": found.interval.low,
        "frechet_infinity_high": found.interval.high,
    }


def published_statistics(params: "Params") -> Moments | None:
    """The statistics of clean images that parameters name.

    Raises:
        DataError: The file cannot be read, or is for another feature space.
    """
    named = params.evaluate.published_statistics
    if named is None:
        return None
    from dsd.features.inception import load_published  # clean-fid takes seconds to import

    space, file = named
    with naming_key("evaluate.inception_statistics"):
        return load_published(file, space)
