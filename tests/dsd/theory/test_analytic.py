"""The exact mixtures against closed forms, autograd and their own samples."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stage_helpers import params_with

from dsd.model.samplers import sample_teacher
from dsd.theory.gaussian_mixture import GaussianMixture

LEVELS = st.floats(math.log(2e-3), math.log(80)).map(math.exp)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.5, 0.1], [0.8, 0.2, -0.4], [0.1, -1.2, 0.3]], dtype=torch.float64)
ALONG = torch.tensor([0.4, 0.2, -0.3], dtype=torch.float64)
# Round, tilted (three dimensions: in two, axes are often their own transpose) and a segment.
COVARIANCES = torch.stack(
    [
        0.09 * torch.eye(3, dtype=torch.float64),
        torch.tensor([[0.3, -0.1, 0.1], [-0.1, 0.1, 0.05], [0.1, 0.05, 0.2]], dtype=torch.float64),
        torch.outer(ALONG, ALONG),
    ]
)
MIXTURE = GaussianMixture(WEIGHTS, MEANS, COVARIANCES)


def draw(count, seed):
    return MIXTURE.sample(count, generator=torch.Generator().manual_seed(seed))


def diffused(sigma, count=50):
    """States of one level, as they occur, and that level for each."""
    normal = torch.randn(count, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return draw(count, 8) + sigma * normal, torch.full((count,), sigma, dtype=torch.float64)


def direct_log_prob(x, sigma):
    """The density as it stands in textbooks: inverses and determinants, one state at a time."""
    total = 0.0
    for weight, mean, covariance in zip(WEIGHTS, MEANS, COVARIANCES, strict=True):
        c = covariance + sigma**2 * torch.eye(3, dtype=torch.float64)
        exponent = -0.5 * (x - mean) @ torch.linalg.inv(c) @ (x - mean)
        total += weight * exponent.exp() / ((2 * math.pi) ** 3 * torch.linalg.det(c)).sqrt()
    return total.log()


@pytest.mark.parametrize("sigma", [0.1, 0.7, 5.0])
def test_the_density_is_the_textbooks(sigma):
    x, level = diffused(sigma)
    expected = torch.stack([direct_log_prob(one, sigma) for one in x])
    torch.testing.assert_close(MIXTURE.log_prob(x, level), expected)


@given(sigma=LEVELS)
def test_the_score_is_the_gradient_of_the_log_density(sigma):
    x, level = diffused(sigma)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(MIXTURE.log_prob(x, level).sum(), x)
    torch.testing.assert_close(MIXTURE.score(x, level), gradient, rtol=1e-8, atol=1e-8)


@given(sigma=LEVELS)
def test_denoising_adds_the_score_times_the_variance(sigma):
    x, level = diffused(sigma)
    expected = x + sigma**2 * MIXTURE.score(x, level)
    torch.testing.assert_close(MIXTURE.denoiser(x, level), expected, rtol=1e-8, atol=1e-8)


@given(sigma_y=LEVELS, sigma_add=LEVELS)
def test_ambient_tweedie_joins_the_denoisers_of_clean_and_noisy_data(sigma_y, sigma_add):
    sigma = math.hypot(sigma_y, sigma_add)
    a = (sigma_add / sigma) ** 2
    x, level = diffused(sigma)
    mean_of_y = MIXTURE.noisy(sigma_y).denoiser(x, torch.full_like(level, sigma_add))
    expected = a * MIXTURE.denoiser(x, level) + (1 - a) * x
    torch.testing.assert_close(mean_of_y, expected, rtol=1e-7, atol=1e-7)


@given(sigma_y=LEVELS, sigma_add=LEVELS)
def test_the_score_of_noisy_data_is_the_clean_score_at_the_combined_level(sigma_y, sigma_add):
    sigma = math.hypot(sigma_y, sigma_add)
    x, level = diffused(sigma)
    noisy = MIXTURE.noisy(sigma_y).score(x, torch.full_like(level, sigma_add))
    torch.testing.assert_close(MIXTURE.score(x, level), noisy, rtol=1e-7, atol=1e-7)


def test_samples_have_the_moments_of_the_mixture():
    samples = draw(200_000, 3)
    mean = WEIGHTS @ MEANS
    spread = torch.einsum("k,ki,kj->ij", WEIGHTS, MEANS, MEANS) - torch.outer(mean, mean)
    expected = spread + torch.einsum("k,kij->ij", WEIGHTS, COVARIANCES)
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(samples.T.cov(), expected, rtol=0, atol=0.015)


def test_samples_of_a_singular_component_lie_on_its_segment():
    alone = GaussianMixture(torch.ones(1), MEANS[2:], COVARIANCES[2:])
    samples = alone.sample(1000, generator=torch.Generator().manual_seed(1))
    along = (samples - MEANS[2]) @ ALONG / ALONG.square().sum()
    torch.testing.assert_close(samples, MEANS[2] + along[:, None] * ALONG)
    assert float(along.std()) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_rounding_makes_no_variance_negative(seed):
    """The product of a vector with itself has eigenvalues that are 0 but for rounding."""
    direction = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed)).double()
    covariances = direction[:, :, None] * direction[:, None]
    line = GaussianMixture(torch.ones(1), torch.zeros_like(direction), covariances)
    assert bool(line.sample(5, generator=torch.Generator()).isfinite().all())


@pytest.mark.parametrize("sigma", [2e-3, 0.5, 80.0])
def test_far_away_everything_is_finite(sigma):
    x = torch.tensor([[1e6, -1e6, 3.0], [-1e8, 0.0, 1e7]], dtype=torch.float64, requires_grad=True)
    level = torch.full((2,), sigma, dtype=torch.float64)
    values = [MIXTURE.denoiser(x, level), MIXTURE.score(x, level), MIXTURE.log_prob(x, level)]
    (slope,) = torch.autograd.grad(values[0].sum(), x)
    assert all(bool(value.isfinite().all()) for value in [*values, slope])


def test_it_stands_in_for_a_network_of_images():
    """Float32 images in, float32 images out: the teacher's sampler takes it as it is."""
    latents = torch.randn(4000, 3, 1, 1, generator=torch.Generator().manual_seed(2))
    samples = sample_teacher(
        MIXTURE.denoiser, latents, config=params_with().evaluate.sampler, sigma_y=0.0
    ).full
    assert samples.shape == latents.shape
    assert samples.dtype == torch.float32
    torch.testing.assert_close(
        samples.flatten(1).mean(0).double(), WEIGHTS @ MEANS, rtol=0, atol=0.05
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": WEIGHTS * 1.1}, "no probabilities"),
        ({"weights": torch.tensor([1.5, -0.75, 0.25])}, "no probabilities"),
        ({"covariances": COVARIANCES + torch.ones(3, 3).triu(1)}, "not symmetric"),
        ({"covariances": -COVARIANCES}, "eigenvalue -0.3"),
    ],
)
def test_what_is_no_mixture_is_refused(change, message):
    whole = {"weights": WEIGHTS, "means": MEANS, "covariances": COVARIANCES}
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**(whole | change))
