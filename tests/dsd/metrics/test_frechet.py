import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsd.metrics.frechet import Moments, frechet_distance, moments, moments_of_batches
from dsd.utils.errors import DataError

seeds = st.integers(0, 2**32)


def normal(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(seed, d):
    return torch.linalg.qr(normal(seed, d, d)).Q


def gaussian(seed, d, rank=None):
    a = normal(seed, d, d if rank is None else rank)
    return Moments(normal(seed + 1, d), a @ a.T, count=100)


@given(
    seed=seeds,
    spectra=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=8),
)
def test_commuting_covariances_have_the_closed_form(seed, spectra):
    first, second = torch.tensor(spectra, dtype=torch.float64).T
    q = rotation(seed, len(first))
    a = Moments(normal(seed, len(first)), q @ first.diag() @ q.T, 10)
    b = Moments(normal(seed + 1, len(first)), q @ second.diag() @ q.T, 10)
    expected = (a.mean - b.mean).square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    # 1e-5: the root of a rounding error of 1e-12 in an eigenvalue that is 0 on one side only.
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9, abs=1e-5)


@given(seed=seeds, d=st.integers(2, 12), rank=st.integers(1, 12))
def test_it_is_zero_on_itself_and_symmetric_and_does_not_see_rotations(seed, d, rank):
    a, b, q = gaussian(seed, d, rank), gaussian(seed + 2, d), rotation(seed + 4, d)
    forward = frechet_distance(a, b)
    assert frechet_distance(a, a) <= 1e-12 * float(a.cov.trace())
    assert frechet_distance(b, a) == pytest.approx(forward, rel=1e-10)
    turned = [Moments(q @ m.mean, q @ m.cov @ q.T, m.count) for m in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(forward, rel=1e-9)


def test_a_singular_gaussian_keeps_full_precision_on_itself():
    features = normal(0, 60, 200) * torch.logspace(0, -7, 200, dtype=torch.float64)
    measured = moments(features)
    assert frechet_distance(measured, measured) < 1e-13 * float(measured.cov.trace())


@pytest.mark.parametrize("d", [3, 64, 200])
def test_it_agrees_with_clean_fid(d):
    from cleanfid.fid import frechet_distance as reference

    mixing = normal(1, d, d) / d**0.5 + torch.eye(d)
    features = normal(2, 2000, d), normal(3, 1500, d) @ mixing + 0.1
    a, b = map(moments, features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # sqrtm(disp=False)
        expected = reference(
            *(part for x in features for part in (x.mean(0).numpy(), np.cov(x.numpy().T)))
        )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("counts", [(20, 300), (300, 20), (20, 30), (70, 70)])
def test_fewer_images_than_features_have_the_nuclear_norm_of_their_products(counts):
    """Without any covariance: tr (S_a S_b)^(1/2) is that of the centred features' products."""
    a, b = (normal(i, n, 60) * torch.logspace(0, -6, 60) for i, n in enumerate(counts))
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (a, b))
    trace = torch.linalg.svdvals(x @ y.T).sum()
    expected = (
        (a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * trace
    )
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(float(expected), rel=1e-7)


def test_a_factor_gives_the_covariance_back():
    measured = gaussian(0, 9, rank=4)
    factor = measured.factor
    assert factor.rank == 4
    torch.testing.assert_close(factor.matrix @ factor.matrix.T, measured.cov)
    lengths = factor.matrix.norm(dim=0)
    assert bool((lengths[1:] <= 2 * lengths[:-1]).all())


def test_constant_features_have_the_distance_of_a_point():
    point = moments(torch.ones(5, 3))
    cloud = moments(normal(0, 40, 3))
    expected = (cloud.mean - 1).square().sum() + cloud.cov.trace()
    for pair in ((point, cloud), (cloud, point)):
        assert frechet_distance(*pair) == pytest.approx(float(expected), rel=1e-12)
    assert frechet_distance(point, point) == 0


def test_notes_say_what_a_distance_suffers_from():
    assert moments(normal(0, 4, 3)).notes == ()
    assert Moments(torch.ones(3).double(), torch.eye(3).double(), None).notes == ()
    (few,) = moments(normal(0, 3, 3)).notes
    assert few.startswith("3 images are too few for 3 features")
    few, constant = moments(torch.ones(3, 3)).notes
    assert constant == "all images have the same features: nothing varies"


def test_distances_between_protocols_are_refused():
    made = [moments(normal(0, 9, 3), protocol=name) for name in ("one", "another", None)]
    with pytest.raises(DataError, match="made by 'one' and by 'another' cannot be compared"):
        frechet_distance(made[0], made[1])
    assert frechet_distance(made[0], made[2]) == frechet_distance(made[2], made[1]) == 0


@given(seed=seeds, cuts=st.lists(st.integers(0, 50), max_size=4), offset=st.floats(-1e5, 1e5))
def test_moments_are_those_of_numpy_however_the_features_come(seed, cuts, offset):
    features = normal(seed, 50, 5) + offset
    edges = [0, *sorted(cuts), 50]
    batches = [features[i:j] for i, j in itertools.pairwise(edges)]
    measured = moments_of_batches(batches)
    assert measured.count == 50
    np.testing.assert_allclose(measured.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(measured.cov, np.cov(features.numpy().T), atol=1e-9)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_features_are_refused(broken):
    features = normal(0, 10, 3)
    features[4, 1] = broken
    with pytest.raises(DataError, match="features of 1 of 10 images are NaN or infinite"):
        moments(features)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_refused(count):
    with pytest.raises(DataError, match="at least 2 images"):
        moments(normal(0, count, 3))


def test_features_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="features of 3 and of 4 numbers"):
        frechet_distance(gaussian(0, 3), gaussian(0, 4))
