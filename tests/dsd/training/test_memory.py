"""Less memory, same bits: activation checkpointing, and batches in the largest parts that fit."""

import gc
from itertools import islice

import pytest
import torch
from stage_helpers import params_with
from team_worker import CASES
from tiny_training import distillation, equal, run_steps, teacher_training, tiny_params, weights
from torch.utils.checkpoint import checkpoint

from dsd.model.checkpoint import build_denoiser
from dsd.model.networks import unet
from dsd.model.networks.unet import UNet
from dsd.pretraining.trainer import TeacherTraining
from dsd.training.distributed import Team
from dsd.training.memory import Line, largest_part, peak_bytes, recompute_activations
from dsd.utils.errors import ParamsError
from pipeline.execution import distributed as pipeline_team
from pipeline.execution.distributed import fit_into_memory

CPU = torch.device("cpu")
LEVELS = {
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 2,
    "attention_resolutions": [8],
}


def unets(training):
    names = ("denoiser", "teacher", "fake", "generator", "average")
    found = (getattr(training, name) for name in names if hasattr(training, name))
    return [part for module in found for part in module.modules() if isinstance(part, UNet)]


@pytest.fixture
def repeated(monkeypatch):
    """Counts the blocks of which a gradient will need a repetition."""
    counts = []

    def counting(*args, **kwargs):
        counts.append(1)
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr(unet, "checkpoint", counting)
    return counts


@pytest.mark.parametrize("at_once", [None, 2], ids=["whole", "parts"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_recomputed_blocks_change_no_bit(name, precision, at_once, repeated):
    """With dropout, views, the consistency term, all divergences, and frozen networks."""
    runs = [CASES[name](Team(at_once=at_once)) for _ in range(2)]
    recompute_activations(runs[1].average, False)
    for run, wanted in zip(runs, (False, True), strict=True):
        run._precision = precision
        for network in unets(run):
            network.recomputes = wanted
    records = [list(islice(run.steps(), 2)) for run in runs]
    assert repeated
    for first, second in zip(*map(weights, runs), strict=True):
        assert torch.equal(first, second)
    for plain, again in zip(*records, strict=True):
        for key, value in vars(plain).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, vars(again)[key])


def deep_network(**changes):
    config = tiny_params().network.model_copy(update={**LEVELS, "dropout": 0.4, **changes})
    torch.manual_seed(0)
    network = UNet(config, channels=1, resolution=8)
    for parameter in network.parameters():  # fresh weights end in zeros
        torch.nn.init.normal_(parameter, std=0.2)
    return network.train()


def test_nothing_is_repeated_without_gradients(repeated):
    network = deep_network()
    recompute_activations(network, True)
    with torch.no_grad():
        network(torch.randn(2, 1, 8, 8), torch.zeros(2))
    assert not repeated


def test_recomputing_keeps_a_fraction():
    network = deep_network(num_blocks=4)
    x, level = torch.randn(16, 1, 8, 8), torch.zeros(16)

    def kept():
        return peak_bytes(lambda: network(x, level).sum().backward(), CPU)

    plain = kept()
    recompute_activations(network, True)
    assert kept() < 0.4 * plain


@pytest.mark.parametrize("make", [teacher_training, distillation])
def test_the_switch_is_for_what_is_trained_and_not_for_what_is_kept(make):
    run = make(tiny_params(), activation_checkpointing=True)
    kept = unets(run)[-1]
    assert not kept.recomputes
    assert all(network.recomputes for network in unets(run)[:-1])
    assert not any(network.recomputes for network in unets(make(tiny_params())))


def test_bytes_are_counted_for_as_long_as_tensors_live():
    there = torch.ones(1000)

    def work():
        there.add_(1)
        there[:10].view(2, 5)
        a = there + 1  # 4,000
        b = a * 2  # 8,000
        del a
        c = torch.cat([b, b])  # 12,000
        del b, c
        return torch.zeros(500)

    assert peak_bytes(work, CPU) == 12_000


def test_bytes_that_a_gradient_keeps_are_counted():
    x = torch.ones(1000, requires_grad=True)
    # Both results are kept, then the gradient of one of them is there, too; and two scalars.
    assert peak_bytes(lambda: x.exp().exp().sum().backward(), CPU) == 12_008


def training_of(make, **changes):
    """A training whose activations outweigh its weights."""
    short = {"batch_size": 32, "kimg": 1.28}
    return make(tiny_params(pretrain={**short, **changes}, distill=short))


@pytest.mark.parametrize("make", [teacher_training, distillation])
def test_a_rehearsal_changes_nothing(make):
    plain, tried = training_of(make), training_of(make)
    run_steps(plain, 1)
    run_steps(tried, 1)
    state = torch.get_rng_state()
    part = largest_part(tried, Team(), free=1e12, device=CPU)
    assert part.images == part.share == 32
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for network in unets(tried) for weight in network.parameters())
    run_steps(plain, 2)
    run_steps(tried, 2)
    assert equal(weights(plain), weights(tried))


