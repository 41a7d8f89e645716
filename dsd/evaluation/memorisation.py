r"""Does a generator repeat its training images? Asked at the noise level of the observations.

The score of a generated image g and an observation y_j is the log-likelihood ratio of y_j as a
noisy view of g and as any observation of the data, a matched filter:

    score(g, j) = log N(P_j A g, s_j^2)(y_j) - log N(mean, C + s_j^2)(y_j).

Where views differ from image to image, the second term is that of noise alone. Each generated
image has one best observation, the *match*, among training and held-out observations together. For
a generator that copies nothing, the number of held-out observations among the matches of highest
score is hypergeometric, exactly: whatever the images are, however often they repeat, and whether
the data are Gaussian. Too few of them mean copies.

Whether copies would be noticed is measured on the same images. Each is given noise like that of
the data; what counts is how many are matched with the observation made of them.

Reference:
    Meehan et al. 2020, "A non-parametric test to detect data-copying" (arXiv:2004.05675), for the
    comparison of training and held-out images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.stats import hypergeom
from torch import Tensor
from torch.nn import functional

from dsd.evaluation.neighbours import distance_chunks
from dsd.metrics.checks import require_count, require_same_space
from dsd.operators.gaussian_noise import WHITE, GaussianNoise
from dsd.operators.operator import Images, Operator, View
from dsd.storage.image_store import ImageStore
from dsd.utils.images import from_uint8
from dsd.utils.random import derive_seed
from dsd.utils.shapes import Level, Pixels

__all__ = ["ALARM", "Memorisation", "Observations", "memorisation"]

ALARM = 0.01
"""A p-value below it means copies."""

_METRIC = "a search for memorised images"
_SIZE = 16
"""Larger images are averaged down to about as many pixels a side, and their noise with them."""

_LEAST_LEVEL = 0.01
"""For observations without noise, about one grey level: a generator makes no exact copies."""

_TWINS = 0.04
"""Root mean square difference of images that are the same to the eye: 2 % of the range."""

_TOPS = (1, 4, 16)
"""The test looks at all matches, at the best quarter and at the best sixteenth."""

_SHARES = tuple(0.5**power for power in range(8))
"""Shares of copies that are tried out."""

_TRIALS, _NOTICED = 20, 16
"""How often each share is tried out, and how often it must be noticed."""

_PER_IMAGE = ("nearest", "scores")

_BLOCK = 500  # images at a time
_CHUNK_ENTRIES = 2**22  # scores at a time, 16 MiB


@final
@dataclass(frozen=True, eq=False)
class Observations:
    """Noisy observations as vectors, large ones averaged down."""

    values: Float[Tensor, " n d"]
    sigma: Level
    """Noise level of each; averaging lowers it."""

    seen: Float[Tensor, " n k"] | None
    """1 for each coefficient that was observed; None where all were."""

    @classmethod
    def of(cls, y: Images, sigma: Level, view: View | None) -> "Observations":
        """Observations in data units; ``view`` is what was observed, where that differs."""
        if view is None:
            return cls(_averaged(y), sigma / _factor(y), None)
        return cls(y.flatten(1), sigma, view.flatten(1).float())

    @classmethod
    def of_store(cls, store: ImageStore) -> "Observations":
        """All observations in a store of ``corrupt``."""
        operator, info = Operator.of_store(store.meta.info), store.meta.info
        numbers, sigma, parts = store.index, store.sigma, []
        for rows in torch.arange(len(store)).split(_BLOCK):
            y = store.take(rows)
            view = operator.stored_view(info, numbers[rows].numpy(), y)
            parts.append(cls.of(y, sigma[rows], view))
        return cls.joined(*parts)

    @classmethod
    def joined(cls, *parts: "Observations") -> "Observations":
        """All observations of several parts."""
        seen = [part.seen for part in parts if part.seen is not None]
        return cls(
            torch.cat([part.values for part in parts]),
            torch.cat([part.sigma for part in parts]),
            torch.cat(seen) if seen else None,
        )

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Int64[Tensor, " m"]) -> "Observations":
        seen = None if self.seen is None else self.seen[rows]
        return Observations(self.values[rows], self.sigma[rows], seen)


def _factor(x: Images) -> int:
    return max(1, min(x.shape[-2:]) // _SIZE)


def _averaged(x: Images) -> Float[Tensor, " n d"]:
    return functional.avg_pool2d(x, _factor(x)).flatten(1)


@final
@dataclass(frozen=True, eq=False)
class Memorisation:
    """How generated images match training observations, beside held-out ones."""

    nearest: Int64[Tensor, " n"]
    """For each generated image the training observation of highest score."""

    scores: Float[Tensor, " n"]
    """The score of each generated image's match, in nats."""

    p_value: float
    """Probability of so few held-out observations among the matches by chance: three times the
    least of three groups of matches, so it is valid and a little too large."""

    matched_training: float
    """Share of generated images whose match is a training observation."""

    by_chance: float
    """The same for a generator that copies nothing: the share of training observations."""

    recognised: float
    """Share of generated images whose own observation, made with noise of the data's level, has a
    higher score than their match: about half where images are copies."""

    noticed_from: float | None
    """Smallest share of copies, each of another training image, that gives a p-value below 1 % in
    8 of 10 cases; a power of 1/2, from 1 to 1/128. None if not even copies alone do."""

    repeated: float
    """Share of generated images that look the same as another one."""

    distinct: float | None
    """Inverse share of pairs that look the same: the number of equally frequent images that would
    repeat so often. None where there is no such pair."""

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if self.p_value < ALARM:
            return "generated images match training observations more often than held-out ones"
        if self.noticed_from is None:
            return "nothing can be said: at this noise level, with these numbers, no copy is seen"
        return f"none found; noticed would be copies from {self.noticed_from:.1%} of the images on"

    def summary(self) -> dict[str, object]:
        """The verdict and all numbers of the whole set."""
        numbers = {key: value for key, value in vars(self).items() if key not in _PER_IMAGE}
        return {"verdict": self.verdict, **numbers}

    def most_suspicious(self, count: int) -> Int64[Tensor, " c"]:
        """The generated images with the highest scores, highest first."""
        return self.scores.argsort(descending=True)[:count]


