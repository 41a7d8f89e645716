"""The library against an independent numpy implementation, on denoisers that are not linear."""

import numpy as np
import pytest
import torch
import twins
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from dsd.distillation.losses import (
    DenoiserPair,
    reverse_kl_loss,
    score_distillation_sampling_loss,
    score_identity_loss,
)
from dsd.model.config import Churn, GeneratorNoise, Sampler, TeacherNoise
from dsd.model.denoiser import Denoiser
from dsd.model.noise_levels import karras_levels, sample_generator_levels, sample_teacher_levels
from dsd.model.samplers import sample_teacher
from dsd.pretraining.consistency_loss import consistency_loss, reverse_steps
from dsd.pretraining.denoising_loss import ambient_denoising_loss
from dsd.utils.philox import noise_of
from dsd.utils.random import derive_seed

COUNT, DIM = 3, 4
LEVELS = st.floats(2e-3, 80)
SEEDS = st.integers(0, 1000)
ALPHAS = st.floats(0, 2)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape or (COUNT, DIM))


def levels_of(*values):
    return np.resize(np.array(values, dtype=np.float64), COUNT)


def tensor(array):
    return torch.from_numpy(np.array(array))


def network(seed, xp):
    """A raw network F(x, c_noise) in numpy or torch, the same up to rounding."""
    weight, shift = 0.7 * draw(seed, DIM, DIM), 0.3 * draw(seed + 1, DIM)
    if xp is torch:
        weight, shift = tensor(weight), tensor(shift)
    return lambda x, c_noise: xp.tanh(x @ weight + xp.sin(c_noise)[:, None] * shift)


def denoiser(seed, xp):
    """A denoiser that depends on its level, in numpy or torch."""
    raw = network(seed, xp)
    return lambda x, t: 0.8 * x / (1 + t[:, None]) + 0.4 * raw(x / (1 + t[:, None]), xp.log(t))


