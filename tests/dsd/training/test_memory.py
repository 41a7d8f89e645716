"""Less memory: activation checkpointing, and micro-batches that fit."""

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
from dsd.training.distributed import DistributedContext
from dsd.training.memory import enable_activation_checkpointing, find_micro_batch_size
from dsd.utils.errors import ParamsError
from pipeline.execution.distributed import choose_micro_batch_size

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


@pytest.mark.parametrize(
    ("name", "precision", "micro_batch_size"),
    [("pretrain", "float32", 4), ("sid", "bfloat16", None), ("dmd", "float32", 4)],
)
def test_recomputed_blocks_change_no_bit(name, precision, micro_batch_size, repeated):
    """With dropout, views, the consistency term, all divergences, and frozen networks."""
    runs = [CASES[name](DistributedContext(micro_batch_size=micro_batch_size)) for _ in range(2)]
    enable_activation_checkpointing(runs[1].average, False)
    for run, wanted in zip(runs, (False, True), strict=True):
        run._schedule.precision = precision
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
    enable_activation_checkpointing(network, True)
    with torch.no_grad():
        network(torch.randn(2, 1, 8, 8), torch.zeros(2))
    assert not repeated


@pytest.mark.parametrize("make", [teacher_training, distillation])
def test_the_switch_is_for_what_is_trained_and_not_for_what_is_kept(make):
    run = make(tiny_params(), activation_checkpointing=True)
    kept = unets(run)[-1]
    assert not kept.recomputes
    assert all(network.recomputes for network in unets(run)[:-1])
    assert not any(network.recomputes for network in unets(make(tiny_params())))


class Memory:
    """Lets a training run out of memory where a pass has more images than fit."""

    def __init__(self, training, distributed, images):
        self.training, self.distributed, self.images = training, distributed, images
        self.passes, dry_run = [], training.dry_run

        def limited():
            dry_run()
            self.passes.append(distributed.micro_batch_size)
            if distributed.micro_batch_size > images:
                raise torch.OutOfMemoryError("CUDA out of memory")

        training.dry_run = limited


@pytest.mark.parametrize("make", [teacher_training, distillation])
def test_micro_batches_are_halved_until_they_fit_and_nothing_else_changes(make):
    distributed = DistributedContext()
    plain, tried = make(tiny_params()), make(tiny_params(), distributed=distributed)
    for run in (plain, tried):
        run_steps(run, 1)
    state, memory = torch.get_rng_state(), Memory(tried, distributed, images=3)
    assert find_micro_batch_size(tried, distributed) == distributed.micro_batch_size == 2
    assert memory.passes == [8, 4, 2]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for network in unets(tried) for weight in network.parameters())
    distributed.micro_batch_size = None
    for run in (plain, tried):
        run_steps(run, 2)
    assert equal(weights(plain), weights(tried))


class Fuller(DistributedContext):
    """Another process, whose device has room for three images."""

    def all_reduce_max(self, *values):
        return [float(self.micro_batch_size > 3) or float(value) for value in values]


def test_all_processes_take_what_the_fullest_device_can():
    distributed = Fuller(1, 2)
    assert (
        find_micro_batch_size(
            teacher_training(tiny_params(), distributed=distributed), distributed
        )
        == 2
    )


def compute(**changes):
    return params_with(compute={"device": "cpu", **changes}).compute


CUDA = torch.device("cuda")


def test_auto_halves_on_a_gpu_and_takes_all_on_a_cpu():
    distributed = DistributedContext()
    training = teacher_training(tiny_params(), distributed=distributed)
    Memory(training, distributed, images=3)
    assert choose_micro_batch_size(training, distributed, compute(), CPU) == (
        "takes 8 of 8 images of a step in one pass"
    )
    assert distributed.micro_batches(8) == [slice(0, 8)]
    assert "takes 2 of 8 images" in choose_micro_batch_size(training, distributed, compute(), CUDA)
    assert len(distributed.micro_batches(8)) == 4


def test_a_number_is_taken_without_a_try():
    distributed = DistributedContext(micro_batch_size=5)
    training = teacher_training(tiny_params(), distributed=distributed)
    memory = Memory(training, distributed, images=0)
    said = choose_micro_batch_size(training, distributed, compute(micro_batch_size=5), CUDA)
    assert "takes 5 of 8 images" in said
    assert memory.passes == []


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_does_not_fit_is_told_with_remedies(checkpointing):
    distributed = DistributedContext()
    training = teacher_training(tiny_params(), distributed=distributed)
    memory = Memory(training, distributed, images=0)
    wanted = compute(activation_checkpointing=checkpointing)
    with pytest.raises(ParamsError) as caught:
        choose_micro_batch_size(training, distributed, wanted, CUDA)
    message = str(caught.value)
    assert memory.passes == [8, 4, 2, 1]
    assert message.startswith("not even one image fits into the GPU's memory (CUDA out of memory)")
    assert ("compute.activation_checkpointing" in message) != checkpointing
    assert "network.model_channels" in message


def test_models_do_not_know_of_activation_checkpointing():
    denoiser = build_denoiser(tiny_params().network, (1, 8, 8), seed=0)
    before = list(denoiser.state_dict())
    enable_activation_checkpointing(denoiser, True)
    assert list(denoiser.state_dict()) == before
