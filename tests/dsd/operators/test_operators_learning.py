"""Denoisers, losses and distillation of partly observed images, against a correlated Gaussian."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_operators import normal, operator, random
from stage_helpers import params_with
from tiny_training import fake_step, judged
from torch import nn

from dsd.distillation.trainer import Distillation
from dsd.model.checkpoint import (
    build_denoiser,
    load_denoiser,
    load_generator,
    read_spec,
    save_model,
)
from dsd.model.denoiser import MaskedDenoiser, coefficients
from dsd.pretraining.denoising_loss import ambient_denoising_loss, projected_denoising_loss
from dsd.pretraining.trainer import TeacherTraining, denoising_step_loss, sample_denoising_noise
from dsd.selection.proximal import renoise
from dsd.utils.images import from_uint8, to_uint8

SHAPE = (2, 6, 6)
NUMBERS = math.prod(SHAPE)
SIGMA_Y = 0.4
WITH_VIEWS = ("mask", "fourier")
KINDS = ("identity", "mask", "blur", "downsample", "fourier")


def op_of(kind, **changes):
    small = {"blur": {"radius": 2}, "fourier": {"center": 0.2}}
    return operator(kind, SHAPE, **{**small.get(kind, {}), **changes})


def network(**changes):
    keys = {"patch_size": 1, "model_channels": 8, "channel_mult": [1], "attention_resolutions": []}
    return params_with(network={**keys, **changes}).network


def covariance():
    """Of images whose pixels and channels are all correlated: most is in 6 directions."""
    factor = normal((6,), 5, count=NUMBERS) / math.sqrt(6)
    return factor @ factor.T + 0.02 * torch.eye(NUMBERS, dtype=torch.float64)


def matrix_of(op, view):
    """P_V of one view as a matrix."""
    basis = torch.eye(NUMBERS, dtype=torch.float64).reshape(NUMBERS, *SHAPE)
    return op.project(basis, view.expand(NUMBERS, -1, -1, -1)).reshape(NUMBERS, NUMBERS).T


class Exact(nn.Module):
    """E[x0 | P_V x] of that Gaussian times a factor, with another factor where V shows nothing."""

    def __init__(self, op):
        super().__init__()
        self.op, self.cov = op, covariance()
        self.factors = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x, sigma, view):
        rows = []
        for one, level, shown in zip(x, sigma, view, strict=True):
            project = matrix_of(self.op, shown[None])
            gram = project @ self.cov @ project + level**2 * project
            gain = self.cov @ project @ torch.linalg.pinv(gram, hermitian=True, rtol=1e-9)
            rows.append((gain @ project @ one.flatten()).reshape(one.shape))
        denoised = torch.stack(rows)
        seen = self.op.project(denoised, view)
        return self.factors[0] * seen + self.factors[1] * (denoised - seen)


def observations(op, count, seed):
    root = torch.linalg.cholesky(covariance())
    x0 = (normal((NUMBERS,), seed, count) @ root.T).reshape(count, *SHAPE)
    view = op.views.draw(count, random(seed + 1))
    return op.project(x0 + SIGMA_Y * normal(SHAPE, seed + 2, count), view), view


def losses(op, denoiser, weighting="edm", count=200, seed=0):
    """The loss at one level for each of many observations."""
    y, view = observations(op, count, seed)
    levels = torch.full((count,), 0.9, dtype=torch.float64)
    given = op.views.further(view, random(seed + 3))
    return projected_denoising_loss(
        denoiser,
        y,
        views=op.views,
        observed=view,
        given=given,
        sigma_y=torch.full_like(levels, SIGMA_Y),
        sigma=levels,
        sigma_add=(levels**2 - SIGMA_Y**2).sqrt(),
        n=normal(SHAPE, seed + 4, count),
        weighting=weighting,
        sigma_data=0.5,
    )


@pytest.mark.parametrize("weighting", ["edm", "inverse-variance"])
@pytest.mark.parametrize("kind", WITH_VIEWS)
def test_the_conditional_mean_is_the_minimum_where_given_and_where_filled_in(kind, weighting):
    op = op_of(kind, further_mask_prob=0.5)
    exact = Exact(op)
    gradients = []
    for row in losses(op, exact, weighting):
        gradients.append(torch.autograd.grad(row, exact.factors, retain_graph=True)[0])
    slopes = torch.stack(gradients)
    mean, error = slopes.mean(0), slopes.std(0) / math.sqrt(len(slopes))
    assert (mean.abs() < 3.5 * error).all()
    for factor, sign in ((1.5, 1), (0.5, -1)):
        exact.factors.data.fill_(factor)
        slope = torch.autograd.grad(losses(op, exact, weighting).mean(), exact.factors)[0]
        assert (sign * slope > 5 * error).all()


@pytest.mark.parametrize("weighting", ["edm", "ambient-omni", "inverse-variance"])
def test_whole_views_given_whole_have_the_ambient_loss(weighting):
    op = op_of("mask")
    y, count = normal(SHAPE, 0, 5), 5
    sigma = torch.linspace(0.5, 3, count, dtype=torch.float64)
    whole = torch.ones(count, 1, 6, 6, dtype=torch.bool)
    shared = {
        "sigma_y": torch.full_like(sigma, SIGMA_Y),
        "sigma": sigma,
        "sigma_add": (sigma**2 - SIGMA_Y**2).sqrt(),
        "n": normal(SHAPE, 1, count),
        "weighting": weighting,
        "sigma_data": 0.5,
    }
    found = projected_denoising_loss(
        lambda x, s, v: 0.3 * x, y, views=op.views, observed=whole, given=whole, **shared
    )
    torch.testing.assert_close(found, ambient_denoising_loss(lambda x, s: 0.3 * x, y, **shared))


def test_what_was_not_observed_is_not_judged():
    op = op_of("mask")
    view = op.views.draw(5, random(0))
    given = op.views.further(view, random(1))
    y = op.project(normal(SHAPE, 0, 5), view)
    wrong = normal(SHAPE, 1, 5)
    sigma = torch.full((5,), 0.9, dtype=torch.float64)

    def loss(denoiser):
        return projected_denoising_loss(
            denoiser, y, views=op.views, observed=view, given=given, sigma_y=0 * sigma,
            sigma=sigma, sigma_add=sigma, n=normal(SHAPE, 2, 5), weighting="edm", sigma_data=0.5,
        )  # fmt: skip

    clean = loss(lambda x, s, v: y)
    torch.testing.assert_close(clean, 0 * clean)
    torch.testing.assert_close(loss(lambda x, s, v: y + wrong - op.project(wrong, view)), clean)
    # A mean over what was observed: an error of 1 / 2 everywhere, at both levels' weights.
    hidden = (view & ~given).flatten(1).sum(1) / view.flatten(1).sum(1)
    level = coefficients(sigma, 0.5).c_out
    expected = 0.25 * ((1 - hidden) / level**2 + hidden / 0.25)
    torch.testing.assert_close(loss(lambda x, s, v: y + 0.5), expected)


@pytest.mark.parametrize("kind", WITH_VIEWS)
def test_a_denoiser_sees_its_view_and_nothing_else(kind):
    op = op_of(kind)
    denoiser = random_denoiser(op)
    x, sigma = normal(SHAPE, 0).float(), torch.tensor([0.1, 1.0, 20.0])
    view = op.views.draw(3, random(1))
    denoised = denoiser(x, sigma, view)
    hidden = normal(SHAPE, 2).float()
    other = x + 7 * (hidden - op.project(hidden, view))
    torch.testing.assert_close(denoiser(other, sigma, view), denoised, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(denoiser(x, sigma, op.views.draw(3, random(4))), denoised, atol=1e-3)
    alone = denoiser(x[1:2], sigma[1:2], view[1:2])
    torch.testing.assert_close(alone, denoised[1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", WITH_VIEWS)
def test_a_denoiser_is_told_its_view(kind):
    """Black at a high level is the same image, and has the same scalings, through any view."""
    op = op_of(kind)
    denoiser = random_denoiser(op)
    black, sigma = torch.zeros(2, *SHAPE), torch.full((2,), 1e4)
    first, second = denoiser(black, sigma, op.views.draw(2, random(0)))
    assert (first - second).abs().max() > 1e-3


def test_a_denoiser_s_own_view_is_one_after_further_masking():
    op = op_of("mask", further_mask_prob=0.5)
    views = [build_denoiser(network(), SHAPE, seed=s, views=op.views).view for s in range(100)]
    share = torch.cat(views).float().mean().item()
    assert share == pytest.approx(0.4 * 0.5, abs=4 * math.sqrt(0.2 * 0.8 / 3600))


@pytest.mark.parametrize("kind", WITH_VIEWS)
def test_a_denoiser_in_training_is_given_less_than_was_observed(kind):
    op = op_of(kind, further_mask_prob=0.5)
    y, view = observations(op, 50, 0)
    given, denoiser = [], random_denoiser(op)
    denoiser.register_forward_pre_hook(lambda module, inputs: given.append(inputs[2]))
    drawn = sample_denoising_noise(
        torch.full((50,), SIGMA_Y),
        SHAPE,
        objective="adjusted",
        noise=training_params().pretrain.noise,
        views=denoiser.views,
        view=view,
        generator=random(0),
    )
    denoising_step_loss(denoiser, y.float(), drawn, "edm")
    assert not (given[0] & ~view).any()
    assert given[0].sum() < 0.9 * view.sum()


@pytest.mark.parametrize("kind", WITH_VIEWS)
def test_without_a_view_a_denoiser_takes_its_own_one(kind):
    op = op_of(kind)
    denoiser = random_denoiser(op)
    x, sigma = normal(SHAPE, 0).float(), torch.tensor([0.1, 1.0, 20.0])
    own = denoiser.view.expand(3, -1, -1, -1)
    assert torch.equal(denoiser(x, sigma), denoiser(x, sigma, own))
    assert denoiser.view.dtype == torch.bool
    assert torch.equal(denoiser.state_dict()["view"], denoiser.view)


class Constant(nn.Module):
    def forward(self, x, c_noise):
        return torch.ones_like(x[:, :2])


@given(sigma=st.floats(2e-3, 80))
def test_what_is_hidden_has_the_scalings_of_an_infinite_level(sigma):
    op = op_of("mask")
    view = op.views.draw(3, random(0))
    denoiser = MaskedDenoiser(Constant(), sigma_data=0.5, views=op.views, view=view[:1])
    denoised = denoiser(normal(SHAPE, 0).float(), torch.full((3,), sigma), view)
    hidden = ~view.expand(-1, 2, -1, -1)
    torch.testing.assert_close(denoised[hidden], torch.full_like(denoised[hidden], 0.5))
    infinite = coefficients(torch.tensor([1e9]), 0.5)
    torch.testing.assert_close(infinite.c_out, torch.tensor([0.5]))
    torch.testing.assert_close(infinite.c_skip, torch.zeros(1))


def random_denoiser(op, seed=1):
    denoiser = build_denoiser(network(), op.observed_shape, seed=seed, views=op.views)
    for parameter in denoiser.parameters():  # fresh weights end in zeros
        nn.init.normal_(parameter, std=0.1, generator=random(seed))
    return denoiser.eval()


def test_without_views_a_denoiser_has_no_more_state_than_before():
    denoiser = build_denoiser(network(), SHAPE, seed=1)
    assert {name.split(".")[0] for name in denoiser.state_dict()} == {"network"}
    assert denoiser.network.stem.weight.shape[1] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_models_come_back_from_disk_with_their_operator(kind, tmp_path):
    op = op_of(kind)
    denoiser = random_denoiser(op)
    for name, shape, tau in (("t", op.observed_shape, None), ("g", op.shape, 2.5)):
        save_model(
            tmp_path / name,
            denoiser,
            network=network(),
            operator=op.choice,
            shape=shape,
            sigma_init=tau,
        )
        spec = read_spec(tmp_path / name)
        assert spec.operator == op.choice
        assert spec.observed_through().shape == op.shape
    x, sigma = torch.randn(2, *op.observed_shape, generator=random(0)), torch.tensor([0.3, 3.0])
    assert torch.equal(load_denoiser(tmp_path / "t")(x, sigma), denoiser(x, sigma))
    generator = load_generator(tmp_path / "g")
    z = torch.randn(2, *SHAPE, generator=random(1))
    assert torch.equal(generator(z), denoiser(2.5 * z, torch.full((2,), 2.5)))
    assert generator.sample(2, seed=0).shape == (2, *SHAPE)


def test_generators_of_larger_images_attend_where_their_teacher_does(tmp_path):
    op = operator("downsample", (1, 16, 16))
    attending = network(attention_resolutions=[8])
    denoiser = build_denoiser(attending, op.observed_shape, seed=0)
    save_model(
        tmp_path, denoiser, network=attending, operator=op.choice, shape=op.shape, sigma_init=2.5
    )
    assert load_generator(tmp_path).sample(1, seed=0).shape == (1, 1, 16, 16)


def training_params(**distill):
    short = {"batch_size": 8, "kimg": 0.024, "lr_warmup_kimg": 0.0}
    return params_with(network=NETWORK, pretrain=short, distill={**short, **distill})


NETWORK = {"patch_size": 1, "model_channels": 8, "channel_mult": [1], "attention_resolutions": []}


@pytest.mark.parametrize("kind", WITH_VIEWS)
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_teacher_learns_from_each_image_through_its_own_view(kind, weight, monkeypatch):
    op = op_of(kind)
    y, view = observations(op, 30, 0)
    params = training_params().pretrain
    consistency = params.consistency.model_copy(update={"weight": weight, "batch_size": 4})
    seen = []

    def spy(denoiser, batch, drawn, weighting):
        seen.append((batch, drawn.view))
        return denoising_step_loss(denoiser, batch, drawn, weighting)

    monkeypatch.setattr("dsd.pretraining.trainer.denoising_step_loss", spy)
    training = TeacherTraining(
        random_denoiser(op),
        y.float(),
        torch.full((30,), SIGMA_Y),
        params.model_copy(update={"consistency": consistency}),
        seed=0,
        precision="float32",
        view=view,
    )
    records = [*training.steps()]
    assert all(record.loss.isfinite().all() for record in records)
    assert len(seen) == 3
    for batch, shown in seen:
        torch.testing.assert_close(op.project(batch, shown), batch)
        assert (shown != op.views.draw(8, random(9))).any()


def distillation(op, **distill):
    params = training_params(**distill)
    return Distillation(
        random_denoiser(op),
        torch.full((30,), SIGMA_Y),
        op.shape,
        params.distill,
        params.pretrain,
        seed=0,
        precision="float32",
        operator=op,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_fake_learns_from_generated_images_observed_like_the_data(kind, monkeypatch):
    op = op_of(kind)
    run = distillation(op, batch_size=400)
    seen = []

    def spy(denoiser, y, drawn, weighting):
        seen.append((y, drawn.view))
        return denoising_step_loss(denoiser, y, drawn, weighting)

    monkeypatch.setattr("dsd.distillation.trainer.denoising_step_loss", spy)
    x_g = torch.rand(400, *op.shape, generator=random(0)) - 0.5
    fake_step(run, op.mapped(x_g), random(1))
    ((y, view),) = seen
    assert y.shape[1:] == op.observed_shape
    residual = y - op.forward(x_g, view)
    count = y.numel() if view is None else view.expand_as(y).sum()
    level = (residual.square().sum() / count).sqrt().item()
    assert level == pytest.approx(SIGMA_Y, rel=4 / math.sqrt(2 * count))
    torch.testing.assert_close(op.project(residual, view), residual, atol=1e-5, rtol=1e-5)
    if view is not None:
        assert len({shown.numpy().tobytes() for shown in view}) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_is_moved_by_what_denoisers_make_of_its_observed_images(kind):
    op = op_of(kind)
    run = distillation(op, clamp_output=False)
    seen = []

    class Spy(nn.Module):
        def forward(self, x, sigma, *given):
            seen.append((x.detach(), given))
            return 0.9 * x

    run.teacher = Spy()
    z = torch.randn(8, *op.shape, generator=random(0))
    v = run._generate(z)
    torch.testing.assert_close(v, op.mapped(run.generator(z)))
    judged(run, v, random(1))
    ((x_t, given),) = seen
    before = [parameter.clone() for parameter in run.generator.parameters()]
    next(run.steps())
    assert x_t.shape[1:] == op.observed_shape
    assert len(given) == (op.views is not None)
    after = [*run.generator.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    if given:
        share = op.views.draw_further(4000, random(2)).float().mean()
        assert given[0].float().mean().item() == pytest.approx(share.item(), abs=0.2)
        assert len({view.numpy().tobytes() for view in given[0]}) > 1


@pytest.mark.parametrize(
    ("kind", "divergence"),
    [
        ("identity", "dmd"),
        ("mask", "sds"),
        ("blur", "sid"),
        ("downsample", "sds"),
        ("fourier", "dmd"),
    ],
)
def test_distillation_runs_through_every_operator(kind, divergence):
    run = distillation(op_of(kind), divergence=divergence)
    for record in run.steps():
        assert record.gap.isfinite().all()
        assert record.loss_fake is None or record.loss_fake.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_generated_images_are_observed_like_the_data_for_proximal_distances(kind):
    op = op_of(kind)
    images = to_uint8(torch.rand(500, *SHAPE, generator=random(0)) - 0.5)
    sigma = torch.full((500,), 0.1)
    y = from_uint8(renoise(images, sigma, seed=3, operator=op))
    assert y.shape[1:] == op.observed_shape
    v = op.mapped(from_uint8(images))
    if op.views is None:
        assert (y - v).std().item() == pytest.approx(0.1, rel=0.03)
        return
    # Of the images' energy as much is left as is observed, and the noise there comes on top.
    share = op.views.draw(4000, random(1)).float().mean().item()
    level = renoise(0 * images + 128, sigma, seed=3, operator=op)
    kept = from_uint8(level).square().mean().item()
    assert kept == pytest.approx(share * 0.01, rel=0.06)
    assert not torch.equal(y, from_uint8(renoise(images, sigma, seed=4, operator=op)))
    whole = renoise(images[:3], sigma[:3], seed=3, operator=op)
    assert torch.equal(whole, to_uint8(y[:3]))
