"""The consistency term and the reverse process against closed forms for Gaussian data."""

import math

import pytest
import torch
from gaussian import VARIANCES, denoiser_of, sample
from stage_helpers import params_with

from dsd.model.config import TeacherNoise
from dsd.pretraining.consistency_loss import PAIR_RATIO, consistency_loss, reverse_steps
from dsd.pretraining.trainer import consistency_step_loss, sample_consistency_noise
from dsd.theory.gaussian_mixture import GaussianMixture

LAW = TeacherNoise(distribution="added", P_mean=-1.2, P_std=1.2)
COUNT = 100_000


def level(value, count=COUNT):
    return torch.full((count,), value, dtype=torch.float64)


def drawn(num_steps, *, sigma=1.5, sigma_low=0.2, denoiser=None):
    """States of level ``sigma`` of Gaussian data, and draws of ``sigma_low`` given them."""
    ones = torch.ones_like(VARIANCES)
    x = sample(VARIANCES, COUNT, 1) + sigma * sample(ones, COUNT, 2)
    random = torch.Generator().manual_seed(3)
    noise = torch.randn(COUNT, num_steps, x.shape[1], generator=random, dtype=torch.float64)
    low = reverse_steps(
        denoiser or denoiser_of(VARIANCES), x, sigma=level(sigma), sigma_low=level(sigma_low),
        noise=noise,
    )  # fmt: skip
    return x, low


def regression(x, low):
    """Slope and residual variance of ``low`` on ``x``, for each coordinate."""
    slope = (x * low).mean(0) / x.square().mean(0)
    return slope, (low - slope * x).square().mean(0)


@pytest.mark.parametrize("num_steps", [1, 3, 30])
def test_the_reverse_process_has_the_exact_conditional_mean(num_steps):
    x, low = drawn(num_steps)
    slope, _ = regression(x, low)
    exact = (VARIANCES + 0.2**2) / (VARIANCES + 1.5**2)
    torch.testing.assert_close(slope, exact, rtol=0, atol=0.01)


def test_a_coordinate_without_variance_is_exact_in_one_step():
    _, low = drawn(1)
    assert float(low[:, 3].std()) == pytest.approx(0.2, rel=0.01)


def test_draws_have_no_gradient_and_start_from_the_denoisers_level():
    seen = []
    gain = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def denoise(x, sigma):
        seen.append(float(sigma[0]))
        return gain * x

    _, low = drawn(2, sigma=0.8, sigma_low=0.2, denoiser=denoise)
    assert not low.requires_grad
    assert seen == pytest.approx([0.8, 0.4])


LAWS = {
    "two values": ([0.5, 0.5], [[0.5], [-0.5]], 0.05),
    "three clusters of a plane": ([0.3, 0.3, 0.4], [[0.5, 0.4], [-0.6, 0.3], [0.0, -0.6]], 0.1),
}
"""Weights, means and standard deviation of the components of mixtures."""


@pytest.mark.parametrize(
    ("sigma_y", "sigma_low"), [(0.6, 0.1), (0.6, 0.25), (0.6, 0.5), (0.3, 0.25), (0.2, 0.6)]
)
@pytest.mark.parametrize("law", LAWS)
def test_the_exact_denoiser_has_no_loss_at_any_pair_of_levels(law, sigma_y, sigma_low):
    """Less than 1e-3 with the default number of steps, with four standard errors on top."""
    weights, means, deviation = LAWS[law]
    means = torch.tensor(means)
    covariances = deviation**2 * torch.eye(means.shape[1]).expand(len(means), -1, -1)
    mixture = GaussianMixture(torch.tensor(weights), means, covariances)
    random = torch.Generator().manual_seed(0)
    x0 = mixture.sample(40_000, generator=random)
    y = x0 + sigma_y * torch.randn(x0.shape, generator=random, dtype=torch.float64)
    drawn = sample_consistency_noise(
        level(sigma_y, len(y)).float(), y.shape[1:],
        noise=TeacherNoise(distribution="added", P_mean=math.log(sigma_low), P_std=1e-6),
        num_steps=params_with().pretrain.consistency.num_steps, views=None, view=None,
        generator=random,
    )  # fmt: skip
    loss = consistency_step_loss(mixture.denoiser, y.float(), drawn).double()
    error = float(loss.std()) / len(loss) ** 0.5
    assert abs(float(loss.mean())) + 4 * error < 1e-3


