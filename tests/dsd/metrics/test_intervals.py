"""Gaussians and scale mixtures, whose distance without sampling is known; twins in numpy."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from dsd.metrics.frechet import Moments, moments
from dsd.metrics.intervals import frechet_estimate, sum_of_roots


def problem(dim, distance, *, heavy=False):
    """A reference with a decaying spectrum, a sampler at a distance from it, the distance."""
    variances = np.geomspace(3, 0.03, dim)
    reference = Moments(
        torch.zeros(dim, dtype=torch.float64), torch.from_numpy(np.diag(variances)), None
    )
    # Half of the distance is the mean's, half that of all deviations, by one factor.
    shift = (distance / 2 / dim) ** 0.5
    scale = 1 + (distance / 2 / variances.sum()) ** 0.5

    def sample(seed, count):
        random = np.random.default_rng(seed)
        x = random.standard_normal((count, dim)) * np.sqrt(variances)
        if heavy:  # each image at its own scale, of mean square 1
            x *= np.sqrt(random.choice([0.4, 1.6], (count, 1)))
        return torch.from_numpy(scale * x + shift)

    return reference, sample, distance


@cache
def estimates(dim, distance, count, trials=400, heavy=False):
    reference, sample, _ = problem(dim, distance, heavy=heavy)
    return [frechet_estimate(sample(seed, count), reference) for seed in range(trials)]


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize(("distance", "count"), [(0.3, 400), (3.0, 400)])
def test_the_interval_holds_the_truth_as_often_as_it_says(distance, count, heavy):
    """About 2.5 % on each side: a one-sided interval, or one of 90 or 99 %, is another."""
    ends = [one.interval for one in estimates(4, distance, count, heavy=heavy)]
    above = np.mean([distance > one.high for one in ends])
    below = np.mean([distance < one.low for one in ends])
    assert 0.92 <= 1 - above - below <= 0.985
    assert min(above, below) > 0


@pytest.mark.parametrize(("count", "heavy"), [(60, False), (400, False), (60, True)])
def test_where_there_is_no_distance_the_interval_starts_at_zero(count, heavy):
    """And holds it; the widest misses would be above, because a limit cannot be below 0."""
    ends = [one.interval for one in estimates(4, 0.0, count, heavy=heavy)]
    held = np.mean([one.low == 0 for one in ends])
    assert held >= 0.93
    assert np.mean([one.high for one in ends]) < 40 / count


@pytest.mark.parametrize(("distance", "count"), [(0.0, 60), (0.0, 400), (0.3, 60), (3.0, 60)])
def test_the_standard_error_is_the_spread_over_samples(distance, count):
    """At no distance only the second order varies."""
    found = estimates(4, distance, count)
    spread = np.std([one.value for one in found])
    error = np.mean([one.standard_error**2 for one in found]) ** 0.5
    assert distance > 0 or min(one.standard_error for one in found) > 0.4 * spread
    # Known to 4 %, or 10 % where few directions matter; chance never makes the second order less.
    assert 0.85 * spread < error < (1.8 if distance == 0 else 1.2) * spread


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("distance", [0.0, 1.0])
def test_the_limit_has_no_bias_where_the_plain_distance_has_a_large_one(distance, heavy):
    """20 features, 100 images: no line in 1 / n, and the covariance of heavy tails is worse."""
    found = estimates(20, distance, 100, trials=100, heavy=heavy)
    limits, values = (np.array([getattr(one, n) for one in found]) for n in ("limit", "value"))
    bias = values.mean() - distance
    assert bias > 0.2
    assert abs(limits.mean() - distance) < 0.15 * bias
    if heavy and distance == 0:
        # The part of the bias that is known to first order only makes the interval wider.
        wider = [(one.interval.high - one.limit) / one.standard_error for one in found]
        assert np.mean(wider) > 4.7  # 4.4 without


def test_too_few_images_have_a_standard_error_but_no_limit():
    reference, sample, _ = problem(20, 1.0)
    found = frechet_estimate(sample(0, 25), reference)
    assert found.limit is found.interval is None
    assert found.standard_error > 0
    assert frechet_estimate(sample(0, 26), reference).limit is not None


def plain(mean, cov, reference):
    """The distance by a root of a matrix."""
    root = sqrtm(cov @ reference.cov.numpy()).real
    shift = mean - reference.mean.numpy()
    return shift @ shift + np.trace(cov) + float(reference.cov.trace()) - 2 * np.trace(root)


def test_the_standard_error_is_that_of_the_derivatives():
    """First and second ones by differences, of three images, which make three pairs."""
    random = np.random.default_rng(5)
    a = random.standard_normal((2, 2))
    reference = Moments(torch.zeros(2).double(), torch.from_numpy(a @ a.T), None)
    x = random.standard_normal((3, 2)) * 3
    mean, cov = x.mean(0), np.cov(x.T)
    moved = [(one - mean, np.outer(one - mean, one - mean) - cov) for one in x]

    def at(steps):
        """With weights moved; the covariance is about the moved mean, in cross terms."""
        m, s = mean.copy(), cov.copy()
        for step, (dm, ds) in zip(steps, moved, strict=True):
            m, s = m + step * dm, s + step * ds
        for i in range(3):
            for j in range(3):
                if i != j:
                    s = s - steps[i] * steps[j] * np.outer(moved[i][0], moved[j][0])
        return plain(m, s, reference)

    e, unit = 1e-4, np.eye(3)
    psi = [(at(e * u) - at(-e * u)) / (2 * e) for u in unit]
    h = [
        (at(e * (u + v)) - at(e * (u - v)) - at(e * (v - u)) + at(-e * (u + v))) / (8 * e**2)
        for u, v in ((unit[0], unit[1]), (unit[1], unit[2]), (unit[2], unit[0]))
    ]
    second = 2 * np.mean(np.square(h)) / 9
    expected = max(np.var(psi, ddof=1) / 3 - second, second) ** 0.5
    found = frechet_estimate(torch.from_numpy(x), reference).standard_error
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_sum_of_roots_is_that_of_the_true_eigenvalues():
    """And exact without sampling; for one eigenvalue it is the unbiased estimate, nearly."""
    random = np.random.default_rng(0)
    truth = np.geomspace(1, 1e-4, 80)
    found, naive = [], []
    for _ in range(20):
        x = random.standard_normal((121, 80)) * np.sqrt(truth)
        values = np.linalg.eigvalsh(np.cov(x.T))
        found.append(sum_of_roots(values, 120))
        naive.append(np.sqrt(values).sum())
    missed = [abs(np.mean(sums) - np.sqrt(truth).sum()) for sums in (found, naive)]
    assert missed[1] > 5 * missed[0]
    assert np.mean(found) == pytest.approx(np.sqrt(truth).sum(), rel=0.01)
    assert sum_of_roots(truth, 10**7) == pytest.approx(np.sqrt(truth).sum(), rel=1e-5)


def test_the_integral_is_that_of_a_fine_grid():
    """By its definition in another way: t instead of angles, midpoints, 20,000 of them."""
    values, freedom = np.array([0.5, 1.0, 4.0]), 6
    roots = np.sqrt(values)
    zeros = np.linalg.eigvalsh(np.diag(values) - np.outer(roots, roots) / freedom)
    total = 0.0
    for low, high in zip(zeros, values, strict=True):
        edges = low + (high - low) * np.linspace(0, 1, 20_001)
        t = (edges[1:] + edges[:-1]) / 2
        m = np.abs((t[:, None] - zeros).prod(1) / (t[:, None] - values).prod(1) / t)
        total += (np.sqrt(m) * np.diff(edges)).sum()
    assert sum_of_roots(values, freedom) == pytest.approx(2 * freedom / np.pi * total, rel=5e-3)


def test_features_that_never_vary_and_constant_references_are_no_trouble():
    reference, sample, _ = problem(4, 0.3)
    x = sample(0, 100)
    wide = torch.cat([x, torch.ones(100, 2)], dim=1)
    cov = torch.block_diag(reference.cov, torch.zeros(2, 2).double())
    same = frechet_estimate(wide, Moments(torch.cat([reference.mean, torch.ones(2)]), cov, None))
    assert same[:3] == pytest.approx(frechet_estimate(x, reference)[:3], rel=1e-6)
    point = frechet_estimate(x, moments(torch.ones(30, 4).double()))
    psi = 2 * (x - x.mean(0)) @ (x.mean(0) - 1) + (x - x.mean(0)).square().sum(1)
    assert point.standard_error == pytest.approx(float(psi.std() / 10), rel=1e-9)
    assert point.limit == pytest.approx(point.value - float(x.var(0).sum()) / 100)
