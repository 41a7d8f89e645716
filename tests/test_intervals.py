"""Gaussians, whose distance without sampling is known."""

from functools import cache

import numpy as np
import pytest
import torch

from dsd.errors import DataError
from dsd.metrics.frechet import Moments, frechet_distance, moments
from dsd.metrics.intervals import (
    frechet_at_infinity,
    frechet_interval,
    frechet_standard_error,
)

DIM = 4
REFERENCE = Moments(
    torch.zeros(DIM, dtype=torch.float64), torch.eye(DIM, dtype=torch.float64), None
)
MEAN, STD = 0.1, torch.linspace(0.7, 1.2, DIM, dtype=torch.float64)
TRUTH = DIM * MEAN**2 + float((STD - 1).square().sum())


def sample(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, dtype=torch.float64, generator=generator) * STD + MEAN


def plain(features):
    return frechet_distance(moments(features), REFERENCE)


@cache
def plain_values(count):
    return np.array([plain(sample(seed, count)) for seed in range(300)])


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """At 60 images the plain distance is 40 % too large; percentiles would hold the truth less."""
    trials = 50
    found = [
        frechet_interval(sample(seed, 60), REFERENCE, seed=seed, num_resamples=50, level=0.9)
        for seed in range(trials)
    ]
    held = np.mean([one.low <= TRUTH <= one.high for one in found])
    # Two binomial deviations of 90 % of 50 trials are 8.5 %.
    assert held == pytest.approx(0.9, abs=0.1)
    assert plain_values(60).mean() > 1.25 * TRUTH
    assert np.mean([(one.low + one.high) / 2 for one in found]) < plain_values(60).mean()


def test_the_interval_shrinks_like_the_root_of_the_number_of_images():
    few, many = (
        frechet_interval(sample(1, count), REFERENCE, seed=2, num_resamples=200)
        for count in (400, 6400)
    )
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.3)
    assert many.low < TRUTH < many.high


def test_a_wider_level_is_a_wider_interval_and_seeds_repeat():
    x = sample(0, 200)
    narrow, wide = (
        frechet_interval(x, REFERENCE, seed=5, num_resamples=50, level=level)
        for level in (0.5, 0.95)
    )
    assert wide.low < narrow.low < narrow.high < wide.high
    again = frechet_interval(x, REFERENCE, seed=5, num_resamples=50, level=0.5)
    assert again == narrow
    assert frechet_interval(x, REFERENCE, seed=6, num_resamples=50, level=0.5) != narrow


def test_a_reference_that_does_not_vary_leaves_the_error_of_the_mean():
    alike = moments(torch.ones(30, 4).double())
    x = sample(0, 400)[:, :4]
    psi = 2 * (x - x.mean(0)) @ (x.mean(0) - 1) + (x - x.mean(0)).square().sum(1)
    expected = float(psi.std() / 400**0.5)
    assert frechet_standard_error(x, alike) == pytest.approx(expected, rel=1e-9)


def test_the_interval_of_no_distance_starts_at_zero():
    x = sample(0, 60)
    assert frechet_interval(x, moments(x), seed=0, num_resamples=20).low == 0


@pytest.mark.parametrize("count", [100, 1000])
def test_the_standard_error_is_the_spread_over_samples(count):
    errors = [frechet_standard_error(sample(seed, count), REFERENCE) for seed in range(50)]
    # The spread of 300 samples is known to 4 %.
    assert np.mean(errors) == pytest.approx(plain_values(count).std(), rel=0.15)


def test_the_standard_error_is_that_of_leaving_images_out():
    """The jackknife, which knows nothing of derivatives, on singular features too."""
    x = torch.cat([sample(3, 200), sample(3, 200)[:, :1] * 2], dim=1)
    reference = moments(torch.cat([sample(4, 90) * 1.3, sample(5, 90)[:, :1]], dim=1))
    left_out = [
        frechet_distance(moments(torch.cat([x[:i], x[i + 1 :]])), reference) for i in range(len(x))
    ]
    jackknife = np.std(left_out) * (len(x) - 1) / len(x) ** 0.5
    assert frechet_standard_error(x, reference) == pytest.approx(jackknife, rel=0.03)


def test_extrapolation_removes_the_bias():
    count = 60
    values = np.array(
        [
            frechet_at_infinity(sample(seed, count), REFERENCE, seed=seed).value
            for seed in range(80)
        ]
    )
    bias, bias_plain = values.mean() - TRUTH, plain_values(count).mean() - TRUTH
    assert bias_plain > 0.05
    assert abs(bias) < bias_plain / 4


def test_the_extrapolated_value_is_as_sure_as_it_says():
    found = [frechet_at_infinity(sample(seed, 200), REFERENCE, seed=0) for seed in range(60)]
    away = [(one.value - TRUTH) / one.standard_error for one in found]
    assert np.std(away) == pytest.approx(1, abs=0.3)
    assert abs(np.mean(away)) < 0.6


def test_extrapolation_repeats_itself_and_does_not_see_order():
    x = sample(0, 300)
    assert frechet_at_infinity(x, REFERENCE, seed=1) == frechet_at_infinity(x, REFERENCE, seed=1)
    first, other = (frechet_at_infinity(y, REFERENCE, seed=1) for y in (x, x[x[:, 0].argsort()]))
    assert abs(first.value - other.value) < first.standard_error


@pytest.mark.parametrize(
    ("metric", "name"),
    [(frechet_interval, "a bootstrap interval"), (frechet_at_infinity, "an extrapolation")],
)
def test_as_few_images_as_features_are_refused(metric, name):
    with pytest.raises(DataError, match=f"{name} needs more images than the 4 features but there"):
        metric(sample(0, 4), REFERENCE, seed=0)


def test_features_of_other_lengths_are_refused():
    with pytest.raises(DataError, match="features of 3 and of 4 numbers"):
        frechet_standard_error(sample(0, 50)[:, :3], REFERENCE)