CONSISTENCY = {"weight": 1.0, "batch_size": 8, "num_steps": 1}


@pytest.mark.parametrize(
    ("make", "changes"),
    [(teacher_training, {}), (teacher_training, {"consistency": CONSISTENCY}), (distillation, {})],
    ids=["teacher", "consistency", "distillation"],
)
def test_parts_shrink_with_the_memory_and_fit_into_it(make, changes):
    training = training_of(make, **changes)
    whole = largest_part(training, Team(), free=1e12, device=CPU)
    assert (whole.images, whole.share) == (32, 32)
    chosen = []
    for fraction in (1.1, 0.6, 0.35):
        usable = fraction * whole.needed
        part = largest_part(training, Team(), free=usable / 0.8, device=CPU)
        chosen.append(part.images)
        assert part.usable == pytest.approx(usable)
        assert part.needed <= part.usable
        # A straight line through few images: with more of them the peak moves to another place,
        # from drawing the masks of the whole batch to the gradient.
        assert 0.95 < measured(training, part.images) / part.needed < 1.02
    assert chosen[0] == 32
    assert sorted(set(chosen), reverse=True) == chosen
    assert all(-(-32 // -(-32 // images)) == images for images in chosen)  # equal parts


def measured(training, at_once):
    """Peak of a real step after the first, with the moments that this brought."""
    training._team = Team(at_once=at_once)
    run_steps(training, 1)
    for optimizer in training.optimizers:
        optimizer.zero_grad()
    peak = peak_bytes(lambda: run_steps(training, 1), CPU)
    moments = [
        moment.nbytes
        for optimizer in training.optimizers
        for state in optimizer.state.values()
        for moment in (state["exp_avg"], state["exp_avg_sq"])
    ]
    for optimizer in training.optimizers:
        optimizer.zero_grad()
        optimizer.state.clear()
    return peak + sum(moments)


def test_not_one_image_fits_into_nothing():
    part = largest_part(training_of(teacher_training), Team(), free=1e4, device=CPU)
    assert part.images == 0
    assert part.needed > part.usable == 8e3


def test_a_team_shares_before_anything_is_divided():
    training = training_of(teacher_training)
    part = largest_part(training, Team(1, 3), free=1e12, device=CPU)
    assert (part.images, part.share) == (11, 11)


def test_a_straight_line():
    line = Line(base=100.0, each=10.0)
    assert line.at(3) == 130
    assert [line.most(free) for free in (99.0, 109.0, 110.0, 135.0)] == [-1, 0, 1, 3]


@pytest.fixture
def free(monkeypatch):
    def install(value):
        monkeypatch.setattr(pipeline_team, "free_memory", lambda device: value)

    return install


def compute(**changes):
    return params_with(compute={"device": "cpu", **changes}).compute


def test_auto_says_what_it_takes_and_takes_it(free):
    training, team = training_of(teacher_training), Team()
    free(1e12)
    said = fit_into_memory(training, team, compute(), CPU)
    assert said.startswith("takes 32 of 32 images of a step at once: 0.00 GB more of the main")
    assert said.endswith("800.00 GB may be taken")
    assert team.parts(32) == [slice(0, 32)]
    needed = largest_part(training, team, free=1e12, device=CPU).needed
    free(0.5 * needed / 0.8)
    assert "of 32 images" in fit_into_memory(training, team, compute(), CPU)
    assert len(team.parts(32)) > 1


def test_a_number_is_taken_at_its_word(free):
    free(0.0)
    team = Team(at_once=5)
    said = fit_into_memory(training_of(teacher_training), team, compute(micro_batch_size=5), CPU)
    assert "5 images" in said
    assert len(team.parts(32)) == 7


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_does_not_fit_is_told_with_numbers_and_remedies(free, checkpointing):
    free(1e4)
    wanted = compute(activation_checkpointing=checkpointing)
    with pytest.raises(ParamsError) as caught:
        fit_into_memory(training_of(teacher_training), Team(), wanted, CPU)
    message = str(caught.value)
    assert message.startswith("not even one image fits: a step needs 0.0")
    assert "0.00 GB may be taken" in message
    assert ("compute.activation_checkpointing" in message) != checkpointing
    assert "network.model_channels" in message


def test_a_large_network_says_how_many_images_have_the_consistency_term():
    training = training_of(teacher_training, consistency=CONSISTENCY)
    assert isinstance(training, TeacherTraining)
    assert training.least == 4
    assert training_of(teacher_training).least == 1


def test_models_do_not_know_of_the_switch():
    denoiser = build_denoiser(tiny_params().network, (1, 8, 8), seed=0)
    before = list(denoiser.state_dict())
    recompute_activations(denoiser, True)
    assert list(denoiser.state_dict()) == before
    gc.collect()
