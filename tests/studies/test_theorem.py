"""Theorem 1: closed forms against sampling, quadrature, differences and descent."""

import csv
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dsd.distillation.losses import DenoiserPair, reverse_kl_loss, score_identity_loss
from dsd.pretraining.denoising_loss import ambient_denoising_loss
from dsd.theory.gaussian_mixture import GaussianMixture
from dsd.theory.linear_model import (
    LinearModel,
    descend,
    fisher_pull,
    generator_gradient,
    ideal_loss,
    learned_covariance,
    predicted_covariance,
    reverse_kl_pull,
    score_identity_pull,
    subspace_error,
    wasserstein,
)
from pipeline.stage_io.paths import Paths
from studies import theorem, theorem_cases

PULLS = {
    "fisher": fisher_pull,
    "reverse kl": reverse_kl_pull,
    "sid 1.0": score_identity_pull(1.0),
    "sid 1.2": score_identity_pull(1.2),
}
# The same level, noisier and cleaner on the fake side than in the data.
FAKE_NOISES = [0.0, 0.6, 0.5, 0.75]
LEVELS = torch.tensor([0.2, 0.8, 3.0], dtype=torch.float64)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model_with(variances, sigma_fake, *, sigma_y=0.6, levels=LEVELS, seed=0):
    axes = torch.linalg.qr(normal(len(variances), len(variances), seed=seed)).Q
    clean = axes * torch.tensor(variances, dtype=torch.float64) @ axes.T
    return LinearModel(clean, sigma_y, sigma_fake, levels, weights=levels**2)


def mixtures(model, covariance):
    """Noisy data and noisy generator, as mixtures of one component."""
    zero = torch.zeros(1, len(model.clean), dtype=torch.float64)
    data = GaussianMixture(torch.ones(1), zero, model.clean[None]).noisy(model.sigma_y)
    fake = GaussianMixture(torch.ones(1), zero, covariance[None]).noisy(model.sigma_fake)
    return data, fake


def numeric_gradient(function, place, h=1e-5):
    """Central differences for each entry."""
    slopes = torch.zeros_like(place)
    for index in np.ndindex(*place.shape):
        step = torch.zeros_like(place)
        step[index] = h
        slopes[index] = (function(place + step) - function(place - step)) / (2 * h)
    return slopes


@pytest.mark.parametrize("sigma_fake", FAKE_NOISES)
def test_the_closed_form_is_the_mean_squared_difference_of_exact_scores(sigma_fake):
    model = model_with([1.0, 0.3, 0.0], sigma_fake)
    covariance = learned_covariance(normal(3, 2, seed=1))
    data, fake = mixtures(model, covariance)
    points, n = fake.sample(200_000, generator=torch.Generator().manual_seed(2)), normal(
        200_000, 3, seed=3
    )  # fmt: skip
    total = 0.0
    for level, weight in zip(LEVELS, model.weights, strict=True):
        x, each = points + level * n, level.expand(len(points))
        total += weight * (data.score(x, each) - fake.score(x, each)).square().sum(1).mean()
    assert float(ideal_loss(model, covariance)) == pytest.approx(float(total), rel=0.02)


@pytest.mark.parametrize("sigma_fake", FAKE_NOISES)
def test_the_fisher_gradient_is_that_of_the_ideal_loss_and_half_of_it_is_sids(sigma_fake):
    model, factor = model_with([1.0, 0.3, 0.0], sigma_fake), normal(3, 2, seed=1)
    exact = numeric_gradient(lambda g: ideal_loss(model, learned_covariance(g)), factor)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(generator_gradient(model, factor, fisher_pull), exact, **close)
    half = generator_gradient(model, factor, score_identity_pull(0.5))
    torch.testing.assert_close(half, exact / 2, **close)


def test_the_reverse_kl_gradient_is_that_of_the_divergence():
    model, factor = model_with([1.0, 0.3, 0.0], 0.5), normal(3, 2, seed=1)

    def divergence(g):
        b = model.generator_covariances(learned_covariance(g))
        inner = (model.data_precisions @ b).diagonal(dim1=-2, dim2=-1).sum(-1) - b.logdet()
        return (model.weights * inner / 2).sum()

    exact = numeric_gradient(divergence, factor)
    gradient = generator_gradient(model, factor, reverse_kl_pull)
    torch.testing.assert_close(gradient, exact, rtol=1e-6, atol=1e-6)


def quadratic_nodes(dimension):
    """Nodes of a standard normal with equal masses, exact for polynomials of degree 3."""
    units = math.sqrt(dimension) * torch.eye(dimension, dtype=torch.float64)
    return torch.cat([units, -units])