def test_the_pair_is_as_far_apart_as_it_says_and_starts_where_observations_lead():
    sigma_y = torch.tensor([0.0, 0.4]).repeat(500)
    drawn = sample_consistency_noise(
        sigma_y, (1, 2, 2), noise=LAW, num_steps=3, views=None, view=None,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    torch.testing.assert_close(drawn.sigma_high, PAIR_RATIO * drawn.sigma_low)
    assert torch.equal(drawn.sigma, torch.maximum(drawn.sigma_high, sigma_y))
    torch.testing.assert_close(torch.hypot(drawn.sigma_add, sigma_y), drawn.sigma)
    quantiles = torch.special.ndtr((drawn.sigma_low.log() - LAW.P_mean) / LAW.P_std)
    assert float(quantiles.mean()) == pytest.approx(0.5, abs=0.03)
    assert (drawn.walk.shape, drawn.ends.shape) == ((1000, 3, 1, 2, 2), (1000, 2, 1, 2, 2))
    noises = torch.cat([drawn.n[:, None], drawn.walk, drawn.ends], 1).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.corrcoef(noises), torch.eye(6), rtol=0, atol=0.1)


def mean_loss(denoiser, seed=5):
    sigma_y = level(0.4).float()
    ones = torch.ones_like(VARIANCES)
    y = sample(VARIANCES, COUNT, 1) + 0.4 * sample(ones, COUNT, 2)
    drawn = sample_consistency_noise(
        sigma_y, y.shape[1:], noise=LAW, num_steps=2, views=None, view=None,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    return consistency_step_loss(denoiser, y.float(), drawn).mean()


def perturbed(amount):
    """Exact above the data's level; below it the gain is off by ``amount``."""
    exact = denoiser_of(VARIANCES.float())

    def denoise(x, sigma):
        wrong = torch.where(sigma < 0.4, amount, 0.0)[:, None]
        return exact(x, sigma) + wrong * x

    return denoise


def test_the_exact_denoiser_is_the_minimum_and_noise_does_not_bias_it():
    """Unbiased: zero at the exact denoiser, where the square of one draw would be positive."""
    amount = torch.tensor(0.0, requires_grad=True)
    value = mean_loss(perturbed(amount))
    (gradient,) = torch.autograd.grad(value, amount)
    off = {shift: float(mean_loss(perturbed(torch.tensor(shift)))) for shift in (-0.3, 0.3)}
    assert abs(value.item()) < 0.1 * min(off.values())
    assert abs(float(gradient)) < 1e-3


@pytest.mark.parametrize("shift", [-0.2, 0.2])
def test_it_corrects_the_denoiser_where_no_observation_reaches(shift):
    amount = torch.tensor(shift, requires_grad=True)
    (gradient,) = torch.autograd.grad(mean_loss(perturbed(amount)), amount)
    assert float(gradient) * shift > 1e-3


def test_the_product_of_two_draws_is_the_squared_bias():
    denoised = torch.zeros(COUNT, 2, dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    first, second = (0.5 + sample(ones, COUNT, seed) for seed in (1, 2))
    loss = consistency_loss(denoised, first, second)
    assert float(loss.mean()) == pytest.approx(0.25, abs=0.01)
    assert bool((loss < 0).any())


def test_each_factor_passes_its_gradient():
    a, b, c = (torch.tensor([[value]], requires_grad=True) for value in (1.0, 3.0, 7.0))
    gradients = torch.autograd.grad(consistency_loss(a, b, c).sum(), (a, b, c))
    assert [float(g) for g in gradients] == [-8.0, 6.0, 2.0]


@pytest.mark.parametrize(
    ("pretrain", "message"),
    [
        ({"objective": "standard"}, "consistency.weight is for objective: adjusted"),
        ({"batch_size": 8}, "consistency.batch_size 32 exceeds batch_size 8"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(pretrain, message):
    consistency = {"weight": 1.0, "batch_size": 32, "num_steps": 2}
    with pytest.raises(ValueError, match=message):
        params_with(pretrain={"consistency": consistency, **pretrain})
