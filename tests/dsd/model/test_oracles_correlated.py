"""The oracles of test_oracles.py under correlated noise L n: the same exact sums, two dimensions.

In the coordinates u = L^-1 x the noise is white, so that nodes are made there and mapped.
"""

import math
from typing import get_args

import pytest
import torch
from test_oracles import (
    ALPHAS,
    BASIS,
    CASES,
    CLEAN,
    NOWHERE,
    PLACES,
    TRUE_SCALE,
    TRUE_SHIFT,
    Pairs,
    derivative,
    flat,
    grid,
    levels_of,
    omega,
    one_step,
    pairs_of,
)  # fmt: skip

from dsd.distillation.losses import (
    DenoiserPair,
    reverse_kl_loss,
    score_distillation_sampling_loss,
    score_identity_loss,
)  # fmt: skip
from dsd.pretraining.config import Weighting
from dsd.pretraining.consistency_loss import posterior_draw
from dsd.pretraining.denoising_loss import ambient_denoising_loss
from dsd.theory.gaussian_mixture import GaussianMixture

ROOT = torch.tensor([[1.2, 0.5], [0.2, 1.0]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T


def under_noise(mixture):
    """The mixture with noise L n."""
    return GaussianMixture(mixture.weights, mixture.means, mixture.covariances, ROOT)


DATA = under_noise(CLEAN)


def pushed(mixture, scale, shift):
    means, covariances = mixture.means @ scale.T + shift, scale @ mixture.covariances @ scale.T
    return GaussianMixture(mixture.weights, means, covariances, ROOT)


LATENT = pushed(CLEAN, TRUE_SCALE.inverse(), -TRUE_SHIFT @ TRUE_SCALE.inverse().T)


def correlated_pairs(mixture, level, nodes=24):
    """Exact nodes of a mixture's points and noise L n of one level."""
    inverse = ROOT.inverse()
    means, covariances = mixture.means @ inverse.T, inverse @ mixture.covariances @ inverse.T
    white = pairs_of(GaussianMixture(mixture.weights, means, covariances), level, nodes)
    return Pairs(white.point @ ROOT.T, white.n @ ROOT.T, white.mass)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 5.0])
def test_density_score_and_denoiser_belong_together(sigma):
    pairs = correlated_pairs(DATA, sigma, 4)
    x = (pairs.point + sigma * pairs.n).requires_grad_()
    level = levels_of(pairs, sigma)
    textbook = [
        torch.distributions.MultivariateNormal(m, c + sigma**2 * COVARIANCE).log_prob(x) + w.log()
        for w, m, c in zip(CLEAN.weights, CLEAN.means, CLEAN.covariances, strict=True)
    ]
    density = DATA.log_prob(x, level)
    torch.testing.assert_close(density, torch.stack(textbook).logsumexp(0))
    (score,) = torch.autograd.grad(density.sum(), x)
    torch.testing.assert_close(DATA.score(x, level), score)
    tweedie = x + sigma**2 * score @ COVARIANCE
    torch.testing.assert_close(DATA.denoiser(x, level), tweedie, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("sigma_y", "sigma_add"), CASES)
def test_ambient_tweedie_has_its_usual_form(sigma_y, sigma_add):
    sigma = math.hypot(sigma_y, sigma_add)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a = (sigma_add / sigma) ** 2
    expected = a * DATA.denoiser(x, sigma) + (1 - a) * x
    torch.testing.assert_close(DATA.noisy(sigma_y).denoiser(x, sigma_add), expected)
    drawn = DATA.noisy(sigma_y).sample(200_000, generator=torch.Generator().manual_seed(2))
    plain = CLEAN.sample(200_000, generator=torch.Generator().manual_seed(3))
    noise = drawn.T.cov() - plain.T.cov()
    torch.testing.assert_close(noise, sigma_y**2 * COVARIANCE, rtol=0, atol=0.02)


