"""What bench/speed compares is the same mathematics, and what it writes is what it measured."""

import json

import pytest
import torch
from stage_helpers import params_with

from bench.speed import trainings
from bench.speed.__main__ import PARTS, main
from bench.speed.plain import PlainDistillation, PlainTeacher, clamped_levels
from bench.speed.timing import Comparison, Way, measure, table
from dsd.distillation.trainer import Distillation
from dsd.model.checkpoint import build_denoiser
from dsd.model.noise_levels import sample_teacher_levels
from dsd.pretraining.trainer import TeacherTraining
from dsd.utils.random import step_generator

SHAPE, BATCH, STEPS = (1, 8, 8), 8, 3
SIGMA_DATA = 0.5
NETWORK = params_with(
    network={
        "patch_size": 1,
        "model_channels": 16,
        "channel_mult": [1, 2],
        "attention_resolutions": [4],
        "dropout": 0.0,
    }
).network
UNSCHEDULED = {"learning_rate": 1e-3, "lr_warmup_kimg": 0.0, "lr_schedule": "constant"}

LOSS, GRADIENT, UPDATE = 1e-6, 1e-6, 1e-5
"""Bounds in float64, relative to the norm of what is compared; levels are float32. In Adam digits
are lost where a gradient is close to zero, so weights agree in fewer."""


