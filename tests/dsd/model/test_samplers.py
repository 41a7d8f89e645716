"""The teacher's samplers against the closed-form flow of Gaussian data."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsd.model.config import Churn, Sampler
from dsd.model.generator import make_latents
from dsd.model.samplers import sample_teacher
from dsd.utils.errors import ParamsError

MEAN, STD = 0.3, 0.4
METHODS = ["heun", "euler"]
NO_CHURN = {"S_churn": 0.0, "S_min": 0.0, "S_max": 80.0, "S_noise": 1.0}
KINDS = ["full", "truncated", "truncated_exact"]


def gaussian_denoiser(x, sigma):
    """Exact for N(MEAN, STD^2) in every coordinate; float64 inside, as networks are not."""
    level = sigma.double().reshape(-1, *[1] * (x.ndim - 1))
    return (MEAN + gain(level) * (x.double() - MEAN)).float()


def gain(level):
    return STD**2 / (STD**2 + level**2)


def config(num_steps=18, *, churn=None, **changes):
    values = {
        "method": "heun",
        "num_steps": num_steps,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "rho": 7.0,
        "churn": Churn(**{**NO_CHURN, **(churn or {})}),
    }
    return Sampler(**{**values, **changes})


def karras(index):
    """The level at a relative index of the grid from 80 to 0.002."""
    return (80 ** (1 / 7) + index * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7


def latents(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape or (4, 1, 2, 2), generator=generator, dtype=torch.float64)


def flow(z, top, level):
    """Where the ODE of the Gaussian takes the state ``top * z`` at ``level``."""
    shrink = ((STD**2 + level**2) / (STD**2 + top**2)) ** 0.5
    return MEAN + (top * z - MEAN) * shrink


def counted(z, **options):
    """The samples, and how often they called the denoiser."""
    calls = []

    def denoiser(x, sigma):
        calls.append(sigma)
        return gaussian_denoiser(x, sigma)

    return sample_teacher(denoiser, z, **options), calls


@pytest.mark.parametrize(
    ("sigma_y", "stop", "evaluations"),
    [(0.1, 0.1395, 27), (0.2, 0.2964, 25), (0.4, 0.5853, 23)],
)
def test_the_reference_truncation_stops_where_the_paper_s_does(sigma_y, stop, evaluations):
    """The 18-step grid of method 3.3; the exact variant costs one more step."""
    drawn, calls = counted(latents(), config=config(), sigma_y=sigma_y)
    assert drawn.evaluations_truncated == evaluations
    assert float(calls[evaluations - 1][0]) == pytest.approx(stop, abs=5e-5)
    assert drawn.evaluations_truncated_exact == evaluations + 2
    assert float(calls[-1][0]) == pytest.approx(sigma_y)
    assert drawn.evaluations_full == 35


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("kind", ["full", "truncated_exact"])
def test_the_error_falls_with_the_order_of_the_method(method, order, kind):
    """Of the flow from level 5 to 0.05, where the state is denoised by the exact denoiser."""
    z, errors, counts = latents(), [], [32, 64, 128]
    for count in counts:
        grid = config(count, sigma_min=0.05, sigma_max=5.0, method=method)
        sigma_y = 0.05 if kind == "full" else 0.07  # between the grid's last points
        drawn = sample_teacher(gaussian_denoiser, z, config=grid, sigma_y=sigma_y)
        last = 0.05 if kind == "full" else sigma_y
        exact = MEAN + gain(last) * (flow(z, 5.0, last) - MEAN)
        errors.append(float((getattr(drawn, kind).double() - exact).abs().max()))
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sigma_y", [0.013, 0.2, 0.9, 7.0])
def test_exact_truncation_is_the_denoised_image_of_the_flow_at_the_data_noise(method, sigma_y):
    steps, tolerance = (128, 1e-3) if method == "heun" else (1000, 5e-3)
    grid, z = config(steps, method=method), latents()
    drawn = sample_teacher(gaussian_denoiser, z, config=grid, sigma_y=sigma_y)
    exact = MEAN + gain(sigma_y) * (flow(z, 80.0, sigma_y) - MEAN)
    np.testing.assert_allclose(drawn.truncated_exact, exact, atol=tolerance)


def test_data_noise_on_the_grid_needs_no_step_of_its_own():
    grid = config(5, sigma_min=1.0, sigma_max=5.0, rho=1.0)  # 5, 4, 3, 2, 1
    on, calls = counted(latents(), config=grid, sigma_y=3.0)
    assert torch.equal(on.truncated, on.truncated_exact)
    assert (on.evaluations_truncated, on.evaluations_truncated_exact, len(calls)) == (5, 5, 9)
    above, calls = counted(latents(), config=grid, sigma_y=3.0 + 1e-9)
    assert (above.evaluations_truncated, above.evaluations_truncated_exact) == (3, 5)
    torch.testing.assert_close(above.truncated_exact, on.truncated)
    assert float((above.truncated - on.truncated).abs().max()) > 1e-3


def test_data_noise_above_the_grid_is_refused():
    with pytest.raises(ParamsError, match=r"sigma_max 80, below the noise of the data, 81: raise"):
        sample_teacher(gaussian_denoiser, latents(), config=config(), sigma_y=81.0)


@pytest.mark.parametrize("churn", [0.0, 20.0])
@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_an_image_depends_on_seed_and_number_alone(churn, sizes):
    grid = config(6, churn={"S_churn": churn})

    def draw(first, count):
        z = make_latents(count, (1, 2, 2), seed=3, first=first)
        return sample_teacher(gaussian_denoiser, z, config=grid, sigma_y=0.1, seed=3, first=first)

    whole = draw(0, sum(sizes))
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    parts = [draw(*part) for part in zip(starts, sizes, strict=True)]
    for kind in KINDS:
        assert torch.equal(
            torch.cat([getattr(part, kind) for part in parts]), getattr(whole, kind)
        )


@pytest.mark.parametrize("S_noise", [1.0, 1.1])
def test_churn_keeps_the_variance_that_its_noise_says(S_noise):
    """The noise of each step adds its variance; the flow between two levels scales it."""
    count, amount = 150, 0.04
    churn = {"S_churn": amount * count, "S_min": 0.05, "S_max": 10.0, "S_noise": S_noise}
    grid, z = config(count, churn=churn), latents(200, 200)
    drawn = sample_teacher(gaussian_denoiser, z, config=grid, sigma_y=0.0, seed=5)

    grid_levels = [*(karras(i / (count - 1)) for i in range(count)), 0.0]
    variance = 80.0**2
    for level, following in pairwise(grid_levels):
        raised = level * (1 + amount * (0.05 <= level <= 10))
        variance += S_noise**2 * (raised**2 - level**2)
        variance *= (STD**2 + following**2) / (STD**2 + raised**2)
    if S_noise == 1:
        assert variance == pytest.approx(STD**2)
    assert float(drawn.full.double().var()) == pytest.approx(variance, rel=0.03)
    assert float(drawn.full.mean()) == pytest.approx(MEAN, abs=0.01)


@pytest.mark.parametrize(("S_churn", "factor"), [(3.6, 1.2), (18.0, 2**0.5)])
def test_churn_raises_the_level_of_steps_in_its_range_alone(S_churn, factor):
    churn = {"S_churn": S_churn, "S_min": 0.1, "S_max": 20.0}
    grid = config(18, method="euler", churn=churn)
    _, calls = counted(latents(), config=grid, sigma_y=0.0, seed=0)
    _, plain = counted(latents(), config=config(18, method="euler"), sigma_y=0.0)
    for raised, level in zip(calls, plain, strict=True):
        inside = 0.1 <= float(level[0]) <= 20
        torch.testing.assert_close(raised, level * (factor if inside else 1))


def test_churn_outside_every_level_changes_nothing_and_needs_no_seed():
    plain = sample_teacher(gaussian_denoiser, latents(), config=config(), sigma_y=0.1)
    for churn in ({"S_churn": 0.0}, {"S_churn": 9.0, "S_min": 90.0, "S_max": 99.0}):
        grid = config(churn=churn)
        same = sample_teacher(gaussian_denoiser, latents(), config=grid, sigma_y=0.1)
        assert torch.equal(same.full, plain.full)


def test_churn_without_a_seed_is_refused_and_another_seed_draws_other_noise():
    options = {"config": config(churn={"S_churn": 9.0}), "sigma_y": 0.1}
    with pytest.raises(ValueError, match="churn draws noise and needs a seed"):
        sample_teacher(gaussian_denoiser, latents(), **options)
    first, again, other = (
        sample_teacher(gaussian_denoiser, latents(), **options, seed=seed).full
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert float((first - other).abs().min()) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_posterior_mean_of_where_they_stop(kind):
    """Full has the data's spread; the others lack the variance below the level they end at."""
    z = latents(4000, 4)
    z = (z - z.mean()) / z.std()
    drawn = sample_teacher(gaussian_denoiser, z, config=config(64), sigma_y=0.4)
    levels = {"full": 0.0, "truncated": 0.46998, "truncated_exact": 0.4}
    expected = gain(levels[kind]) * (STD**2 + levels[kind] ** 2) ** 0.5
    assert float(getattr(drawn, kind).mean()) == pytest.approx(MEAN, abs=2e-3)
    assert float(getattr(drawn, kind).std()) == pytest.approx(expected, rel=5e-3)