def perturbation_gradient(steps, case, weighting="edm", added=None):
    """Gradient of the adjusted objective at D* + steps . basis; ``added`` replaces L n."""
    sigma_y, add = case
    pairs = correlated_pairs(DATA.noisy(sigma_y), add, nodes=44)
    steps = torch.tensor(steps, dtype=torch.float64, requires_grad=True)

    def denoise(x, sigma):
        moved = sum(step * basis(x) for step, basis in zip(steps, BASIS, strict=True))
        return DATA.denoiser(x, sigma) + moved

    loss = ambient_denoising_loss(
        denoise, pairs.point, sigma_y=sigma_y, sigma=math.hypot(sigma_y, add), sigma_add=add,
        n=pairs.n if added is None else added(pairs), weighting=weighting, sigma_data=0.5,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(pairs.mean(loss), steps)
    return gradient


@pytest.mark.parametrize("weighting", get_args(Weighting))
@pytest.mark.parametrize("case", CASES)
def test_noisy_data_lead_to_the_clean_posterior_mean(weighting, case):
    at_best = perturbation_gradient(NOWHERE, case, weighting)
    for index in range(len(BASIS)):
        ahead = perturbation_gradient(one_step(index, 0.1), case, weighting)[index]
        assert float(ahead) > 0
        assert float(at_best.abs().max()) < 1e-5 * float(ahead)


def test_white_noise_on_correlated_noise_leads_elsewhere():
    moved = perturbation_gradient(
        NOWHERE, (0.4, 0.6), added=lambda pairs: pairs.n @ ROOT.inverse().T
    )
    assert float(moved.abs().max()) > 0.01


def test_the_exact_denoiser_is_consistent_where_its_own_noise_is_drawn():
    """E[D(x_low)] = D(x) over the reverse step of near levels, and not with white noise."""
    high, low = 0.5, 0.5 / 1.03
    x = DATA.noisy(high).sample(200, generator=torch.Generator().manual_seed(1))
    nodes, mass = grid(10)
    states = x.repeat_interleave(len(nodes), 0)
    levels = torch.full((len(states),), high, dtype=torch.float64)

    def mean_square(noise):
        x_low = posterior_draw(
            states, DATA.denoiser(states, high), noise.repeat(len(x), 1), current=levels,
            following=levels * low / high,
        )  # fmt: skip
        drawn = DATA.denoiser(x_low, low).view(len(x), len(nodes), 2)
        mean = torch.einsum("n,bnd->bd", mass, drawn)
        return float((mean - DATA.denoiser(x, high)).square().mean())

    assert 10 * mean_square(nodes @ ROOT.T) < mean_square(nodes)


# Distillation: x_g = A u + c.


def sid(alpha):
    return lambda x_g, pair: score_identity_loss(x_g, pair, alpha=alpha)


LOSSES = {**{f"sid {alpha}": sid(alpha) for alpha in ALPHAS}, "dmd": reverse_kl_loss}


def generated(scale, shift, sigma):
    held = scale.detach(), shift.detach()
    pairs = correlated_pairs(pushed(LATENT, *held), sigma)
    u = (pairs.point - held[1]) @ held[0].inverse().T
    return u @ scale.T + shift, pairs


def denoised(x_g, pairs, sigma, fake):
    x_t = x_g + sigma * pairs.n
    return DenoiserPair(DATA.denoiser(x_t, sigma), fake.denoiser(x_t, sigma))


@pytest.mark.parametrize("name", LOSSES)
def test_where_generator_and_data_agree_no_image_has_a_gradient(name):
    x_g, pairs = generated(TRUE_SCALE, TRUE_SHIFT, 0.6)
    x_g = x_g.requires_grad_()
    pair = denoised(x_g, pairs, 0.6, pushed(LATENT, TRUE_SCALE, TRUE_SHIFT))
    (gradient,) = torch.autograd.grad(LOSSES[name](x_g, pair).sum(), x_g)
    assert float(gradient.abs().max()) < 1e-9


def image_gradient(loss, start, sigma, metric=None):
    """Gradient with respect to (scale, shift), of images' gradients times a matrix."""
    scale, shift = (part.clone().requires_grad_() for part in start)
    x_g, pairs = generated(scale, shift, sigma)
    images = x_g.detach().requires_grad_()
    pair = denoised(images, pairs, sigma, pushed(LATENT, *start))
    values = pairs.mean(loss(images, pair) * omega(images, pair))
    (gradient,) = torch.autograd.grad(values, images)
    if metric is not None:
        gradient = gradient @ metric
    return flat(torch.autograd.grad(x_g, (scale, shift), gradient))


def law_mean(function, scale, shift, sigma):
    x_g, pairs = generated(scale, shift, sigma)
    return pairs.mean(function(x_g + sigma * pairs.n))


def fisher(scale, shift, sigma):
    fake = pushed(LATENT, scale, shift)
    return law_mean(
        lambda x: (DATA.denoiser(x, sigma) - fake.denoiser(x, sigma)).square().sum(1),
        scale, shift, sigma,
    )  # fmt: skip


def reverse_kl(scale, shift, sigma):
    fake = pushed(LATENT, scale, shift)
    return law_mean(
        lambda x: fake.log_prob(x, sigma) - DATA.log_prob(x, sigma), scale, shift, sigma
    )


def cross_entropy(scale, shift, sigma):
    return law_mean(lambda x: -DATA.log_prob(x, sigma), scale, shift, sigma)


GRADIENTS = {
    "alpha 1/2 is half of the gap's": (sid(0.5), fisher, lambda _: 0.5, None),
    "dmd is K times the reverse KL's": (
        reverse_kl_loss, reverse_kl, lambda sigma: sigma**2, COVARIANCE.inverse(),
    ),
    "sds is K times the cross entropy's": (
        score_distillation_sampling_loss, cross_entropy, lambda sigma: sigma**2,
        COVARIANCE.inverse(),
    ),
}  # fmt: skip
"""Loss, divergence, what its gradient is multiplied with, and what undoes K."""


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize(("start", "sigma"), PLACES[1:])
def test_a_loss_has_the_gradient_of_its_divergence(start, sigma, name):
    loss, divergence, factor, metric = GRADIENTS[name]
    gradient = image_gradient(loss, start, sigma, metric)
    exact = factor(sigma) * derivative(lambda *at: divergence(*at, sigma), start)
    torch.testing.assert_close(gradient, exact, rtol=1e-3, atol=1e-4)
