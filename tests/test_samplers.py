"""The teacher's sampler against the closed-form flow of Gaussian data and an independent twin."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from dsd.config import Sampler
from dsd.samplers import sample_teacher

MEAN, STD = 0.3, 0.4


def gaussian_denoiser(x, sigma):
    """Exact for N(MEAN, STD^2) in every pixel; float64 inside, as networks are not."""
    level = sigma.double()[:, None, None, None]
    gain = STD**2 / (STD**2 + level**2)
    return (MEAN + gain * (x.double() - MEAN)).float()


def config(num_steps, **changes):
    values = {"num_steps": num_steps, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    return Sampler(**{**values, **changes})


def latents(count=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 2, 2, generator=generator, dtype=torch.float64)


def heun_twin(x, num_steps, sigma_y):
    """EDM's Algorithm 1 without churn, in numpy, stopping when the next level is below sigma_y."""
    i = np.arange(num_steps)
    grid = (80 ** (1 / 7) + i / (num_steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    grid = np.append(grid, 0)

    def denoise(x, t):
        return MEAN + STD**2 / (STD**2 + t**2) * (x - MEAN)

    x, stopped, calls = x * grid[0], None, 0
    for t, t_next in pairwise(grid):
        denoised, calls = denoise(x, t), calls + 1
        if stopped is None and t_next < sigma_y:
            stopped = denoised, calls
        d = (x - denoised) / t
        x_next = x + (t_next - t) * d
        if t_next > 0:
            d_next = (x_next - denoise(x_next, t_next)) / t_next
            x_next, calls = x + (t_next - t) * (d + d_next) / 2, calls + 1
        x = x_next
    return x, *stopped, calls


@pytest.mark.parametrize(("sigma_y", "evaluations"), [(0.1, 27), (0.2, 25), (0.4, 23)])
def test_both_samples_equal_an_independent_twin(sigma_y, evaluations):
    """The counts are those of the paper's 18-step sampler (method 3.3)."""
    z = latents()
    drawn = sample_teacher(gaussian_denoiser, z, config=config(18), sigma_y=sigma_y)
    full, truncated, calls_truncated, calls = heun_twin(z.numpy(), 18, sigma_y)
    assert (drawn.evaluations_truncated, drawn.evaluations_full) == (calls_truncated, calls)
    assert (calls_truncated, calls) == (evaluations, 35)
    np.testing.assert_allclose(drawn.full.numpy(), full, rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(drawn.truncated.numpy(), truncated, rtol=2e-4, atol=1e-4)


def test_the_error_falls_with_the_square_of_the_step():
    """Of the flow from level 5 to 0.05, after the final Euler step to 0 is taken out."""
    errors, counts = [], [16, 32, 64]
    z = latents()
    for count in counts:
        grid = config(count, sigma_min=0.05, sigma_max=5.0)
        drawn = sample_teacher(
            lambda x, s: gaussian_denoiser(x.double(), s), z, config=grid, sigma_y=0.0
        )
        # Undo the last step: the full sample is D at the last level.
        gain = STD**2 / (STD**2 + 0.05**2)
        state = MEAN + (drawn.full.double() - MEAN) / gain
        shrink = ((STD**2 + 0.05**2) / (STD**2 + 5.0**2)) ** 0.5
        exact = MEAN + (5.0 * z - MEAN) * shrink
        errors.append(float((state - exact).abs().max()))
    order = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert order == pytest.approx(-2, abs=0.3)


def test_without_data_noise_both_samples_are_the_same():
    drawn = sample_teacher(gaussian_denoiser, latents(), config=config(6), sigma_y=0.0)
    torch.testing.assert_close(drawn.full, drawn.truncated)
    assert drawn.evaluations_full == drawn.evaluations_truncated == 11


def test_samples_follow_the_data():
    z = latents(4000)
    z = (z - z.mean()) / z.std()
    drawn = sample_teacher(gaussian_denoiser, z, config=config(64), sigma_y=0.1)
    assert float(drawn.full.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(drawn.full.std()) == pytest.approx(STD, abs=0.01)
    # The truncated one is a posterior mean: it lacks the variance below its last level.
    assert float(drawn.truncated.std()) < float(drawn.full.std())
