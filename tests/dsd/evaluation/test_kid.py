import numpy as np
import pytest
import torch
from cleanfid.fid import kernel_distance as clean_fid_kid
from hypothesis import given
from hypothesis import strategies as st

from dsd.evaluation import kid
from dsd.evaluation.kid import kernel_distance
from dsd.utils.errors import DataError

seeds = st.integers(0, 2**32)


def normal(seed, *shape, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator) + shift


def by_definition(a, b):
    """Sums over pairs, one by one."""

    def k(x, y):
        return float((x @ y / len(x) + 1) ** 3)

    n, m = len(a), len(b)
    within_a = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_a + within_b - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


@given(seed=seeds, n=st.integers(2, 7), m=st.integers(2, 7), d=st.integers(1, 5))
def test_it_is_the_sum_over_all_pairs(seed, n, m, d):
    a, b = normal(seed, n, d), normal(seed + 1, m, d, shift=0.5)
    found = kernel_distance(a, b, seed=0).value
    assert found == pytest.approx(by_definition(a, b), rel=1e-9, abs=1e-9)


def test_it_agrees_with_clean_fid_where_that_uses_all_pairs():
    a, b = normal(0, 300, 20), normal(1, 300, 20, shift=0.2)
    expected = clean_fid_kid(a.numpy(), b.numpy(), num_subsets=1, max_subset_size=300)
    assert kernel_distance(a, b, seed=0).value == pytest.approx(expected, rel=1e-9)


def test_memory_is_bounded_without_a_change(monkeypatch):
    a, b = normal(0, 50, 3), normal(1, 40, 3)
    expected = kernel_distance(a, b, seed=0)
    monkeypatch.setattr(kid, "_CHUNK_ENTRIES", 120)
    assert kernel_distance(a, b, seed=0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("block", [1000, 30])
def test_its_standard_error_is_the_spread_over_samples(block):
    found = [
        kernel_distance(
            normal(2 * i, 120, 4), normal(2 * i + 1, 90, 4, shift=0.5), seed=i, block=block
        )
        for i in range(300)
    ]
    spread = np.std([one.value for one in found])
    # The spread of 300 samples is known to 4 %.
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.15)


def test_blocks_are_disjoint_and_average_to_the_same_distance():
    a, b = normal(0, 2000, 4), normal(1, 2000, 4, shift=0.5)
    whole = kernel_distance(a, b, seed=0)
    blocks = kernel_distance(a, b, seed=0, block=200)
    assert abs(blocks.value - whole.value) < 2 * whole.standard_error
    # Disjoint blocks use all images, so little is lost; one block alone has 3 times as much.
    assert whole.standard_error < blocks.standard_error < 1.3 * whole.standard_error
    assert kernel_distance(a, b, seed=1, block=200).value != blocks.value


def test_sorted_images_make_no_difference_to_blocks():
    a, b = normal(0, 400, 2), normal(1, 400, 2)
    a = a[a[:, 0].argsort()]
    found = kernel_distance(a, b, seed=0, block=100)
    assert abs(found.value) < 4 * found.standard_error


def test_bad_features_are_refused():
    good = normal(0, 5, 3)
    broken = good.clone()
    broken[2, 0] = torch.nan
    for a, b, message in (
        (good[:1], good, "a kernel distance needs at least 2 images in each set but one has 1"),
        (good, broken, "features of 1 of 5 images are NaN"),
        (good, normal(0, 5, 4), "features of 3 and of 4 numbers"),
    ):
        with pytest.raises(DataError, match=message):
            kernel_distance(a, b, seed=0)
