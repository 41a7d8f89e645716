"""Levels of noise; test_twins.py has their formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from dsd.model.config import GeneratorNoise, TeacherNoise
from dsd.model.noise_levels import karras_levels, sample_generator_levels, sample_teacher_levels


def law(sampler):
    return TeacherNoise(distribution=sampler, P_mean=-1.2, P_std=1.2)


def draw(sampler, sigma_y, count=20_000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return sample_teacher_levels(law(sampler), torch.full((count,), sigma_y), generator)


@given(
    sampler=st.sampled_from(["added", "truncated", "clamped"]),
    sigma_y=st.floats(2e-3, 10),
    seed=st.integers(0, 100),
)
def test_total_and_added_level_obey_pythagoras(sampler, sigma_y, seed):
    sigma, sigma_add = draw(sampler, sigma_y, 100, seed)
    assert bool((sigma >= torch.tensor(sigma_y)).all())
    torch.testing.assert_close(sigma**2, sigma_y**2 + sigma_add**2, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("sigma_y", "dead"), [(0.05, 0.067), (0.1, 0.179), (0.2, 0.366), (0.4, 0.593)]
)
def test_only_the_clamped_law_wastes_samples(sigma_y, dead):
    """The fractions are the log-normal's mass below sigma_y."""
    fraction = {
        name: float((draw(name, sigma_y)[1] == 0).double().mean())
        for name in ("added", "truncated", "clamped")
    }
    assert fraction["clamped"] == pytest.approx(dead, abs=0.01)
    assert fraction["added"] == fraction["truncated"] == 0


@pytest.mark.parametrize("sampler", ["added", "truncated", "clamped"])
def test_clean_images_get_plain_lognormal_levels(sampler):
    sigma, sigma_add = draw(sampler, 0.0)
    torch.testing.assert_close(sigma, sigma_add)
    assert kstest(sigma.double().log().numpy(), "norm", args=(-1.2, 1.2)).pvalue > 0.01


def test_the_karras_grid_has_its_published_ends():
    index = torch.linspace(0, 1, 18, dtype=torch.float64)
    grid = karras_levels(index, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    assert grid[0] == pytest.approx(80)
    assert grid[-1] == pytest.approx(0.002)
    # The last grid points at or above 0.1, 0.2 and 0.4 of an 18-step grid.
    for sigma_y, expected in ((0.1, 0.1395), (0.2, 0.2964), (0.4, 0.5853)):
        assert float(grid[grid >= sigma_y].min()) == pytest.approx(expected, abs=1e-4)


def test_generator_levels_span_the_grid_up_to_its_largest_index():
    noise = GeneratorNoise(sigma_min=0.002, sigma_max=80.0, rho=7.0, t_max=0.8)
    generator = torch.Generator().manual_seed(0)
    sigma = sample_generator_levels(noise, 100_000, generator, torch.device("cpu")).double()
    assert float(sigma.max()) == pytest.approx(24.4, abs=0.1)
    assert float(sigma.min()) == pytest.approx(0.002, abs=1e-4)
    assert float(sigma.median()) == pytest.approx(0.965, abs=0.02)
    for level, below in ((0.1, 0.264), (0.2, 0.328), (0.4, 0.399)):
        assert float((sigma < level).double().mean()) == pytest.approx(below, abs=0.006)
