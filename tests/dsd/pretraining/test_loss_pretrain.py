"""The ambient denoising loss against closed forms."""

import pytest
import torch
from gaussian import VARIANCES, denoiser_of, sample
from hypothesis import given
from hypothesis import strategies as st

from dsd.pretraining.denoising_loss import ambient_denoising_loss

SIGMA_Y = 0.3
WEIGHTINGS = ["edm", "ambient-omni", "inverse-variance"]


def loss_of(denoiser, y, n, *, sigma_y, sigma_add, weighting="edm", sigma_data=0.5):
    sigma_y = torch.full((len(y),), sigma_y, dtype=y.dtype)
    sigma_add = torch.as_tensor(sigma_add, dtype=y.dtype).expand(len(y))
    return ambient_denoising_loss(
        denoiser,
        y,
        sigma_y=sigma_y,
        sigma=torch.hypot(sigma_y, sigma_add),
        sigma_add=sigma_add,
        n=n,
        weighting=weighting,
        sigma_data=sigma_data,
    )


def observations(count=200_000):
    x0 = sample(VARIANCES, count, 1)
    return x0, x0 + SIGMA_Y * sample(torch.ones_like(VARIANCES), count, 2)


def gain_gradient(gains, sigma_add, weighting):
    """Gradient of the loss of D(x) = gains * x with respect to the gains, on noisy data alone."""
    _, y = observations()
    n = sample(torch.ones_like(VARIANCES), len(y), 3)
    gains = gains.clone().requires_grad_()
    loss = loss_of(
        lambda x, _: gains * x, y, n, sigma_y=SIGMA_Y, sigma_add=sigma_add, weighting=weighting
    )
    (gradient,) = torch.autograd.grad(loss.mean(), gains)
    return gradient


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("sigma_add", [0.2, 0.5, 2.0])
def test_the_minimiser_on_noisy_data_is_the_clean_posterior_mean(weighting, sigma_add):
    best = VARIANCES / (VARIANCES + SIGMA_Y**2 + sigma_add**2)
    at_best = gain_gradient(best, sigma_add, weighting)
    above, below = (gain_gradient(best + shift, sigma_add, weighting) for shift in (0.1, -0.1))
    assert bool((above > 0).all())
    assert bool((below < 0).all())
    assert float(at_best.abs().max()) < 0.02 * float(above.abs().max())


@given(
    sigma_y=st.floats(2e-3, 10),
    sigma_add=st.floats(2e-3, 80),
    sigma_data=st.floats(0.1, 2),
    weighting=st.sampled_from(WEIGHTINGS),
)
def test_the_loss_is_the_weighted_error_of_the_predicted_observation(
    sigma_y, sigma_add, sigma_data, weighting
):
    """Against the formulas of DSD as they are written: h = a D + (1 - a) x_t, w |h - y|^2."""
    y, n = sample(VARIANCES, 5, 1), sample(VARIANCES, 5, 2)
    denoise = denoiser_of(VARIANCES)
    sigma = (sigma_y**2 + sigma_add**2) ** 0.5
    x_t = y + sigma_add * n
    a = sigma_add**2 / sigma**2
    h = a * denoise(x_t, torch.full((5,), sigma, dtype=y.dtype)) + (1 - a) * x_t
    c_out = sigma * sigma_data / (sigma**2 + sigma_data**2) ** 0.5
    weight = {
        "edm": 1 / c_out**2,
        "ambient-omni": 1 / (c_out * max(a, 0.1)) ** 2,
        "inverse-variance": 1 / (a**2 * c_out**2 + a * sigma_y**2),
    }
    expected = weight[weighting] * (h - y).square().mean(1)
    actual = loss_of(
        denoise, y, n, sigma_y=sigma_y, sigma_add=sigma_add, weighting=weighting,
        sigma_data=sigma_data,
    )  # fmt: skip
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@given(sigma=st.floats(0.3, 80))
def test_loss_and_gradient_are_finite_from_the_data_noise_upwards(weighting, dtype, sigma):
    y = sample(VARIANCES, 4, 1).to(dtype)
    gain = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    sigma_add = max(sigma**2 - SIGMA_Y**2, 0.0) ** 0.5
    loss = loss_of(
        lambda x, _: gain * x, y, y.flip(0), sigma_y=SIGMA_Y, sigma_add=sigma_add,
        weighting=weighting,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss.sum(), gain)
    assert bool(loss.isfinite().all() & gradient.isfinite())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_clean_and_noisy_images_in_one_batch_are_each_treated_as_alone(weighting):
    y, n = sample(VARIANCES, 4, 1), sample(VARIANCES, 4, 2)
    sigma_y = torch.tensor([0.0, SIGMA_Y, 0.0, 0.7], dtype=torch.float64)
    sigma_add = torch.tensor([0.4, 0.2, 1.0, 0.0], dtype=torch.float64)

    def loss(rows):
        return ambient_denoising_loss(
            denoiser_of(VARIANCES), y[rows], sigma_y=sigma_y[rows], sigma_add=sigma_add[rows],
            sigma=torch.hypot(sigma_y, sigma_add)[rows], n=n[rows], weighting=weighting,
            sigma_data=0.5,
        )  # fmt: skip

    together = loss(torch.arange(4))
    torch.testing.assert_close(together, torch.cat([loss(torch.tensor([i])) for i in range(4)]))
    # Without noise it is EDM's loss, whatever the weighting.
    clean = (sigma_add[0] ** 2 + 0.25) / (sigma_add[0] * 0.5) ** 2
    error = denoiser_of(VARIANCES)(y[:1] + 0.4 * n[:1], sigma_add[:1]) - y[:1]
    assert float(together[0]) == pytest.approx(float(clean * error.square().mean()))
