"""What one training step does: from what it learns, where gradients flow, what it changes."""

import copy

import pytest
import torch
from team_worker import CASES
from tiny_training import (
    SHAPE,
    distillation,
    equal,
    fake_step,
    judged,
    run_steps,
    teacher_training,
    tiny_params,
)

from dsd.model.checkpoint import build_denoiser
from dsd.model.noise_levels import sample_generator_levels, sample_teacher_levels
from dsd.pretraining.consistency_loss import consistency_loss
from dsd.pretraining.denoising_loss import ambient_denoising_loss
from dsd.pretraining.trainer import denoising_step_loss, sample_denoising_noise
from dsd.training.distributed import DistributedContext
from dsd.training.memory import enable_activation_checkpointing
from dsd.utils.random import step_generator


def test_the_consistency_term_is_added_to_the_loss_with_its_weight(monkeypatch):
    """With weight w the gradient is w times that of the term larger, sign included."""
    alone = []

    def spy(*denoised):
        loss = consistency_loss(*denoised)
        alone.append(torch.autograd.grad(loss.mean(), weights_now, retain_graph=True))
        return loss

    monkeypatch.setattr("dsd.pretraining.trainer.consistency_loss", spy)
    gradients = {}
    for weight in (0.0, 300.0):
        consistency = {"weight": weight, "batch_size": 4, "num_steps": 2}
        run = teacher_training(tiny_params(pretrain={"consistency": consistency}))
        weights_now = list(run.denoiser.parameters())
        for parameter in weights_now:  # fresh weights end in zeros
            random = torch.Generator().manual_seed(parameter.numel())
            torch.nn.init.normal_(parameter, std=0.1, generator=random)
        next(run.steps())
        gradients[weight] = [p.grad for p in weights_now]
    (term,) = alone
    assert max(float(g.abs().max()) for g in term) > 1e-5
    for with_term, without, expected in zip(gradients[300.0], gradients[0.0], term, strict=True):
        torch.testing.assert_close(with_term - without, 300 * expected, rtol=1e-3, atol=1e-5)


def test_a_distillation_step_moves_generator_and_fake_but_never_the_teacher():
    run = distillation(tiny_params(distill={"fake_updates_per_step": 3}))
    teacher = copy.deepcopy(run.teacher.state_dict())
    generator, fake = copy.deepcopy(run.generator), copy.deepcopy(run.fake)
    # The second step: at the first, teacher and fake are the same network.
    run_steps(run, 2)
    assert equal(teacher.values(), run.teacher.state_dict().values())
    assert not equal(fake.state_dict().values(), run.fake.state_dict().values())
    assert not equal(generator.state_dict().values(), run.generator.state_dict().values())
    assert all(p.grad is None for p in run.teacher.parameters())


@pytest.mark.parametrize("objective", ["adjusted", "standard"])
def test_the_fake_learns_from_images_as_noisy_as_the_data(monkeypatch, objective):
    """Each like one of the observations, with the teacher's objective and its own levels."""
    law = {"distribution": "truncated", "P_mean": 0.3, "P_std": 0.7}
    params = tiny_params(
        pretrain={"objective": objective, "weighting": "ambient-omni"},
        distill={"batch_size": 200, "fake_noise": law},
    )
    run = distillation(params)
    run._sigma_y = torch.tensor([0.1, 0.8])
    seen = []

    def spy(denoiser, y, drawn, weighting):
        seen.append((denoiser, y, drawn, weighting))
        return denoising_step_loss(denoiser, y, drawn, weighting)

    monkeypatch.setattr("dsd.distillation.trainer.denoising_step_loss", spy)
    x_g = torch.full((200, *SHAPE), 0.25)
    fake_step(run, x_g, torch.Generator().manual_seed(0))
    ((denoiser, y, drawn, weighting),) = seen
    assert denoiser is run.fake
    _, (fake, *_) = run._sample_noise(torch.Generator().manual_seed(0))
    for level in run._sigma_y:
        alike = fake.sigma_y == level
        assert float(alike.double().mean()) == pytest.approx(0.5, abs=0.1)
        assert float((y - x_g)[alike].std()) == pytest.approx(float(level), rel=0.03)
    known = fake.sigma_y if objective == "adjusted" else torch.zeros(200)
    torch.testing.assert_close(drawn.sigma_y, known)
    assert weighting == "ambient-omni"
    # Its own law, well above the teacher's: the quantile of each level is uniform.
    lowest = (known.log() - 0.3) / 0.7
    share = torch.special.ndtr((drawn.sigma.log() - 0.3) / 0.7)
    above = (share - torch.special.ndtr(lowest)) / torch.special.ndtr(-lowest)
    assert float(above.mean()) == pytest.approx(0.5, abs=0.06)