def memorisation(
    images: Pixels,
    training: Observations,
    heldout: Observations,
    *,
    operator: Operator,
    seed: int,
    noise: GaussianNoise = WHITE,
) -> Memorisation:
    """Search for generated images that match training observations too well.

    Args:
        images: Generated images, clean.
        training: Observations that the generator learned from.
        heldout: Observations drawn with them at random, from which nothing was learned.
        operator: Through which both were observed.
        seed: Of noise, and of the order of equals.
        noise: Distribution of the noise of both. Scores take it to be white, which keeps the
            p-value exact; what would be noticed is measured with the noise as it is.

    Raises:
        DataError: There are fewer than 2 images, no training or held-out observation, or images
            and observations differ in size.
    """
    require_count(len(images), at_least=2, metric=_METRIC)
    for part in (training, heldout):
        require_count(len(part), at_least=1, metric=_METRIC)
    generator = torch.Generator().manual_seed(derive_seed(seed, "memorisation"))
    # Equally good observations must not be taken in the order of training before held-out.
    order = torch.randperm(len(training) + len(heldout), generator=generator)
    pool, is_heldout = Observations.joined(training, heldout)[order], order >= len(training)
    vectors, made = [], []
    for block in images.split(_BLOCK):
        clean = from_uint8(block)
        level = pool.sigma[torch.randint(len(pool), (len(block),), generator=generator)]
        vectors.append(_vectors(clean, operator))
        made.append(_observed(clean, level, operator, generator, noise))
    require_same_space(vectors[0].values.shape[1], pool.values.shape[1])
    scorer = _Scorer(pool, Observations.joined(pool, *made))
    matches, scores, nearest = [], [], []
    for rows in chain.from_iterable(map(scorer.rows, vectors)):
        score, match = rows.max(dim=1)
        scores.append(score)
        matches.append(match)
        nearest.append(rows.masked_fill_(is_heldout, -torch.inf).argmax(dim=1))
    found = _Matches(torch.cat(matches), torch.cat(scores))
    planted = torch.cat([scorer.paired(*pair) for pair in zip(vectors, made, strict=True)])
    repeated, same_pairs = _same_share(images)
    return Memorisation(
        nearest=order[torch.cat(nearest)],
        scores=found.scores,
        matched_training=1 - float(is_heldout[found.indices].double().mean()),
        by_chance=len(training) / len(pool),
        p_value=found.p_value(is_heldout),
        recognised=float((planted > found.scores).double().mean()),
        noticed_from=_noticed_from(found, planted, is_heldout, generator),
        repeated=repeated,
        distinct=1 / same_pairs if same_pairs else None,
    )


def _observed(
    clean: Images,
    level: Level,
    operator: Operator,
    generator: torch.Generator,
    distribution: GaussianNoise = WHITE,
) -> Observations:
    """Images with the noise that leaves ``level`` in vectors, seen through the operator."""
    mapped = operator.mapped(clean)
    noise = distribution.draw(mapped.shape, generator)
    if operator.views is None:
        sigma = _factor(mapped) * level
        return Observations.of(mapped + sigma[:, None, None, None] * noise, sigma, None)
    view = operator.views.draw(len(clean), generator)
    y = operator.project(mapped + level[:, None, None, None] * noise, view)
    return Observations.of(y, level, view)


class _Vectors(NamedTuple):
    """Clean images as vectors, like observations without noise and view."""

    values: Float[Tensor, " n d"]
    squares: Float[Tensor, " n k"]
    """Squared length of the whole, or of the part that each number of a view shows."""


def _vectors(clean: Images, operator: Operator) -> _Vectors:
    mapped = operator.mapped(clean)
    if operator.views is None:
        values = _averaged(mapped)
        return _Vectors(values, values.square().sum(dim=1, keepdim=True))
    return _Vectors(mapped.flatten(1), operator.views.squares(mapped).flatten(1))


