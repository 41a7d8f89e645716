"""Every loss against exact mixtures of Gaussians, in two dimensions and without random numbers.

Expectations are Gauss-Hermite sums over pairs of a point and the noise that diffuses it. Each
component's pair is turned into the diffused state, which gets many nodes because denoisers are
curved in it, and its orthogonal complement, in which all losses here are at most quadratic: two
nodes are exact.
"""

from dataclasses import dataclass
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch

from dsd.distillation.losses import (
    DenoiserPair,
    gap,
    reverse_kl_loss,
    score_distillation_sampling_loss,
    score_identity_loss,
)
from dsd.pretraining.config import Weighting
from dsd.pretraining.denoising_loss import ambient_denoising_loss
from dsd.theory.gaussian_mixture import GaussianMixture

CLEAN = GaussianMixture(
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    torch.tensor([[-0.9, 0.2], [0.7, 0.5], [0.2, -0.8]], dtype=torch.float64),
    # Round, tilted and singular.
    torch.tensor(
        [[[0.1, 0.0], [0.0, 0.1]], [[0.2, -0.1], [-0.1, 0.15]], [[0.16, 0.08], [0.08, 0.04]]],
        dtype=torch.float64,
    ),
)


@dataclass
class Pairs:
    """Nodes of (point, noise): ``point + level * n`` is the diffused state."""

    point: torch.Tensor
    n: torch.Tensor
    mass: torch.Tensor

    def mean(self, values):
        return torch.tensordot(self.mass, values, 1)


@cache
def grid(nodes):
    """Nodes and masses of the standard normal in the plane."""
    x, mass = np.polynomial.hermite_e.hermegauss(nodes)
    x, mass = torch.from_numpy(x), torch.from_numpy(mass / mass.sum())
    return torch.cartesian_prod(x, x), torch.outer(mass, mass).flatten()


def pairs_of(mixture, level, nodes=24):
    """Exact (point, noise) nodes of a mixture's points and noise of one level."""
    (state, state_mass), (rest, rest_mass) = grid(nodes), grid(2)
    state, rest = (part.reshape(-1, 2) for part in torch.broadcast_tensors(
        state[:, None], rest[None]))  # fmt: skip
    mass = torch.outer(state_mass, rest_mass).flatten()
    points, noises = [], []
    for mean, covariance in zip(mixture.means, mixture.covariances, strict=True):
        variances, axes = torch.linalg.eigh(covariance)
        std, total = variances.clamp(min=0).sqrt(), (variances + level**2).sqrt()
        points.append(mean + (std * (std * state - level * rest) / total) @ axes.T)
        noises.append((level * state + std * rest) / total @ axes.T)
    masses = torch.outer(mixture.weights, mass).flatten()
    return Pairs(torch.cat(points), torch.cat(noises), masses)


def levels_of(pairs, level):
    return torch.full_like(pairs.mass, level)


# Teachers: the adjusted objective on noisy observations.

BASIS = (
    torch.ones_like,
    lambda x: x,
    lambda x: (x.flip(1) / 2).tanh(),
    lambda x: torch.exp(-(x**2).sum(1, keepdim=True) / 6) * x,
)
CASES = [(0.0, 0.8), (0.4, 0.6), (0.4, 1.2), (0.7, 0.4)]