NETWORKS = ("denoiser", "teacher", "fake", "generator", "average")


def modes_of_a_step(run):
    """Which network called its dropout layers in which mode, in turn, repetitions left out."""
    seen = []
    for name in NETWORKS:
        for layer in getattr(run, name, torch.nn.Identity()).modules():
            if isinstance(layer, torch.nn.Dropout):
                assert layer.p > 0.05
                layer.register_forward_pre_hook(
                    lambda layer, _, name=name: seen.append((name, layer.training))
                )
    next(run.steps())
    return [now for now, before in zip(seen, [None, *seen], strict=False) if now != before]


GENERATES, LEARNS = ("generator", False), ("fake", True)
JUDGE = [("teacher", False), ("fake", False)]
WHOLE = {
    "sid": [GENERATES, LEARNS, GENERATES, LEARNS, *JUDGE],
    "dmd": [GENERATES, LEARNS, GENERATES, LEARNS, *JUDGE],
    "sds": [GENERATES, JUDGE[0]],
}
IN_TWO = {
    "sid": [*WHOLE["sid"], *JUDGE, GENERATES],
    "dmd": [*WHOLE["dmd"], *JUDGE, GENERATES],
    "sds": [*WHOLE["sds"], GENERATES],
}


@pytest.mark.parametrize("divergence", WHOLE)
@pytest.mark.parametrize(("micro_batch_size", "expected"), [(None, WHOLE), (6, IN_TWO)])
def test_only_the_fake_has_dropout_in_a_distillation_and_only_while_it_learns(
    divergence, micro_batch_size, expected
):
    """With masks for sid and a linear map for dmd, two steps of the fake, and checkpointing."""
    run = CASES[divergence](DistributedContext(micro_batch_size=micro_batch_size))
    assert modes_of_a_step(run) == expected[divergence]
    for module in (run.fake, run.teacher, run.generator):
        enable_activation_checkpointing(module, True)
    assert set(modes_of_a_step(run)) == set(expected[divergence])


@pytest.mark.parametrize(("micro_batch_size", "recomputes"), [(None, False), (6, True)])
def test_the_teacher_learns_with_dropout_the_consistency_term_included(
    micro_batch_size, recomputes
):
    run = CASES["pretrain"](DistributedContext(micro_batch_size=micro_batch_size))
    enable_activation_checkpointing(run.denoiser, recomputes)
    calls = []
    run.denoiser.register_forward_hook(lambda *call: calls.append(1))
    assert modes_of_a_step(run) == [("denoiser", True)]
    # In each part one for the loss; a walk of two steps and three of the pair besides.
    assert len(calls) == (1 + 2 + 3) * (1 if micro_batch_size is None else 2)


@pytest.mark.parametrize("divergence", ["sid", "dmd"])
def test_a_fake_that_is_the_teacher_finds_no_gap_whatever_its_dropout(divergence):
    """Exactly none, after a step in which the fake computed its gradients with dropout."""
    run = distillation(tiny_params(distill={"divergence": divergence}))
    run.optimizer_fake.step = lambda: None
    record = next(run.steps())
    assert float(record.loss_fake.mean()) > 0
    assert torch.equal(record.gap, torch.zeros(8))


def test_the_fake_learns_and_judges_images_of_the_law_that_is_sampled(monkeypatch):
    """The images that the generator makes in evaluation, from the latents that were drawn."""
    run = distillation(tiny_params(distill={"fake_updates_per_step": 2, "clamp_output": False}))
    drawn, fakes = run._sample_noise(step_generator(0, "distill", 0, torch.device("cpu")))
    sampler, seen = copy.deepcopy(run.generator).eval(), []
    for name in ("_backward_fake", "_differentiate"):
        method = getattr(run, name)
        monkeypatch.setattr(
            run, name, lambda v, *more, method=method: seen.append(v[0]) or method(v, *more)
        )
    next(run.steps())
    for images, z in zip(seen, (fakes[0].z, fakes[1].z, drawn.z), strict=True):
        assert torch.equal(images, sampler(z))
    assert torch.equal(fakes[0].z, drawn.z)