@pytest.mark.parametrize("name", [name for name in PULLS if name != "fisher"])
@pytest.mark.parametrize("sigma_fake", FAKE_NOISES)
def test_the_losses_that_networks_train_with_have_these_expected_gradients(name, sigma_fake):
    """``dsd.losses`` with exact linear denoisers, whose expectation two nodes an axis give."""
    level = torch.tensor([0.7], dtype=torch.float64)
    model = model_with([1.0, 0.3, 0.0], sigma_fake, levels=level)
    factor = normal(3, 2, seed=1).requires_grad_()
    held = factor.detach()
    variance = sigma_fake**2 + float(level) ** 2
    nodes = quadratic_nodes(5)
    x_g = nodes[:, :2] @ factor.T
    x_t = x_g + variance**0.5 * nodes[:, 2:]
    # Each denoiser follows from its own score: D = x + variance * score.
    data = model.data_precisions[0]
    fake = model.generator_covariances(learned_covariance(held))[0].inverse()
    pair = DenoiserPair(x_t - variance * x_t @ data, x_t - variance * x_t @ fake)
    if name == "reverse kl":
        loss, power = reverse_kl_loss(x_g, pair), 1
    else:
        loss, power = score_identity_loss(x_g, pair, alpha=float(name.split()[1])), 2
    omega = (x_g - pair.teacher).abs().mean(1).detach()
    (gradient,) = torch.autograd.grad((loss * omega).mean(), factor)
    expected = generator_gradient(model, held, PULLS[name]) * variance**power / model.weights
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma_fake", FAKE_NOISES)
@pytest.mark.parametrize("name", PULLS)
def test_at_the_predicted_optimum_no_direction_pulls(name, sigma_fake):
    """Allowed directions, that is: a variance held at 0 may still be pushed below it."""
    model = model_with([1.0, 0.3, 0.1, 0.0], sigma_fake)
    for rank in (1, 2, 4):
        variances, axes = torch.linalg.eigh(predicted_covariance(model, rank))
        factor = axes[:, -rank:] * variances[-rank:].clamp(min=0).sqrt()
        gradient = generator_gradient(model, factor, PULLS[name])
        assert float(gradient.abs().max()) < 1e-6


@given(
    sigma_fake=st.sampled_from(FAKE_NOISES),
    rank=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    size=st.floats(0.01, 3),
)
def test_no_generator_of_its_rank_does_better_than_the_predicted_one(sigma_fake, rank, seed, size):
    model = model_with([1.0, 0.5, 0.1], sigma_fake)
    best = float(ideal_loss(model, predicted_covariance(model, rank)))
    other = learned_covariance(size * normal(3, rank, seed=seed))
    assert float(ideal_loss(model, other)) > best - 1e-12


def test_the_predicted_variances_are_those_of_the_theorem_and_its_extensions():
    variances, shared = [1.0, 0.5, 0.1, 0.0], {"sigma_y": 0.5}
    expected = {
        (0.0, 2): [1.25, 0.75, 0, 0],
        (0.0, 4): [1.25, 0.75, 0.35, 0.25],
        (0.5, 2): [1.0, 0.5, 0, 0],
        (0.5, 4): [1.0, 0.5, 0.1, 0],
        (0.4, 4): [1.09, 0.59, 0.19, 0.09],
        # 0.1 + 0.25 < 0.64: the faintest directions are clipped.
        (0.8, 4): [0.61, 0.11, 0, 0],
    }
    for (sigma_fake, rank), wanted in expected.items():
        model = model_with(variances, sigma_fake, **shared)
        best = predicted_covariance(model, rank)
        found = torch.linalg.eigvalsh(best).flip(0)
        torch.testing.assert_close(
            found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-9
        )
        kept = sum(value > 0 for value in wanted)
        if kept < 4:
            assert float(subspace_error(best, model.clean, kept)) < 1e-9


@pytest.mark.parametrize("name", PULLS)
@pytest.mark.parametrize("sigma_fake", FAKE_NOISES)
def test_descent_from_random_starts_reaches_the_prediction(name, sigma_fake):
    model = model_with([1.8, 1.0, 0.4, 0.0, 0.0], sigma_fake)
    starts = 0.1 * normal(4, 5, 3, seed=2)
    reached = learned_covariance(descend(model, starts, PULLS[name], num_steps=400))
    best = predicted_covariance(model, 3).expand_as(reached)
    torch.testing.assert_close(reached, best, rtol=0, atol=1e-4)
    assert float(subspace_error(reached, model.clean, 3).max()) < 1e-4


