"""What bench/speed compares is the same mathematics, and what it writes is what it measured."""

import json
import sys
from pathlib import Path

import pytest
import torch
from stage_helpers import params_with

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.speed import contests, table, trainings  # noqa: E402
from bench.speed.__main__ import measure, write  # noqa: E402
from bench.speed.plain import PlainDistillation, PlainTeacher, clamped_levels  # noqa: E402
from bench.speed.settings import Setting  # noqa: E402
from dsd.checkpoint import build_denoiser  # noqa: E402
from dsd.noise import sample_teacher_levels  # noqa: E402
from dsd.seeds import step_generator  # noqa: E402
from dsd.training.distill import Distillation  # noqa: E402
from dsd.training.pretrain import TeacherTraining  # noqa: E402

SHAPE, BATCH, STEPS = (1, 8, 8), 8, 3
SIGMA_DATA = 0.5
NETWORK = params_with(
    network={
        "patch": 1,
        "width": 16,
        "channel_mult": [1, 2],
        "attention_resolutions": [4],
        "dropout": 0.0,
    }
).network
UNSCHEDULED = {"learning_rate": 1e-3, "warmup_kimg": 0.0, "schedule": "constant"}

LOSS, GRADIENT, UPDATE = 1e-5, 5e-5, 1e-4
"""Bounds in float32, relative to the norm of what is compared, some ten times what was found. In
Adam a gradient's digits are lost where it is close to zero, so weights agree in fewer."""


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
    plain = PlainTeacher(
        denoiser().network,
        images,
        levels,
        batch_size=BATCH,
        learning_rate=config.learning_rate,
        halflife=1000 * config.ema_halflife_kimg,
        rampup=config.ema_rampup,
        sigma_data=SIGMA_DATA,
    )
    return ours, plain


def test_a_step_of_the_teacher_is_the_textbooks():
    ours, plain = teachers()
    before = flat(ours.denoiser.parameters())
    steps = ours.steps()
    for number in range(STEPS):
        y, drawn, _ = ours._draw(step_generator(0, "pretrain", number, torch.device("cpu")))
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
    plain = PlainDistillation(
        denoiser().network,
        SHAPE,
        sigma_y=trainings.SIGMA_Y,
        batch_size=BATCH,
        learning_rate=config.learning_rate,
        learning_rate_fake=config.learning_rate_fake,
        betas=(0.5, 0.999),
        alpha=config.alpha,
        sigma_init=config.sigma_init,
        halflife=1000 * config.ema_halflife_kimg,
        rampup=config.ema_rampup,
        sigma_data=SIGMA_DATA,
    )
    return ours, plain


def test_a_step_of_distillation_is_the_textbooks():
    ours, plain = distillations()
    teacher = flat(ours.teacher.parameters())
    steps = ours.steps()
    for number in range(STEPS):
        drawn, (fake,) = ours._draw(step_generator(0, "distill", number, torch.device("cpu")))
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


TINY = Setting(
    name="tiny",
    shape=SHAPE,
    network=NETWORK,
    batch_size=4,
    batch_size_distill=2,
    sample=2,
)


@pytest.mark.slow
def test_a_tiny_run_writes_every_timing_and_a_table_of_them(tmp_path):
    results = measure(
        ["teacher"],
        [TINY],
        contests.Checkouts(),
        torch.device("cpu"),
        pairs=2,
        seconds=0.05,
        command="tiny",
    )
    write(results, tmp_path, "cpu")
    assert json.loads((tmp_path / "cpu.json").read_text()) == results
    assert {"commit", "dirty", "date", "load", "threads", "machine"} <= results.keys()
    peaks, teacher = results["contests"]
    ours, plain, edm, ours_on_edm = teacher["contestants"]
    for entry in (*peaks["contestants"], ours, plain):
        assert entry["missing"] is None
        assert len(entry["seconds"]) == 2
        assert min(entry["seconds"]) > 0
        assert entry["times"] >= 1
        assert entry["memory"]["host"] >= entry["memory"]["at_start"] > 0
    assert ours["flops"] == pytest.approx(plain["flops"], rel=0.05)
    assert (ours["facts"]["of_use"], edm["missing"]) == (1.0, "no --edm")
    page = (tmp_path / "cpu.md").read_text()
    assert page == table.page(json.loads((tmp_path / "cpu.json").read_text()))
    assert page.count("not measured: no --edm") == 2
    assert ours_on_edm["seconds"] == []


def entry(label, seconds, **changes):
    made = {
        **{"label": label, "missing": None, "seconds": seconds, "times": 10, "items": 2.0},
        **{"facts": {}, "flops": None, "moved": None, "precision": "float32"},
        "memory": {"host": 3e8, "gpu": 0.0, "at_start": 1e8},
    }
    return made | changes


def contest(unit, relation, *entries):
    return {
        **{"name": "n", "unit": unit, "note": "", "relation": relation},
        "contestants": entries,
    }


def test_ratios_are_of_pairs_and_limits_of_peaks():
    product, copy = entry("matrix product, float32", [0.2, 0.1]), entry("copy", [1.0, 0.5])
    peaks = table.found_peaks({"contestants": [product, copy]})
    assert peaks == ({"float32": 2e11}, 4e10)
    ours = entry("ours", [1.0, 2.0, 2.0], flops=8e9)  # 0.05, 0.1, 0.1 s each
    other = entry("other", [3.0, 4.0, 8.0])
    assert table.seconds_each(ours) == [0.05, 0.1, 0.1]
    assert table.ratios(ours, other) == pytest.approx([3, 2, 4])
    found = table.page(
        {
            **{"command": "c", "date": "d", "commit": None, "dirty": None, "threads": 1},
            "machine": {
                **{"gpu": None, "processor": "p", "instructions": "i", "cores": 2},
                "versions": {},
            },
            "load": [0.0, 0.0],
            "contests": [
                contest("G/s", "none", product, copy),
                contest("images/s", "rivals", ours, other),
                contest("s", "part", other, ours),
            ],
        }
    )
    lines = [line for line in found.splitlines() if line.startswith(("| ours", "| other"))]
    # 8 GFLOP for 2 images take 0.02 s each at the peak, and the other took 0.2.
    assert "| 3 (2 to 4) x | 10 x |" in lines[1]
    assert "| 20 % |" in lines[0]
    assert "| 33.3 (25 to 50) % |" in lines[3]