@pytest.mark.parametrize(("clamp_output", "largest"), [(True, 1.0), (False, 3.0)])
def test_generated_images_are_clamped_where_that_is_asked_for(monkeypatch, clamp_output, largest):
    run = distillation(tiny_params(distill={"clamp_output": clamp_output}))
    monkeypatch.setattr(run.generator, "forward", lambda z: 3 * z.sign())
    z = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert float(run._generate(z).max()) == largest


@pytest.mark.parametrize("objective", ["adjusted", "standard"])
def test_a_denoisers_step_is_its_loss_at_drawn_levels(objective):
    """The standard objective takes observations for clean images."""
    params = tiny_params()
    denoiser, law = build_denoiser(params.network, SHAPE, seed=1).eval(), params.pretrain.noise
    y = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(2))
    sigma_y = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    drawn = sample_denoising_noise(
        sigma_y, SHAPE, objective=objective, noise=law, views=None, view=None,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    loss = denoising_step_loss(denoiser, y, drawn, "edm")
    again = torch.Generator().manual_seed(3)
    known = sigma_y if objective == "adjusted" else torch.zeros(6)
    expected_sigma, sigma_add = sample_teacher_levels(law, known, again)
    n = torch.randn(y.shape, generator=again)
    expected = ambient_denoising_loss(
        denoiser, y, sigma_y=known, sigma=expected_sigma, sigma_add=sigma_add, n=n,
        weighting="edm", sigma_data=params.network.sigma_data,
    )  # fmt: skip
    torch.testing.assert_close(drawn.sigma, expected_sigma)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_networks_compute_in_the_precision_asked_for(precision, dtype):
    x = torch.ones(2, 2)
    with teacher_training(tiny_params(), precision=precision)._schedule.autocast():
        assert (x @ x).dtype is dtype


class Scale(torch.nn.Module):
    """A denoiser that multiplies."""

    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x, sigma):
        return self.factor * x


@pytest.mark.parametrize("divergence", ["sid", "dmd", "sds"])
def test_the_generator_step_is_the_loss_of_teacher_and_fake_on_diffused_images(divergence):
    """Against the formulas written out: which denoiser is which, and where gradients flow."""
    run = distillation(tiny_params(distill={"divergence": divergence, "alpha": 1.2}))
    run.teacher, run.fake = Scale(0.7).requires_grad_(False), Scale(0.4)
    random = torch.Generator().manual_seed(5)
    x_g = torch.randn(8, *SHAPE, generator=random)
    pull, gaps, drawn = judged(run, x_g, torch.Generator().manual_seed(6))

    copied = x_g.detach().clone().requires_grad_()
    x_t = copied + drawn.sigma[:, None, None, None] * drawn.n
    teacher, fake = 0.7 * x_t, 0.4 * x_t
    omega = (copied - teacher).detach().abs().mean((1, 2, 3))
    difference = teacher - (copied.detach() if divergence == "sds" else fake)
    if divergence == "sid":
        product = difference * ((teacher - copied) - 1.2 * difference)
    else:
        product = -copied * difference.detach()
    (product.sum((1, 2, 3)) / omega).mean().backward()
    torch.testing.assert_close(pull, copied.grad)
    torch.testing.assert_close(gaps, difference.square().mean((1, 2, 3)))
    assert run.fake.factor.grad is None


def test_the_generator_is_judged_at_levels_of_its_own_law():
    """The draws after the latents, where there is no fake denoiser to draw for."""
    params = tiny_params(distill={"divergence": "sds"})
    run = distillation(params)
    recorded = next(run.steps()).sigma
    drawn, _ = run._sample_noise(step_generator(0, "distill", 0, torch.device("cpu")))
    assert torch.equal(recorded, drawn.sigma)
    drawn, fakes = run._sample_noise(torch.Generator().manual_seed(6))
    again = torch.Generator().manual_seed(6)
    assert fakes == []
    assert torch.equal(drawn.z, torch.randn(8, *SHAPE, generator=again))
    sigma = sample_generator_levels(params.distill.noise, 8, again, torch.device("cpu"))
    assert torch.equal(drawn.sigma, sigma)
    assert torch.equal(drawn.n, torch.randn(8, *SHAPE, generator=again))
