"""How often the interval of a Frechet distance holds the truth, in features that are reported.

``OMP_NUM_THREADS=1 python -m bench.accuracy.intervals`` writes
``docs/results/intervals/coverage.csv``, row by row. The reference is the moments of the embedded
clothes in a feature space. The law at a distance d from it is that of features (1 - t) a + t b,
with a of a clothes image and b of the same with noise of sigma 0.5, and t so that the distance of
the law's moments is d: either these vectors themselves, drawn with replacement, or a Gaussian of
their mean and covariance.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsd.features.cache import FeatureCache
from dsd.features.extractor import load_extractor
from dsd.metrics.frechet import Moments, frechet_distance, moments
from dsd.metrics.intervals import FrechetEstimate, frechet_estimate
from dsd.utils.images import from_uint8, to_uint8
from sandbox import ROOT
from scripts.fit_fashion_classifier import SOURCE, labelled_images, split

TABLE = ROOT / "docs" / "results" / "intervals" / "coverage.csv"
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


class Row(NamedTuple):
    """One law and number of images; ``nan`` where there is no limit."""

    features: str
    law: str
    distance: float
    images: int
    trials: int
    plain: float
    """Mean of the measured distances, of which the bias is part."""

    limit: float
    """Mean of the distances of unlimited images."""

    deviation: float
    """Standard deviation of the measured distances."""

    standard_error: float
    """What is reported as that, mean."""

    half_width: float
    """Half of the interval's width, mean; it is cut at 0."""

    above: float
    """Share of trials in which the truth was above the interval."""

    below: float
    coverage: float
    coverage_of_expectation: float
    """Of plain distance +- 1.96 standard errors, of the mean of the plain distances."""

    seconds: float
    """Of processor time for one estimate."""


def main() -> None:
    """Write all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", help="only this feature space")
    parser.add_argument("--trials", type=int, help="instead of 200 and 20")
    parser.add_argument("--table", type=Path, default=TABLE)
    given = parser.parse_args()
    given.table.parent.mkdir(parents=True, exist_ok=True)
    with given.table.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        for study in STUDIES:
            if given.features in {None, study.features}:
                for row in rows(study._replace(trials=given.trials or study.trials)):
                    writer.writerow(f"{x:.4g}" if isinstance(x, float) else x for x in row)
                    file.flush()


def rows(study: Study) -> Iterator[Row]:
    """All rows of a feature space."""
    clean, noisy = _features(study)
    reference = moments(clean)
    for distance in study.distances:
        vectors = _at(distance, clean, noisy, reference)
        law = moments(vectors)
        for name in ("Gaussian", "features"):
            for count in study.counts:
                yield _row(study, name, distance, count, vectors, law, reference)


def _features(study: Study) -> tuple[Tensor, Tensor]:
    (images, _), _ = split(labelled_images(ROOT / SOURCE))
    images = images[: study.images]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    extractor = load_extractor(study.features, device=torch.device("cpu"))
    cache = FeatureCache(ROOT / ".dsd" / "cache" / "bench")
    clean, noisy = (
        cache.features(extractor, x, batch_size=500).double()
        for x in (images, to_uint8(from_uint8(images) + SIGMA * noise))
    )
    return clean, noisy


def _at(distance: float, clean: Tensor, noisy: Tensor, reference: Moments) -> Tensor:
    """Vectors between the two sets, at a distance from the first."""
    low, high = 0.0, 1.0
    for _ in range(25 if distance else 0):
        middle = (low + high) / 2
        near = frechet_distance(moments(clean.lerp(noisy, middle)), reference) < distance
        low, high = (middle, high) if near else (low, middle)
    return clean.lerp(noisy, low)


def _row(
    study: Study, name: str, distance: float, count: int, vectors: Tensor, law: Moments,
    reference: Moments,
) -> Row:  # fmt: skip
    truth = frechet_distance(law, reference)
    generator = torch.Generator().manual_seed(0)
    root = law.factor.matrix
    found: list[FrechetEstimate] = []
    seconds = 0.0
    for _ in range(study.trials):
        if name == "Gaussian":
            normal = torch.randn(count, root.shape[1], generator=generator, dtype=torch.float64)
            sample = normal @ root.T + law.mean
        else:
            sample = vectors[torch.randint(len(vectors), (count,), generator=generator)]
        started = time.process_time()
        found.append(frechet_estimate(sample, reference))
        seconds += time.process_time() - started
    values = np.array([one.value for one in found])
    errors = np.array([one.standard_error for one in found])
    ends = [(np.nan, np.nan) if one.interval is None else one.interval for one in found]
    lows, highs = np.array(ends).T
    # The true distance of a law to itself is a rounding error.
    above, below = truth > highs + 1e-9, truth < lows - 1e-9
    known = not np.isnan(lows).any()
    return Row(
        study.features, name, distance, count, study.trials, float(values.mean()),
        float(np.mean([np.nan if one.limit is None else one.limit for one in found])),
        float(values.std(ddof=1)), float(errors.mean()),
        float(np.mean(highs - lows) / 2),
        float(above.mean()) if known else np.nan, float(below.mean()) if known else np.nan,
        float(1 - above.mean() - below.mean()) if known else np.nan,
        float((abs(values - values.mean()) < 1.96 * errors).mean()),
        seconds / study.trials,
    )  # fmt: skip


if __name__ == "__main__":
    main()
