"""How often the interval of a Frechet distance holds the truth, in features that are reported.

``OMP_NUM_THREADS=1 python -m bench.accuracy.intervals`` writes
``docs/results/intervals/coverage.csv``. The reference is the moments of the embedded clothes in a
feature space. The distribution at a distance d from it is that of features (1 - t) a + t b, with a
of a clothes image and b of the same with noise of sigma 0.5, and t so that the distance of its
moments is d: either these vectors themselves, drawn with replacement, or a Gaussian of their mean
and covariance.

Columns: ``plain`` is the mean of the measured distances, of which the bias is part; ``limit`` that
of the distances of unlimited images; ``deviation`` their standard deviation, ``standard_error``
what is reported as that; ``half_width`` of the interval, which is cut at 0; ``above`` and
``below`` the share of trials in which the truth was outside; ``coverage_of_expectation`` that of
plain distance +- 1.96 standard errors of the mean of the plain distances; ``seconds`` of processor
time for one estimate.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.common import RESULTS, cached_features, clothes, noised, write_rows
from dsd.metrics.frechet import Moments, frechet_distance, moments
from dsd.metrics.intervals import frechet_estimate

SIGMA = 0.5


class Study(NamedTuple):
    """What is simulated in one feature space."""

    features: str
    images: int
    distances: tuple[float, ...]
    counts: tuple[int, ...]
    trials: int


STUDIES = (
    Study("fashion-classifier", 18_000, (0, 0.1, 0.3, 1, 3), (640, 1280, 2000, 4000), 200),
    Study("efficientnet-lite0", 9_000, (0, 50, 500), (1000, 2000, 4000, 12_800), 20),
)


def rows(study: Study) -> Iterator[dict[str, object]]:
    """All rows of a feature space."""
    images = clothes()[: study.images]
    clean, noisy = (
        cached_features(study.features, x).double() for x in (images, noised(images, SIGMA))
    )
    reference = moments(clean)
    for distance in study.distances:
        vectors = _at(distance, clean, noisy, reference)
        for law, count in product(("Gaussian", "features"), study.counts):
            head = {"features": study.features, "law": law, "distance": distance, "images": count}
            found = _coverage(study.trials, law, count, vectors, reference)
            yield {**head, "trials": study.trials, **{k: f"{x:.4g}" for k, x in found.items()}}


def _at(distance: float, clean: Tensor, noisy: Tensor, reference: Moments) -> Tensor:
    """Vectors between the two sets, at a distance from the first."""
    low, high = 0.0, 1.0
    for _ in range(25 if distance else 0):
        middle = (low + high) / 2
        near = frechet_distance(moments(clean.lerp(noisy, middle)), reference) < distance
        low, high = (middle, high) if near else (low, middle)
    return clean.lerp(noisy, low)


def _coverage(
    trials: int, law: str, count: int, vectors: Tensor, reference: Moments
) -> dict[str, float]:
    own = moments(vectors)
    truth, root = frechet_distance(own, reference), own.factor.matrix
    generator = torch.Generator().manual_seed(0)
    found, seconds = [], 0.0
    for _ in range(trials):
        if law == "Gaussian":
            normal = torch.randn(count, root.shape[1], generator=generator, dtype=torch.float64)
            sample = normal @ root.T + own.mean
        else:
            sample = vectors[torch.randint(len(vectors), (count,), generator=generator)]
        started = time.process_time()
        found.append(frechet_estimate(sample, reference))
        seconds += time.process_time() - started
    values = np.array([one.value for one in found])
    errors = np.array([one.standard_error for one in found])
    ends = [(np.nan, np.nan) if one.interval is None else one.interval for one in found]
    lows, highs = np.array(ends).T
    # The true distance of a distribution to itself is a rounding error.
    above, below = float((truth > highs + 1e-9).mean()), float((truth < lows - 1e-9).mean())
    unknown = np.nan if np.isnan(lows).any() else 0.0
    return {
        "plain": float(values.mean()),
        "limit": float(np.mean([np.nan if one.limit is None else one.limit for one in found])),
        "deviation": float(values.std(ddof=1)),
        "standard_error": float(errors.mean()),
        "half_width": float(np.mean(highs - lows) / 2),
        "above": above + unknown,
        "below": below + unknown,
        "coverage": 1 - above - below + unknown,
        "coverage_of_expectation": float((abs(values - values.mean()) < 1.96 * errors).mean()),
        "seconds": seconds / trials,
    }


def main() -> None:
    """Write the table after each row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--features", help="only this feature space")
    parser.add_argument("--trials", type=int, help="instead of 200 and 20")
    parser.add_argument("--table", type=Path, default=RESULTS / "intervals" / "coverage.csv")
    given = parser.parse_args()
    found = []
    for study in STUDIES:
        if given.features in {None, study.features}:
            for row in rows(study._replace(trials=given.trials or study.trials)):
                found.append(row)
                write_rows(given.table, found)


if __name__ == "__main__":
    main()