class _Terms(NamedTuple):
    """Terms of a score that depend on the observation alone; see :meth:`_Scorer.rows`."""

    weighted: Float[Tensor, " n d"]  # y / s^2
    seen: Float[Tensor, " n k"]  # seen / s^2
    offset: Float[Tensor, " n"]


@final
class _Scorer:
    """Scores of generated images and the observations in ``pool``.

    The covariance of the data is that of ``known``, all that will be scored: one that were left
    out would seem unlikelier than the others, so that images would be recognised too well.
    """

    def __init__(self, pool: Observations, known: Observations) -> None:
        if known.seen is None:
            self._mean = known.values.mean(dim=0)
            centred = known.values - self._mean
            values, self._basis = torch.linalg.eigh(centred.T @ centred / len(known))
            self._variances = (values - _level(known).square().mean()).clamp(min=0)
        self._pool = self._terms(pool)

    def rows(self, images: _Vectors) -> Iterator[Float[Tensor, " _ m"]]:
        """Scores of consecutive images with the whole pool."""
        weighted, seen, offset = self._pool
        size = max(1, _CHUNK_ENTRIES // len(offset))
        for values, squares in zip(*(x.split(size) for x in images), strict=True):
            yield torch.addmm(offset, values, weighted.T).addmm_(squares, seen.T, alpha=-0.5)

    def paired(self, images: _Vectors, observed: Observations) -> Float[Tensor, " n"]:
        """The score of each image with the observation of the same number."""
        weighted, seen, offset = self._terms(observed)
        return offset + (images.values * weighted).sum(dim=1) - (images.squares * seen).sum(1) / 2

    def _terms(self, y: Observations) -> _Terms:
        level = _level(y)
        precision = 1 / level.square()[:, None]
        squares = y.values.square().sum(dim=1) * precision[:, 0]
        if y.seen is not None:
            # The covariance under each view would be one more matrix to invert. Instead, squares
            # are compared with those of noise, one for each number that is seen.
            numbers = y.seen.sum(dim=1) * (y.values.shape[1] / y.seen.shape[1])
            return _Terms(y.values * precision, y.seen * precision, (numbers - squares) / 2)
        variances = self._variances + level.square()[:, None]
        principal = (y.values - self._mean) @ self._basis
        unlikely = (principal.square() / variances + (variances * precision).log()).sum(dim=1)
        return _Terms(y.values * precision, precision, (unlikely - squares) / 2)


def _level(y: Observations) -> Level:
    return y.sigma.clamp(min=_LEAST_LEVEL)


class _Matches(NamedTuple):
    """The best observation of each generated image."""

    indices: Int64[Tensor, " n"]
    scores: Float[Tensor, " n"]

    def p_value(self, is_heldout: Bool[Tensor, " m"]) -> float:
        """Of so few held-out ones among the observations that were matched best."""
        best = self.scores.new_full((len(is_heldout),), -torch.inf)
        best.scatter_reduce_(0, self.indices, self.scores, "amax")
        matched = best.isfinite().nonzero()[:, 0]
        found = is_heldout[matched[best[matched].argsort(descending=True)]].cumsum(dim=0)
        tops = np.array(sorted({max(1, len(matched) // part) for part in _TOPS}))
        heldout = int(is_heldout.sum())
        few = hypergeom.cdf(found.numpy()[tops - 1], len(is_heldout), heldout, tops)
        return min(1.0, len(tops) * float(np.min(few)))


def _noticed_from(
    found: _Matches,
    planted: Float[Tensor, " n"],
    is_heldout: Bool[Tensor, " m"],
    generator: torch.Generator,
) -> float | None:
    """Replace matches by copies, in halving shares, while that is noticed.

    Which other observations are held out is drawn at random, as if nothing else had been copied.
    """
    least = None
    # Each copy's observation takes part in training.
    copies = torch.arange(len(planted)) + len(is_heldout)
    added = torch.zeros(len(planted), dtype=torch.bool)
    for share in _SHARES:
        count = round(share * len(planted))
        noticed = 0
        for _ in range(_TRIALS):
            chosen = torch.randperm(len(planted), generator=generator)[:count]
            labels = is_heldout[torch.randperm(len(is_heldout), generator=generator)]
            scores, indices = found.scores.clone(), found.indices.clone()
            better = chosen[planted[chosen] > scores[chosen]]
            scores[better], indices[better] = planted[better], copies[better]
            trial = _Matches(indices, scores).p_value(torch.cat([labels, added]))
            noticed += trial < ALARM
        if not count or noticed < _NOTICED:
            break
        least = share
    return least


def _same_share(images: Pixels) -> tuple[float, float]:
    """Shares of images, and of pairs of images, that look the same."""
    vectors = torch.cat([_averaged(from_uint8(block)).double() for block in images.split(_BLOCK)])
    radius = _TWINS * vectors.shape[1] ** 0.5
    twins = torch.cat([(row < radius).sum(dim=1) for row in distance_chunks(vectors, vectors)]) - 1
    count = len(images)
    return float((twins > 0).double().mean()), int(twins.sum()) / (count * (count - 1))
