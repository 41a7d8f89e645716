"""Training loops: determinism, resumption, and that they learn what they should."""

import pytest
import torch
from tiny_training import (
    KINDS,
    equal,
    run_steps,
    state_of_teacher,
    teacher_training,
    tiny_params,
    weights,
)

from dsd.training.loss_meter import BinnedMean
from dsd.training.optim import ema_decay, frozen_copy, learning_rate_factor, update_ema
from dsd.utils.errors import DataError


@pytest.mark.parametrize(("kind", "stop"), [("pretrain", 1), ("pretrain", 9), ("distill", 4)])
def test_a_resumed_run_ends_with_the_same_bits(kind, stop, tmp_path):
    make, state_of = KINDS[kind]
    params = tiny_params()
    whole = make(params)
    for _ in whole.steps():
        torch.rand(1)  # the global generator is nobody's business
    interrupted = make(params)
    run_steps(interrupted, stop)
    state_of(interrupted).save(tmp_path / "state", {"step": interrupted.step})
    resumed = make(params)
    resumed.step = state_of(resumed).load(tmp_path / "state")["step"]
    for _ in resumed.steps():
        pass
    assert whole.step == resumed.step == 10
    assert equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_gives_other_weights(kind):
    make, _ = KINDS[kind]
    first, second = make(tiny_params(), 0), make(tiny_params(), 1)
    for training in (first, second):
        next(training.steps())
    assert not equal(weights(first), weights(second))


def test_teacher_training_lowers_the_loss():
    params = tiny_params(
        dropout=0.0, pretrain={"kimg": 3.2, "batch_size": 32, "learning_rate": 5.0e-3}
    )
    run = teacher_training(params)
    losses = torch.stack([record.loss.mean() for record in run.steps()])
    assert float(losses[-20:].mean()) < 0.9 * float(losses[:5].mean())


def test_the_average_moves_by_its_decay_and_is_frozen():
    module = torch.nn.Linear(1, 1, bias=False)
    average = frozen_copy(module)
    with torch.no_grad():
        module.weight.fill_(1.0)
        average.weight.fill_(0.0)
    update_ema([*average.parameters()], [*module.parameters()], 0.75)
    assert average.weight.item() == pytest.approx(0.25)
    assert not average.weight.requires_grad


@pytest.mark.parametrize(
    ("seen", "expected"),
    [(1_000_000_000, 0.5 ** (512 / 500_000)), (10_000, 0.5 ** (512 / 500)), (0, 0.0)],
)
def test_the_half_life_is_a_fraction_of_the_images_seen_at_first(seen, expected):
    decay = ema_decay(seen, 512, halflife_kimg=500.0, rampup=0.05)
    assert decay == pytest.approx(expected)


def test_the_step_size_warms_up_and_follows_its_schedule():
    def factor(seen, schedule):
        return learning_rate_factor(seen, total_images=1000, warmup_images=100, schedule=schedule)

    assert factor(0, "cosine") == pytest.approx(1 / 101)
    assert factor(100, "cosine") == pytest.approx(1)
    assert factor(550, "cosine") == pytest.approx(0.525)
    assert factor(1000, "cosine") == pytest.approx(0.05)
    assert factor(1000, "constant") == 1


def test_a_damaged_state_is_refused_by_name(tmp_path):
    path = tmp_path / "state"
    state_of_teacher(teacher_training(tiny_params())).save(path, {})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="state is damaged: delete it"):
        state_of_teacher(teacher_training(tiny_params())).load(path)


def test_the_meter_averages_by_level_and_starts_anew():
    meter = BinnedMean()
    meter.add(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0.3, 0.4, 100.0]))
    reading = meter.read()
    assert reading.mean == 4
    assert reading.by_level == {"<=0.5": 2.0, ">20": 8.0}
    meter.add(torch.tensor([5.0]), torch.tensor([0.3]))
    assert meter.read().mean == 5