@pytest.fixture
def float64(monkeypatch):
    """The same arithmetic with 53 bits, which tells rounding from mistakes."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def denoiser():
    """Ours, with weights that answer everywhere; fresh ones end in zeros."""
    made = build_denoiser(NETWORK, SHAPE, seed=1)
    random = torch.Generator().manual_seed(2)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=random)
    return made


def flat(tensors):
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


def gradients(module):
    return flat(weight.grad for weight in module.parameters())


def off(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def same_change(ours, plain, before, bound=UPDATE):
    moved = [flat(module.parameters()) - before for module in (ours, plain)]
    assert moved[1].norm() > 0
    assert off(*moved) < bound


def teachers():
    config = trainings.pretrain_config(BATCH).model_copy(update=UNSCHEDULED)
    images = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(3))
    levels = torch.linspace(0, 0.4, 40)  # clean images too
    ours = TeacherTraining(denoiser(), images, levels, config, seed=0, precision="float32")
    plain = PlainTeacher(denoiser().network, images, levels, config, SIGMA_DATA)
    return ours, plain


def test_a_step_of_the_teacher_is_the_textbooks(float64):
    ours, plain = teachers()
    before = flat(ours.denoiser.parameters())
    steps = ours.steps()
    for number in range(STEPS):
        y, drawn, _ = ours._sample_batch(
            step_generator(0, "pretrain", number, torch.device("cpu"))
        )
        found = next(steps)
        expected = plain.step(y, drawn.sigma_y, drawn.sigma, drawn.n)
        assert found.loss.mean().item() == pytest.approx(expected, rel=LOSS)
        assert off(gradients(ours.denoiser), gradients(plain.network)) < GRADIENT
    same_change(ours.denoiser, plain.network, before)
    same_change(ours.average, plain.average, before)


def distillations():
    # A fake denoiser that moves far in a step: only where it differs from the teacher does the
    # generator's loss show all of its terms.
    changed = {**UNSCHEDULED, "learning_rate_fake": 1e-2, "betas": [0.5, 0.999]}
    config = trainings.distill_config(BATCH).model_copy(update=changed)
    objective = trainings.pretrain_config(BATCH)
    levels = torch.full((40,), trainings.SIGMA_Y)
    teacher = denoiser()
    ours = Distillation(teacher, levels, SHAPE, config, objective, seed=0, precision="float32")
    network = denoiser().network
    plain = PlainDistillation(network, SHAPE, trainings.SIGMA_Y, config, SIGMA_DATA)
    return ours, plain


def test_a_step_of_distillation_is_the_textbooks(float64):
    ours, plain = distillations()
    teacher = flat(ours.teacher.parameters())
    steps = ours.steps()
    for number in range(STEPS):
        drawn, (fake,) = ours._sample_noise(
            step_generator(0, "distill", number, torch.device("cpu"))
        )
        noise = fake.denoising
        found = next(steps)
        assert torch.equal(drawn.z, fake.z)  # which ours uses once, the textbook twice
        expected = plain.step_fake(fake.z, fake.sigma_y, fake.eps, noise.sigma, noise.n)
        assert found.loss_fake.mean().item() == pytest.approx(expected, rel=LOSS)
        if number == 0:
            assert all(weight.grad is None for weight in plain.generator.parameters())
        assert off(gradients(ours.fake), gradients(plain.fake)) < GRADIENT
        plain.step_generator(drawn.z, drawn.sigma, drawn.n)
        student = ours.generator.denoiser
        assert off(gradients(student), gradients(plain.generator)) < GRADIENT
    same_change(ours.fake, plain.fake, teacher)
    same_change(student, plain.generator, teacher)
    same_change(ours.average, plain.average, teacher)
    assert torch.equal(flat(ours.teacher.parameters()), teacher)
    assert torch.equal(flat(plain.teacher.parameters()), teacher)


def test_levels_are_dead_in_one_law_and_not_in_the_other():
    random, sigma_y = torch.Generator().manual_seed(0), torch.full((2**16,), 0.2)
    law = trainings.pretrain_config(BATCH).noise
    _, added = sample_teacher_levels(law, sigma_y, random)
    assert (added > 0).all()
    dead = clamped_levels(sigma_y, random) == 0.2
    assert dead.double().mean().item() == pytest.approx(0.366, abs=0.01)


def test_an_image_at_a_dead_level_has_no_gradient():
    _, plain = teachers()
    y, level = torch.randn(2, *SHAPE), torch.full((2,), 0.2)
    for sigma, lives in ((0.2, False), (0.3, True)):
        plain.step(y, level, torch.full((2,), sigma), torch.randn(2, *SHAPE))
        assert bool(gradients(plain.network).any()) == lives


@pytest.fixture
def made_up():
    """A comparison of 2 and 4 seconds for two images, with a way that is missing."""
    rows = [
        {"name": "ours", "items": 2, "of_use": 1.0, "times": [1.0, 2.0, 3.0], "flops": 8e9},
        {"name": "other", "items": 2, "of_use": 0.5, "times": [4.0, 4.0, 4.0]},
    ]
    missing, operators = {"EDM": "no --edm"}, {"aten::mm": 0.75}
    return {
        **{"title": "t", "unit": "images/s", "rows": rows},
        **{"missing": missing, "operators": operators},
    }


def test_a_table_has_medians_quartiles_and_ratios(made_up):
    ours, other, missing, _, note = table(made_up).splitlines()[2:]
    assert ours == "| ours | 1 (0.8 to 1.333) |  |  | 4 | 4 |"
    assert other == "| other | 0.5 (0.5 to 0.5) | 2.00 x | 0.25 |  |  |"
    assert missing.startswith("| EDM | not measured: no --edm |")
    assert note == "The first row spends its time with aten::mm 75 %."


def test_operations_of_a_way_are_counted_and_it_is_timed():
    a = torch.randn(8, 16)
    ways = [Way("product", lambda: a @ a.T, 8), Way("twice", lambda: (a @ a.T, a @ a.T), 8)]
    found = measure(Comparison("t", "images/s", ways), 0.01)
    assert [row["flops"] for row in found["rows"]] == [2 * 8 * 8 * 16, 4 * 8 * 8 * 16]
    assert all(min(row["times"]) > 0 for row in found["rows"])
    assert "aten::mm" in found["operators"]
    assert 0 < sum(found["operators"].values()) <= 1 + 1e-9


@pytest.mark.slow
def test_a_quick_run_measures_every_part_that_needs_no_other_process(tmp_path, capsys):
    parts = [part for part in PARTS if part != "startup"]
    main(["--quick", "--parts", *parts, "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"commit", "dirty", "date", "threads", "machine"} <= found.keys()
    page = capsys.readouterr().out
    names = {row["name"] for comparison in found["comparisons"] for row in comparison["rows"]}
    assert {"ours", "plain", "clean-fid", "prepare", "corrupt", "load"} <= names
    for comparison in found["comparisons"]:
        assert table(comparison) in page
        assert all(min(row["times"]) > 0 for row in comparison["rows"])
    teacher = found["comparisons"][0]
    ours, plain = teacher["rows"]
    assert ours["flops"] == pytest.approx(plain["flops"], rel=0.05)
    assert teacher["missing"] == {"EDM": "it does not fold pixels into channels"}
    assert ours["of_use"] == 1 > plain["of_use"]
