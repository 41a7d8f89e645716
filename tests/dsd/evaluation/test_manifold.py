import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsd.evaluation import neighbours
from dsd.evaluation.neighbours import nearest
from dsd.evaluation.precision_recall import density_coverage, precision_recall
from dsd.utils.errors import DataError

seeds = st.integers(0, 2**32)


def normal(seed, *shape, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator) + shift


def twin(generated, reference, k):
    """Precision, recall, density and coverage, vector by vector in numpy."""
    g, r = generated.numpy(), reference.numpy()

    def radius(x, points):
        return np.sort([np.linalg.norm(x - y) for y in points])[k]

    r_radii, g_radii = [radius(x, r) for x in r], [radius(x, g) for x in g]

    def holds(centre, radius, x):
        return np.linalg.norm(centre - x) <= radius

    def inside(x, centres, radii):
        return sum(holds(c, rho, x) for c, rho in zip(centres, radii, strict=True))

    precision = np.mean([inside(x, r, r_radii) > 0 for x in g])
    recall = np.mean([inside(x, g, g_radii) > 0 for x in r])
    density = sum(inside(x, r, r_radii) for x in g) / (k * len(g))
    coverage = np.mean(
        [any(holds(c, rho, x) for x in g) for c, rho in zip(r, r_radii, strict=True)]
    )
    return precision, recall, density, coverage


@given(seed=seeds, n=st.integers(5, 12), m=st.integers(5, 12), k=st.integers(1, 4))
def test_all_four_are_their_definitions(seed, n, m, k):
    g, r = normal(seed, n, 3), normal(seed + 1, m, 3, shift=0.5)
    found = (*precision_recall(g, r, k=k), *density_coverage(g, r, k=k))
    assert found == pytest.approx(twin(g, r, k))


def test_identical_sets_are_perfect():
    x = normal(0, 50, 8)
    assert precision_recall(x, x) == (1, 1)
    density, coverage = density_coverage(x, x, k=5)
    assert coverage == 1
    # Each ball holds its centre and five neighbours, the last of them on its edge.
    assert density == pytest.approx(6 / 5)


def test_memory_is_bounded_without_a_change(monkeypatch):
    # Balls from small to large, so that it matters whose they are.
    g, r = normal(0, 50, 3) * torch.linspace(0.02, 2, 50)[:, None], normal(1, 40, 3)
    expected = (*precision_recall(g, r), *density_coverage(g, r))
    monkeypatch.setattr(neighbours, "_CHUNK_ENTRIES", 90)
    assert len([*neighbours.distance_chunks(g, r)]) == 25
    assert (*precision_recall(g, r), *density_coverage(g, r)) == pytest.approx(expected)


@given(seed=seeds, k=st.integers(1, 4))
def test_neighbours_are_those_of_sorting(seed, k):
    queries, others = normal(seed, 6, 30), normal(seed + 1, 9, 30, shift=1e3)
    found = nearest(queries, others, k)
    distances = (queries[:, None] - others).norm(dim=2)
    expected = distances.sort(dim=1)
    assert torch.equal(found.indices, expected.indices[:, :k])
    torch.testing.assert_close(found.distances, expected.values[:, :k], rtol=1e-9, atol=0)


def test_near_copies_are_told_apart_beyond_the_rounding_of_products():
    queries, others = normal(0, 1, 30), normal(1, 40, 30)
    closeness = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    others[:8] = queries + 1e-11 * (1 + closeness.double())[:, None]
    found = nearest(queries, others, 8)
    assert torch.equal(found.indices[0], closeness.argsort())
    expected = 1e-11 * torch.arange(1, 9).double()[None] * 30**0.5
    torch.testing.assert_close(found.distances, expected, rtol=1e-3, atol=0)
    assert float(nearest(queries, queries.clone(), 1).distances) == 0


@pytest.mark.parametrize(("metric", "k"), [(precision_recall, 3), (density_coverage, 5)])
def test_bad_features_are_refused(metric, k):
    good = normal(0, k + 1, 3)
    broken = good.clone()
    broken[2, 0] = torch.inf
    metric(good, good)
    for a, b, message in (
        (good, good[:-1], f"needs at least {k + 1} images in each set but one has {k}"),
        (good, broken, f"features of 1 of {k + 1} images are NaN or infinite"),
        (good, normal(0, 9, 4), "features of 3 and of 4 numbers"),
    ):
        with pytest.raises(DataError, match=message):
            metric(a, b)
