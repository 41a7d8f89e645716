"""What bench/speed compares is the same mathematics, and what it writes is what it measured."""

import json

import pytest
import torch
from stage_helpers import params_with
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from bench.speed import contests, race, table, timings, trainings
from bench.speed.__main__ import measure, write
from bench.speed.operations import Ledger, Operation
from bench.speed.plain import PlainDistillation, PlainTeacher, clamped_levels
from bench.speed.roofline import Peaks, least
from bench.speed.settings import Setting
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
        rampup=config.ema_rampup_ratio,
        sigma_data=SIGMA_DATA,
    )
    return ours, plain


def test_a_step_of_the_teacher_is_the_textbooks():
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
        rampup=config.ema_rampup_ratio,
        sigma_data=SIGMA_DATA,
    )
    return ours, plain


def test_a_step_of_distillation_is_the_textbooks():
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
    (teacher,) = results["contests"]
    ours, plain, edm, ours_on_edm = teacher["contestants"]
    assert len(teacher["limits"]) == 2
    for limits in teacher["limits"]:
        assert min(*limits["flops"].values(), *limits["copies"].values()) > 0
    for entry in (ours, plain):
        assert entry["missing"] is None
        assert len(entry["seconds"]) == 2
        assert min(entry["seconds"]) > 0
        assert entry["times"] >= 1
        assert entry["memory"]["host"] >= entry["memory"]["at_start"] > 0
        assert 0 < entry["least"]["products"] < sum(entry["least"]["operations"].values())
        assert entry["least"]["operations"].keys() == entry["took"].keys()
    assert ours["flops"] == pytest.approx(plain["flops"], rel=0.05)
    assert "_fused_adam_" in ours["took"]
    assert "_fused_adam_" not in plain["took"]
    assert (ours["facts"]["of_use"], edm["missing"]) == (1.0, "no --edm")
    page = (tmp_path / "cpu.md").read_text()
    assert page == table.page(json.loads((tmp_path / "cpu.json").read_text()))
    assert page.count("not measured: no --edm") == 2
    assert ours_on_edm["seconds"] == []


def entry(label, seconds, **changes):
    made = {
        **{"label": label, "missing": None, "seconds": seconds, "times": 10, "items": 2.0},
        **{"facts": {}, "flops": None, "moved": None, "least": None, "precision": "float32"},
        "memory": {"host": 3e8, "gpu": 0.0, "at_start": 1e8},
    }
    return made | changes


def contest(unit, relation, limits, *entries):
    return {
        **{"name": "n", "unit": unit, "note": "", "relation": relation},
        **{"limits": limits, "contestants": entries},
    }


def limits(flops, small, large):
    """A turn: of products, and of copies that move 1 and 100 bytes."""
    return {"flops": {"float32": flops}, "copies": {"1": small, "100": large}}


TURNS = [limits(1e11, 8e10, 4e10), limits(2e11, 6e10, 3e10)]


def test_ratios_are_of_pairs_and_limits_of_the_fastest_turn():
    limited = {"products": 0.04, "operations": {"mm": 0.04, "add": 0.01}, "with_own_code": 0.08}
    ours = entry("ours", [1.0, 2.0, 2.0], flops=8e9, least=limited, took={"mm": 0.06, "add": 0.04})
    other = entry("other", [3.0, 4.0, 8.0])
    moving = entry("moving", [2.0, 2.0, 2.0], moved=1e9)
    assert timings.seconds_each(ours) == [0.05, 0.1, 0.1]
    assert timings.ratios(ours, other) == pytest.approx([3, 2, 4])
    found = table.page(
        {
            **{"command": "c", "date": "d", "commit": None, "dirty": None, "threads": 1},
            "machine": {
                **{"gpu": None, "processor": "p", "instructions": "i", "cores": 2},
                "versions": {},
            },
            **{"load": [0.0, 0.0], "minutes": 1.0},
            "contests": [
                contest("images/s", "rivals", TURNS, ours, other),
                contest("s", "part", [], other, ours),
                contest("MB/s", "none", TURNS, moving),
            ],
        }
    )
    lines = [line for line in found.splitlines() if line.startswith("| o")]
    # The two images of the first take 0.02, 0.025 or 0.04 s each at least; the other took 0.2.
    assert "| 3 (2.5 to 3.5) x | 10 x | 8 x | 5 x |" in lines[1]
    assert "| 4 | 20 % |" in lines[0]
    assert "percent of theirs): mm 60 (67), add 40 (25)." in found
    assert "| 33.3 (29.2 to 41.7) % |" in lines[3]
    # 1 GB for 2 MB is 0.5 GB each, at 40 GB/s 12.5 ms of the 0.1 s that it took.
    assert "| 12.5 % |" in found.splitlines()[-3]
    assert "3 turns. Between them products did up to float32 200 GFLOP/s" in found
    assert "up to 80, 40 GB/s" in found