class Raw(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.function = network(seed, torch)

    def forward(self, x, c_noise):
        return self.function(x.double(), c_noise.double())


@given(seed=SEEDS, t=LEVELS, other=LEVELS, sigma_data=st.floats(0.1, 2))
def test_preconditioning(seed, t, other, sigma_data):
    level = levels_of(t, other)
    x = draw(seed + 2) * (level + 1)[:, None]
    ours = Denoiser(Raw(seed), sigma_data=sigma_data)(tensor(x), tensor(level))
    twin = twins.preconditioned(network(seed, np), x, level, sigma_data)
    np.testing.assert_allclose(ours, twin, rtol=1e-5, atol=1e-5)  # scalings are float32


@given(
    count=st.integers(2, 50),
    rho=st.floats(1, 10),
    lowest=st.floats(1e-3, 1),
    highest=st.floats(2, 100),
)
def test_the_karras_grid(count, rho, lowest, highest):
    index = torch.linspace(0, 1, count, dtype=torch.float64)
    ours = karras_levels(index, sigma_min=lowest, sigma_max=highest, rho=rho)
    np.testing.assert_allclose(ours, twins.karras_grid(count, lowest, highest, rho), rtol=1e-9)


@given(seed=SEEDS, s=st.floats(2e-3, 3), mean=st.floats(-2, 1), std=st.floats(0.2, 2))
def test_laws_of_the_teachers_levels(seed, s, mean, std):
    """Both invert the same random numbers, but in other formulas."""
    sigma_y = torch.full((50,), s)

    def ours(sampler):
        law = TeacherNoise(distribution=sampler, P_mean=mean, P_std=std)
        return sample_teacher_levels(law, sigma_y, torch.Generator().manual_seed(seed))

    u = torch.randn(50, generator=torch.Generator().manual_seed(seed)).double().numpy()
    p = torch.rand(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    clamped = twins.clamped_level(u, s, mean, std)
    np.testing.assert_allclose(ours("clamped")[0], clamped, rtol=1e-5)
    if norm.cdf((np.log(s) - mean) / std) < 0.999:  # beyond, the twin's formula cancels
        truncated = twins.truncated_level(p, s, mean, std)
        np.testing.assert_allclose(ours("truncated")[0], truncated, rtol=1e-4)
    sigma, added = ours("added")
    np.testing.assert_allclose(added, twins.clamped_level(u, 0.0, mean, std), rtol=1e-5)
    np.testing.assert_allclose(sigma, np.hypot(added.numpy(), s), rtol=1e-5)


@given(seed=SEEDS, tmax=st.floats(0.1, 1), lowest=st.floats(1e-3, 0.1), rho=st.floats(1, 10))
def test_the_law_of_the_generators_levels(seed, tmax, lowest, rho):
    law = GeneratorNoise(sigma_min=lowest, sigma_max=80.0, rho=rho, t_max=tmax)
    again = torch.Generator().manual_seed(seed)
    ours = sample_generator_levels(
        law, 50, torch.Generator().manual_seed(seed), torch.device("cpu")
    )
    r = tmax * torch.rand(50, generator=again).double().numpy()
    twin = twins.generator_level(r, lowest, 80.0, rho)
    np.testing.assert_allclose(ours, twin, rtol=1e-3)


def adjusted(seed, s, added, *, weighting, sigma_data, D):
    """The library's loss for each image."""
    y, n = tensor(draw(seed + 5)), tensor(draw(seed + 6))
    sigma_y, sigma_add = tensor(s), tensor(added)
    return ambient_denoising_loss(
        D,
        y,
        sigma_y=sigma_y,
        sigma=torch.hypot(sigma_y, sigma_add),
        sigma_add=sigma_add,
        n=n,
        weighting=weighting,
        sigma_data=sigma_data,
    )


@pytest.mark.parametrize("weighting", twins.WEIGHTS)
@given(
    seed=SEEDS,
    s=st.floats(0.0, 2),
    ratio=st.floats(0.05, 20),
    sigma_data=st.floats(0.1, 2),
)
def test_the_adjusted_objective(weighting, seed, s, ratio, sigma_data):
    """For observations of several levels in one batch, clean ones among them."""
    sigma_y = levels_of(s, 0.0, 2 * s)
    added = ratio * (sigma_y + 0.1)
    ours = adjusted(
        seed, sigma_y, added, weighting=weighting, sigma_data=sigma_data, D=denoiser(seed, torch)
    )
    t = np.sqrt(sigma_y**2 + added**2)
    twin = twins.adjusted_loss(
        denoiser(seed, np), draw(seed + 5), sigma_y, t, draw(seed + 6),
        twins.WEIGHTS[weighting], sigma_data,
    )  # fmt: skip
    np.testing.assert_allclose(ours, twin, rtol=1e-6)


@pytest.mark.parametrize("weighting", twins.WEIGHTS)
@settings(max_examples=20)
@given(seed=SEEDS, s=st.floats(0.01, 1), added=st.floats(0.05, 5))
def test_the_adjusted_objective_s_gradient(weighting, seed, s, added):
    """With respect to the parameters of a denoiser, here a scale for each coordinate."""
    sigma_y, sigma_add = levels_of(s), levels_of(added)
    t = np.sqrt(sigma_y**2 + sigma_add**2)
    start = 1 + 0.1 * draw(seed + 7, DIM)
    gains = tensor(start).requires_grad_()
    base = denoiser(seed, torch)
    loss = adjusted(
        seed, sigma_y, sigma_add, weighting=weighting, sigma_data=0.5,
        D=lambda x, level: gains * base(x, level),
    )  # fmt: skip
    (ours,) = torch.autograd.grad(loss.sum(), gains)

    def twin(values):
        D = denoiser(seed, np)
        y, n, weight = draw(seed + 5), draw(seed + 6), twins.WEIGHTS[weighting]
        return twins.adjusted_loss(
            lambda x, level: values * D(x, level), y, sigma_y, t, n, weight, 0.5
        ).sum()

    gradient = twins.central_difference(twin, start)
    np.testing.assert_allclose(ours, gradient, rtol=1e-4, atol=1e-6 * np.abs(gradient).max())


@given(seed=SEEDS, t=st.floats(0.05, 20), ratio=st.floats(0.05, 0.95))
def test_the_step_of_the_reverse_process(seed, t, ratio):
    x, level = draw(seed + 2) * t, levels_of(t)
    D = denoiser(seed, np)
    n = draw(seed + 3)
    ours = reverse_steps(
        denoiser(seed, torch), tensor(x), sigma=tensor(level), sigma_low=tensor(ratio * level),
        noise=tensor(n)[:, None],
    )  # fmt: skip
    mean, variance = twins.reverse_mean_and_variance(x, D(x, level), t, ratio * t)
    np.testing.assert_allclose(ours, mean + np.sqrt(variance) * n, rtol=1e-9, atol=1e-12)


@given(seed=SEEDS)
def test_the_consistency_product(seed):
    denoised, first, second = draw(seed), draw(seed + 1), draw(seed + 2)
    ours = consistency_loss(tensor(denoised), tensor(first), tensor(second))
    twin = np.mean((first - denoised) * (second - denoised), axis=1)
    np.testing.assert_allclose(ours, twin, rtol=1e-12, atol=1e-12)


def compared(seed, x_g, t, xp):
    """Teacher and fake at the diffused images, in numpy or torch."""
    n = draw(seed + 4) if xp is np else tensor(draw(seed + 4))
    x_t = x_g + t[:, None] * n
    return denoiser(seed + 10, xp)(x_t, t), denoiser(seed + 20, xp)(x_t, t)


@given(seed=SEEDS, t=LEVELS, alpha=ALPHAS)
def test_the_score_identity_loss_and_its_gradient(seed, t, alpha):
    """The differences hold omega fixed; the value is that of the loss as it is."""
    level, start = levels_of(t, 2 * t), draw(seed + 3)
    x_g = tensor(start).requires_grad_()
    loss = score_identity_loss(
        x_g, DenoiserPair(*compared(seed, x_g, tensor(level), torch)), alpha=alpha
    )
    (ours,) = torch.autograd.grad(loss.sum(), x_g)
    omega = twins.error_scale(start, compared(seed, start, level, np)[0])

    def twin(x):
        return twins.sid_loss(x, *compared(seed, x, level, np), alpha, omega)

    np.testing.assert_allclose(loss.detach(), twin(start), rtol=1e-9)
    gradient = twins.central_difference(lambda x: twin(x).sum(), start)
    np.testing.assert_allclose(ours, gradient, rtol=1e-4, atol=1e-6)


@given(seed=SEEDS, t=LEVELS, sds=st.booleans())
def test_the_gradients_of_the_surrogates(seed, t, sds):
    level, start = levels_of(t, 2 * t), draw(seed + 3)
    x_g = tensor(start).requires_grad_()
    pair = DenoiserPair(*compared(seed, x_g, tensor(level), torch))
    loss = score_distillation_sampling_loss(x_g, pair) if sds else reverse_kl_loss(x_g, pair)
    (ours,) = torch.autograd.grad(loss.sum(), x_g)
    f_r, f_f = compared(seed, start, level, np)

    def twin(x):
        surrogate = twins.sds_loss(x, f_r, start) if sds else twins.dmd_loss(x, f_r, f_f, start)
        return surrogate.sum()

    np.testing.assert_allclose(ours, twins.central_difference(twin, start), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", twins.STEPS)
@settings(max_examples=25)
@given(
    seed=SEEDS,
    s=st.sampled_from([0.0, 0.002, 80.0]) | st.floats(1e-3, 80),
    count=st.integers(2, 20),
    S_churn=st.floats(0, 30),
)
def test_the_samplers(method, seed, s, count, S_churn):
    """One trajectory with branches against three separate runs, with and without churn."""
    limits = {"S_min": 0.05, "S_max": 50.0, "S_noise": 1.007}
    config = Sampler(
        method=method, num_steps=count, sigma_min=0.002, sigma_max=80.0, rho=7.0,
        churn=Churn(S_churn=S_churn, **limits),
    )  # fmt: skip
    z = draw(seed + 3)
    D = denoiser(seed, torch)
    ours = sample_teacher(
        lambda x, t: D(x.double(), t.double()), tensor(z), config=config, sigma_y=s, seed=seed
    )
    noise = [
        noise_of(derive_seed(seed, "churn", step), np.arange(COUNT), (DIM,)).astype(np.float64)
        for step in range(count)
    ]
    in_numpy = denoiser(seed, np)
    twin = twins.sample(
        lambda x, t: in_numpy(x, levels_of(t)), z, twins.karras_grid(count, 0.002, 80.0, 7.0),
        s, method, churn=(S_churn, *limits.values()), noise=noise,
    )  # fmt: skip
    # The library calls denoisers in float32, which matters most where the levels are high.
    for mine, other in zip(ours[:3], twin[:3], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=3e-5)
    if 0 < s < 80 or S_churn == 0:
        assert ours[3:] == twin.calls
