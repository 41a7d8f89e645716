"""Generator losses against closed forms: linear generators, Gaussian data, exact denoisers."""

import pytest
import torch
from gaussian import denoiser_of, sample
from hypothesis import given
from hypothesis import strategies as st

from dsd.distillation.losses import (
    DenoiserPair,
    gap,
    reverse_kl_loss,
    score_distillation_sampling_loss,
    score_identity_loss,
)

DATA = torch.tensor([1.5, 0.4, 0.05], dtype=torch.float64)
COUNT = 100_000


def pair_at(x_g, n, sigma, *, fake, teacher=DATA):
    level = torch.full((len(x_g),), sigma, dtype=x_g.dtype)
    x_t = x_g + sigma * n
    return DenoiserPair(denoiser_of(teacher)(x_t, level), denoiser_of(fake)(x_t, level))


def generated(scales, seed=1):
    """Images of the generator x_g = scales * z, and the noise that diffuses them."""
    z = sample(torch.ones_like(scales), COUNT, seed)
    return scales * z, sample(torch.ones_like(scales), COUNT, seed + 1)


def scale_of(x_g, teacher):
    return (x_g - teacher).abs().mean(1, keepdim=True)


LOSSES = {
    "sid 1.0": lambda x_g, pair: score_identity_loss(x_g, pair, alpha=1.0),
    "sid 1.2": lambda x_g, pair: score_identity_loss(x_g, pair, alpha=1.2),
    "dmd": reverse_kl_loss,
}


def scale_gradient(loss, scales, sigma):
    scales = scales.clone().requires_grad_()
    x_g, n = generated(scales)
    pair = pair_at(x_g, n, sigma, fake=scales.detach() ** 2)
    (gradient,) = torch.autograd.grad(loss(x_g, pair).mean(), scales)
    return gradient


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_no_gradient_where_generator_and_data_agree(name, sigma):
    gradient = scale_gradient(LOSSES[name], DATA.sqrt(), sigma)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sigma", [0.3, 1.0])
@pytest.mark.parametrize("factor", [0.7, 0.9, 1.1, 1.5])
def test_descent_moves_the_generator_towards_the_data(name, sigma, factor):
    gradient = scale_gradient(LOSSES[name], DATA.sqrt() * factor, sigma)
    assert bool((gradient.sign() == (1 if factor > 1 else -1)).all())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_with_an_exact_fake_the_expected_value_is_one_minus_alpha_times_the_gap(alpha):
    """Where nothing is normalised: the loss of each sample times its scale."""
    x_g, n = generated(DATA.sqrt() * 1.4)
    pair = pair_at(x_g, n, 0.8, fake=DATA * 1.4**2)
    omega = scale_of(x_g, pair.teacher).squeeze(1)
    value = (score_identity_loss(x_g, pair, alpha=alpha) * omega).mean() / len(DATA)
    expected = (1 - alpha) * gap(pair).mean()
    assert float(value) == pytest.approx(float(expected), abs=0.02 * float(gap(pair).mean()))


def test_the_reverse_kl_gradient_is_the_normalised_difference_of_denoisers():
    x_g, n = generated(DATA.sqrt() * 1.4)
    x_g = x_g[:50].requires_grad_()
    pair = pair_at(x_g, n[:50], 0.8, fake=DATA * 1.4**2)
    (gradient,) = torch.autograd.grad(reverse_kl_loss(x_g, pair).sum(), x_g)
    expected = (pair.fake - pair.teacher) / scale_of(x_g, pair.teacher)
    torch.testing.assert_close(gradient, expected.detach())


def test_the_score_identity_gradient_flows_through_images_and_both_denoisers():
    """Against the derivative by hand for one image and scalar denoisers; omega is constant."""
    alpha, sigma, x, n = 1.2, 0.6, 0.8, 0.3
    a, b = 0.7, 0.4  # D_teacher = a x_t, D_fake = b x_t
    x_g = torch.tensor([[x]], dtype=torch.float64, requires_grad=True)
    x_t = x_g + sigma * n
    loss = score_identity_loss(x_g, DenoiserPair(a * x_t, b * x_t), alpha=alpha)
    (gradient,) = torch.autograd.grad(loss.sum(), x_g)
    t = x + sigma * n
    difference, omega = (a - b) * t, abs(x - a * t)
    rest = (a * t - x) - alpha * difference
    by_hand = ((a - b) * rest + difference * ((a - 1) - alpha * (a - b))) / omega
    assert float(gradient) == pytest.approx(by_hand)


@given(alpha=st.floats(0, 2), shift=st.floats(-1, 1))
def test_a_perfect_teacher_prediction_divides_by_nothing(alpha, shift):
    x_g = torch.full((2, 3), 0.25, requires_grad=True)
    pair = DenoiserPair(x_g.clone(), x_g + shift)
    for loss in (score_identity_loss(x_g, pair, alpha=alpha), reverse_kl_loss(x_g, pair)):
        assert bool(loss.isfinite().all())


def test_the_gap_is_the_mean_squared_difference():
    pair = DenoiserPair(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]]))
    assert gap(pair).tolist() == [4.5]


def test_sds_moves_images_to_what_the_teacher_expects_and_nothing_else():
    x_g, n = generated(DATA.sqrt() * 1.4)
    x_g = x_g[:50].requires_grad_()
    teacher = pair_at(x_g, n[:50], 0.8, fake=DATA).teacher
    (gradient,) = torch.autograd.grad(
        score_distillation_sampling_loss(x_g, DenoiserPair(teacher, teacher)).sum(),
        x_g,
        retain_graph=True,
    )
    torch.testing.assert_close(gradient, ((x_g - teacher) / scale_of(x_g, teacher)).detach())