def test_turns_go_on_until_ratios_are_known_or_patience_is_over():
    steady = [entry("ours", [1.0] * 4), entry("other", [2.0] * 4), entry("x", [], missing="no")]
    unsteady = [entry("ours", [1.0] * 4), entry("other", [2.0, 3.0, 2.0, 3.0])]

    def enough(entries, turns, taken=0.0, relation="rivals"):
        rivals = race.Contest("g", "n", "s", (), relation=relation)
        return race._enough(rivals, entries, turns, taken, pairs=15)

    assert enough(steady, 4)
    assert not enough(steady, 3)
    assert not enough(unsteady, 4)
    assert enough(unsteady, 4, taken=1000.0)
    assert enough(unsteady, 4, relation="none")
    assert enough(unsteady, 15)
    # Quartiles of 2, 2, 3, 3 are 2 and 3, so that the notch is 1.57 / sqrt(4) about 2.5.
    assert timings.uncertainty([2.0, 3.0, 2.0, 3.0]) == pytest.approx(1.57 / 2 / 2.5)


def ledger(do):
    with Ledger(torch.device("cpu")) as found:
        do()
    return dict(found.operations)


def test_a_convolution_and_a_sum_are_counted_as_by_hand():
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    pixels = 4 * 2 * 64  # bytes of a channel of both images
    x_, out, kernel = 3 * pixels, 4 * pixels, 4 * 4 * 27
    flops = 2 * 2 * 64 * 4 * 27

    def learn():
        functional.silu(torch.conv2d(x, weight, padding=1) + 1).sum().backward()

    done = ledger(learn)
    assert done == {
        Operation("convolution", flops, x_ + kernel + out): 1,
        Operation("add", 0, 2 * out): 1,
        Operation("silu", 0, 2 * out): 1,
        Operation("sum", 0, out + 4): 1,
        Operation("ones_like", 0, 4): 1,
        # The gradient of a sum is one number, expanded.
        Operation("silu_backward", 0, 2 * out + 4): 1,
        Operation("convolution_backward", flops, out + x_ + 2 * kernel): 1,
    }
    # Not within each other: the counter takes more apart than PyTorch does.
    with FlopCounterMode(display=False) as counter:
        learn()
    assert sum(o.flops * times for o, times in done.items()) == counter.get_total_flops()


def test_what_is_taken_apart_only_without_gradients_is_counted_alike():
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    q = torch.randn(2, 1, 5, 8)
    layer = torch.nn.Linear(8, 8)

    def do():
        torch.conv2d(x, weight, padding=1)
        functional.scaled_dot_product_attention(q, q, q)
        layer(q)

    normal = ledger(do)
    assert len(normal) == 3
    assert ledger(torch.inference_mode()(do)) == normal


def test_views_count_nothing_and_what_is_chosen_or_expanded_counts_itself_alone():
    x, rows = torch.randn(100, 8), torch.tensor([3, 5])

    def look():
        x.t()[2:].unsqueeze(0).expand(5, 6, 100).detach().chunk(2, dim=1)
        torch.empty_like(x)

    assert ledger(look) == {}
    assert ledger(lambda: x[rows]) == {Operation("index", 0, 2 * 2 * 8 * 4): 1}
    wide = torch.randn(8, 1).expand(8, 50)
    assert ledger(lambda: wide.clone()) == {Operation("clone", 0, 4 * (8 + 400)): 1}
    assert ledger(lambda: x * x) == {Operation("mul", 0, 2 * 3200): 1}


def test_in_place_operators_write_where_they_read_unless_they_overwrite():
    x, other = torch.randn(100), torch.randn(100)

    def change():
        x.add_(other)
        x.copy_(other)
        x.zero_()
        torch.mul(other, 2, out=x)

    assert {o.name: o.moved for o in ledger(change)} == {
        **{"add_": 3 * 400, "copy_": 2 * 400, "zero_": 400, "mul": 2 * 400},
    }


def test_operators_on_lists_are_one_operation():
    weights = [torch.nn.Parameter(torch.randn(100)), torch.nn.Parameter(torch.randn(50))]
    adam = torch.optim.Adam(weights, fused=True)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    adam.step()
    done = ledger(adam.step)
    # Weights and both moments are read and written, gradients and the numbers of steps only read.
    moved = 7 * 150 * 4 + 2 * 4
    assert done == {
        Operation("_foreach_add_", 0, 4 * 4): 1,
        Operation("_fused_adam_", 0, moved): 1,
    }
    means = [torch.zeros(100), torch.zeros(50)]
    follow = lambda: torch._foreach_lerp_(means, weights, 0.5)  # noqa: E731
    with torch.no_grad():
        assert ledger(follow) == {Operation("_foreach_lerp_", 0, 3 * 150 * 4): 1}
        assert ledger(lambda: torch._foreach_zero_(means)) == {
            Operation("_foreach_zero_", 0, 150 * 4): 1
        }


def test_an_operation_takes_as_long_as_its_arithmetic_or_as_its_bytes():
    peaks = Peaks.among(TURNS)
    assert peaks == ({"float32": 2e11}, {1.0: 8e10, 100.0: 4e10})
    assert [peaks.bandwidth(moved) for moved in (0.1, 1, 10, 1e6)] == pytest.approx(
        [8e10, 8e10, 6e10, 4e10]
    )
    done = {
        **{Operation("mm", 2e11, 100): 2, Operation("mm", 1e11, 4e10): 1},
        Operation("add", 0.0, 10): 3,
    }
    found = least(done, {"mm": 5.0, "add": 0.5}, peaks, "float32")
    assert found.products == pytest.approx(2.5)
    assert found.operations == pytest.approx({"mm": 3, "add": 3 * 10 / 6e10})
    assert list(found.operations) == ["mm", "add"]
    assert found.with_own_code == pytest.approx(3 + 0.5)