def perturbation_gradient(steps, observed, weighting="edm", believed=None, exact=CLEAN):
    """Gradient of the loss of D* + steps . basis with respect to the steps.

    ``observed`` lists groups (sigma_y, sigma_add), all in one batch; ``believed`` replaces what
    the loss is told of each group's sigma_y.
    """
    groups = [pairs_of(CLEAN.noisy(sigma_y), add, nodes=32) for sigma_y, add in observed]
    y, n, mass = (
        torch.cat([getattr(group, name) for group in groups]) for name in ("point", "n", "mass")
    )
    told = believed or [sigma_y for sigma_y, _ in observed]
    sigma_y = torch.cat([levels_of(group, s) for group, s in zip(groups, told, strict=True)])
    add = torch.cat([levels_of(g, a) for g, (_, a) in zip(groups, observed, strict=True)])
    steps = torch.tensor(steps, dtype=torch.float64, requires_grad=True)

    def denoise(x, sigma):
        moved = sum(step * basis(x) for step, basis in zip(steps, BASIS, strict=True))
        return exact.denoiser(x, sigma) + moved

    loss = ambient_denoising_loss(
        denoise, y, sigma_y=sigma_y, sigma=torch.hypot(sigma_y, add), sigma_add=add, n=n,
        weighting=weighting, sigma_data=0.5,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(torch.dot(mass, loss), steps)
    return gradient


NOWHERE = [0.0] * len(BASIS)


def one_step(index, size):
    return [size if i == index else 0.0 for i in range(len(BASIS))]


@pytest.mark.parametrize("weighting", get_args(Weighting))
@pytest.mark.parametrize("case", CASES)
def test_noisy_data_lead_the_adjusted_objective_to_the_clean_posterior_mean(weighting, case):
    at_best = perturbation_gradient(NOWHERE, [case], weighting)
    for index in range(len(BASIS)):
        ahead, behind, far = (
            perturbation_gradient(one_step(index, size), [case], weighting)
            for size in (0.1, -0.1, 0.2)
        )
        assert float(ahead[index]) > 0
        # Quadratic around its minimum, so that the gradient is odd and linear.
        torch.testing.assert_close(behind, -ahead, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(far, 2 * ahead, rtol=1e-5, atol=1e-6)
        assert float(at_best.abs().max()) < 1e-5 * float(ahead[index])


@pytest.mark.parametrize("weighting", get_args(Weighting))
def test_clean_and_noisy_data_in_one_batch_agree_on_the_minimiser(weighting):
    at_best = perturbation_gradient(NOWHERE, CASES, weighting)
    for index in range(len(BASIS)):
        ahead = perturbation_gradient(one_step(index, 0.1), CASES, weighting)[index]
        behind = perturbation_gradient(one_step(index, -0.1), CASES, weighting)[index]
        assert float(ahead) > 0 > float(behind)
        assert float(at_best.abs().max()) < 1e-5 * float(ahead)


def test_the_standard_objective_leads_to_the_noisy_posterior_mean_instead():
    observed, believed = [(0.4, 0.6)], [0.0]
    clean = perturbation_gradient(NOWHERE, observed, believed=believed)
    noisy = perturbation_gradient(NOWHERE, observed, believed=believed, exact=CLEAN.noisy(0.4))
    assert float(clean.abs().max()) > 0.1
    assert float(noisy.abs().max()) < 1e-5


@pytest.mark.parametrize("sigma_hat", [0.32, 0.48])
def test_a_wrong_noise_level_in_one_group_moves_the_minimiser(sigma_hat):
    observed = [(0.0, 0.8), (0.4, 0.6)]
    gradient = perturbation_gradient(NOWHERE, observed, believed=[0.0, sigma_hat])
    # Along "x": too low a level keeps noise in the data (larger D), too high a one shrinks them.
    assert float(gradient[1]) * (0.4 - sigma_hat) < -1e-4


# Distillation: x_g = A u + c, u a fixed mixture, whose law is a mixture again.

TRUE_SCALE = torch.tensor([[1.1, -0.3], [0.2, 0.9]], dtype=torch.float64)
TRUE_SHIFT = torch.tensor([0.3, -0.2], dtype=torch.float64)
OFF = [
    (torch.eye(2, dtype=torch.float64), torch.tensor([0.0, 0.3], dtype=torch.float64)),
    (1.3 * TRUE_SCALE, TRUE_SHIFT),
    (TRUE_SCALE @ torch.tensor([[0.8, 0.2], [0.0, 0.9]], dtype=torch.float64), TRUE_SHIFT - 0.2),
]
PLACES = [(OFF[0], 0.7), (OFF[1], 1.2), (OFF[2], 0.8)]
ALPHAS = [0.5, 1.0, 1.2]


def pushed(mixture, scale, shift):
    """The law of scale @ u + shift."""
    return GaussianMixture(
        mixture.weights, mixture.means @ scale.T + shift, scale @ mixture.covariances @ scale.T
    )


LATENT = pushed(CLEAN, TRUE_SCALE.inverse(), -TRUE_SHIFT @ TRUE_SCALE.inverse().T)


def sid(alpha):
    return lambda x_g, pair: score_identity_loss(x_g, pair, alpha=alpha)


LOSSES = {**{f"sid {alpha}": sid(alpha) for alpha in ALPHAS}, "dmd": reverse_kl_loss}


def omega(x_g, pair):
    """What the losses divide by, to undo it where a closed form has no such factor."""
    return (x_g - pair.teacher).abs().mean(1).detach()


def generated(scale, shift, sigma, nodes=24):
    """Nodes of (x_g, n) for the generator, x_g differentiable in scale and shift."""
    held = scale.detach(), shift.detach()
    pairs = pairs_of(pushed(LATENT, *held), sigma, nodes)
    u = (pairs.point - held[1]) @ held[0].inverse().T
    return u @ scale.T + shift, pairs


def denoised(x_g, pairs, sigma, fake):
    x_t, level = x_g + sigma * pairs.n, levels_of(pairs, sigma)
    return DenoiserPair(CLEAN.denoiser(x_t, level), fake.denoiser(x_t, level))


def parameter_gradient(loss, start, sigma, *, scaled=True, nodes=24):
    """Gradient of the expected loss with respect to (scale, shift), with an exact fake."""
    scale, shift = (part.clone().requires_grad_() for part in start)
    x_g, pairs = generated(scale, shift, sigma, nodes)
    pair = denoised(x_g, pairs, sigma, pushed(LATENT, *start))
    values = loss(x_g, pair) * (1 if scaled else omega(x_g, pair))
    return flat(torch.autograd.grad(pairs.mean(values), (scale, shift)))


def flat(parts):
    return torch.cat([part.flatten() for part in parts])


def derivative(function, start, h=1e-4):
    """Central differences of a function of (scale, shift)."""
    slopes = []
    for unit in h * torch.eye(6, dtype=torch.float64):
        step = unit[:4].view(2, 2), unit[4:]
        ahead, behind = ([p + s * d for p, d in zip(start, step, strict=True)] for s in (1, -1))
        slopes.append((function(*ahead) - function(*behind)) / (2 * h))
    return torch.stack(slopes)


def law_mean(function, scale, shift, sigma):
    """E[function(x_t)] for the generator's diffused images."""
    x_g, pairs = generated(scale, shift, sigma)
    return pairs.mean(function(x_g + sigma * pairs.n, levels_of(pairs, sigma)))


def fisher(scale, shift, sigma):
    """The exact expected squared difference of both exact denoisers."""
    fake = pushed(LATENT, scale, shift)
    return law_mean(
        lambda x, s: (CLEAN.denoiser(x, s) - fake.denoiser(x, s)).square().sum(1),
        scale, shift, sigma,
    )  # fmt: skip


def cross_entropy(scale, shift, sigma):
    return law_mean(lambda x, s: -CLEAN.log_prob(x, s), scale, shift, sigma)


def reverse_kl(scale, shift, sigma):
    fake = pushed(LATENT, scale, shift)
    return law_mean(lambda x, s: fake.log_prob(x, s) - CLEAN.log_prob(x, s), scale, shift, sigma)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sigma", [0.3, 0.8])
def test_where_generator_and_data_agree_no_image_has_a_gradient(name, sigma):
    x_g, pairs = generated(TRUE_SCALE, TRUE_SHIFT, sigma, nodes=12)
    x_g = x_g.requires_grad_()
    pair = denoised(x_g, pairs, sigma, pushed(LATENT, TRUE_SCALE, TRUE_SHIFT))
    (gradient,) = torch.autograd.grad(LOSSES[name](x_g, pair).sum(), x_g)
    assert float(gradient.abs().max()) < 1e-9


@pytest.mark.parametrize(("start", "sigma"), PLACES)
@pytest.mark.parametrize("alpha", [0.0, *ALPHAS])
def test_the_expected_score_identity_loss_is_one_minus_alpha_times_the_gap(start, sigma, alpha):
    x_g, pairs = generated(*start, sigma)
    pair = denoised(x_g, pairs, sigma, pushed(LATENT, *start))
    value = pairs.mean(score_identity_loss(x_g, pair, alpha=alpha) * omega(x_g, pair)) / 2
    expected = pairs.mean(gap(pair))
    assert float(expected) > 1e-3
    assert float(value / expected) == pytest.approx(1 - alpha, abs=1e-5)


GRADIENTS = {
    "alpha 1/2 is half of the Fisher divergence": (sid(0.5), fisher, lambda _: 0.5),
    "dmd is the reverse KL": (reverse_kl_loss, reverse_kl, lambda sigma: sigma**2),
    "sds is the cross entropy": (
        score_distillation_sampling_loss,
        cross_entropy,
        lambda sigma: sigma**2,
    ),
}
"""Loss, divergence of both distributions, and what its gradient is multiplied with."""


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize(("start", "sigma"), PLACES)
def test_a_loss_has_the_gradient_of_its_divergence(start, sigma, name):
    loss, divergence, factor = GRADIENTS[name]
    gradient = parameter_gradient(loss, start, sigma, scaled=False)
    exact = factor(sigma) * derivative(lambda *at: divergence(*at, sigma), start)
    torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-5)


def test_sds_shrinks_what_is_right_already():
    """Growing the images about their mean would raise it: no entropy speaks for spread."""
    gradient = parameter_gradient(
        score_distillation_sampling_loss, (TRUE_SCALE, TRUE_SHIFT), 0.8, scaled=False
    )
    growth = torch.cat([TRUE_SCALE.flatten(), torch.zeros(2, dtype=torch.float64)])
    assert float(gradient @ growth) > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_descent_takes_the_generator_to_the_data(name):
    start = torch.tensor([1.3, -0.1, 0.0, 0.7, 0.1, 0.1], dtype=torch.float64)
    goal = flat((TRUE_SCALE, TRUE_SHIFT))
    place = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([place], lr=0.1, betas=(0.8, 0.9))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    for _ in range(80):
        at = place.detach()
        place.grad = parameter_gradient(LOSSES[name], (at[:4].view(2, 2), at[4:]), 0.5, nodes=10)
        optimizer.step()
        schedule.step()
    assert float((place.detach() - goal).norm()) < 0.05 * float((start - goal).norm())