@pytest.mark.parametrize("alpha", [1.1, 1.2, 1.5])
def test_sid_with_alpha_above_one_turns_round_where_the_generator_is_much_too_wide(alpha):
    turn = alpha / (alpha - 1)
    a = torch.tensor([[[1 / 0.3]]], dtype=torch.float64)
    for ratio, sign in ((0.5, -1), (1.01, 1), (0.99 * turn, 1), (1.01 * turn, -1)):
        pull = score_identity_pull(alpha)(a, a / ratio)
        assert float(pull.sign()) == sign
        assert float(score_identity_pull(1.0)(a, a / ratio).sign()) == (1 if ratio > 1 else -1)


@given(
    clean=st.floats(0.0, 2), sigma_y=st.floats(0.1, 1), wrong=st.floats(0.5, 1.5),
    sigma_add=st.floats(0.05, 3),
)  # fmt: skip
def test_regression_with_a_guessed_level_learns_what_the_theory_starts_from(
    clean, sigma_y, wrong, sigma_add
):
    """The best gain on noisy data is a' / (a' + sigma^2), a' = a + sigma_y^2 - sigma_hat^2."""
    sigma_hat = wrong * sigma_y
    nodes = quadratic_nodes(2)
    y = nodes[:, :1] * math.hypot(clean**0.5, sigma_y)
    gain = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    each = torch.ones(len(nodes), dtype=torch.float64)

    def slope(at):
        gain.data.fill_(at)
        loss = ambient_denoising_loss(
            lambda x, _: gain * x, y, sigma_y=sigma_hat * each, sigma_add=sigma_add * each,
            sigma=math.hypot(sigma_hat, sigma_add) * each, n=nodes[:, 1:], weighting="edm",
            sigma_data=0.5,
        )  # fmt: skip
        return float(torch.autograd.grad(loss.mean(), gain)[0])

    best = slope(0.0) / (slope(0.0) - slope(1.0))
    effective = clean + sigma_y**2 - sigma_hat**2
    expected = effective / (effective + sigma_hat**2 + sigma_add**2)
    assert best == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_distance_is_that_of_the_theorems_corollary():
    """Noisy data are farther by the noise in all directions without data."""
    sigma, variances = 0.5, [1.0, 0.5, 0.0, 0.0]
    model = model_with(variances, 0.0, sigma_y=sigma)
    inside = sum((math.hypot(a**0.5, sigma) - a**0.5) ** 2 for a in variances[:2])
    noisy = model.clean + sigma**2 * torch.eye(4).double()
    assert wasserstein(noisy, model.clean) == pytest.approx(inside + 2 * sigma**2)
    best = predicted_covariance(model, 2)
    assert wasserstein(best, model.clean) == pytest.approx(inside)


def test_a_row_holds_the_worst_of_its_starts():
    narrow, wide = theorem_cases.measure("sigma_y (matched)", "SiD, alpha 1.2", 3, 0.5)
    assert (narrow.starts, wide.starts) == ("narrow", "wide")
    assert narrow.arrived == theorem_cases.NUM_STARTS > wide.arrived
    assert narrow.eigenvalues == narrow.predicted == "1.00 0.40 0.10"
    assert narrow.eigenvalue_error < 1e-6 > narrow.subspace_error
    assert narrow.w2_generated < 1e-9 < narrow.w2_noisy
    assert wide.eigenvalue_error > 1


def test_the_command_finds_the_theorem_true_and_draws_it(tmp_path, monkeypatch, capsys):
    cases = [*itertools.product(theorem_cases.FAKE_NOISES, ["Fisher"], [3], [0.5])]
    fewer = {"all_cases": lambda: cases, "DIVERGENCES": ["Fisher"], "NUM_STEPS": 400}
    for name, value in fewer.items():
        monkeypatch.setattr(theorem, name, value)
    monkeypatch.setattr(theorem_cases, "NUM_STEPS", 400)
    theorem.run(Paths(tmp_path))
    folder = tmp_path / "reports" / "theorem"
    rows = [*csv.DictReader((folder / "table.csv").open())]
    assert [row["fake_noise"] for row in rows[::2]] == [*theorem_cases.FAKE_NOISES]
    for row in rows:
        assert float(row["eigenvalue_error"]) < 1e-4, row
        assert float(row["subspace_error"]) < 1e-4, row
        assert row["eigenvalues"] == row["predicted"]
    picture = np.asarray(Image.open(folder / "theorem.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    printed = capsys.readouterr().out
    assert "5/5" in printed
    assert "reports/theorem/table.csv" in printed
