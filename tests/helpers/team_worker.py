"""Trainings in one of several processes; run as ``python team_worker.py FOLDER SIZE RANK``.

Writes what every case ends with to ``FOLDER/<size>-<rank>.safetensors``. Cases in float64 do the
same arithmetic with 53 bits, to tell rounding from mistakes.
"""

import sys
from functools import partial
from itertools import product
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from stage_helpers import params_with
from torch import distributed as dist

from dsd.distillation.trainer import Distillation
from dsd.model.checkpoint import build_denoiser
from dsd.operators.config import OperatorChoice
from dsd.operators.operator import Operator
from dsd.pretraining.trainer import TeacherTraining
from dsd.training.distributed import DistributedContext
from dsd.training.state import TrainingState

SHAPE = (1, 8, 8)
BATCH = 11  # no multiple of any number of processes
OPERATORS = {
    "identity": {},
    "mask": {"keep_prob": 0.6, "further_mask_prob": 0.2},
    "downsample": {"factor": 2},
}
SHORT = {"batch_size": BATCH, "kimg": 0.033, "lr_warmup_kimg": 0.0, "ema_rampup_ratio": 1.0}


def params(dropout, **distill):
    network = {
        "model_channels": 8,
        "channel_mult": [1],
        "attention_resolutions": [],
        "dropout": dropout,
    }
    consistency = {"weight": 1.5, "batch_size": 5, "num_steps": 2}
    return params_with(
        network=network,
        pretrain={**SHORT, "consistency": consistency},
        distill={**SHORT, "fake_updates_per_step": 2, **distill},
    )


def operator(kind):
    choice = TypeAdapter(OperatorChoice).validate_python({"kind": kind, **OPERATORS[kind]})
    return Operator(choice, SHAPE)


def denoiser(wanted, observed):
    size = observed.observed_shape[-1] // wanted.network.patch_size
    config = wanted.network.model_copy(update={"attention_resolutions": [size]})
    network = build_denoiser(config, observed.observed_shape, seed=1, views=observed.views)
    random = torch.Generator().manual_seed(3)
    for parameter in network.parameters():  # fresh weights end in zeros
        torch.nn.init.normal_(parameter, std=0.1, generator=random)
    return network.to(torch.get_default_dtype())


def teacher_training(kind, distributed, dropout, **more):
    wanted = params(dropout)
    observed, random = operator(kind), torch.Generator().manual_seed(5)
    y = torch.randn(30, *observed.observed_shape, generator=random)
    view = None if observed.views is None else observed.views.draw(30, random)
    return TeacherTraining(
        denoiser(wanted, observed), observed.project(y, view), torch.linspace(0.2, 0.5, 30),
        wanted.pretrain, seed=0, precision="float32", view=view, distributed=distributed,
        **more,
    )  # fmt: skip


def distillation(kind, divergence, distributed, dropout, **more):
    wanted, observed = params(dropout, divergence=divergence), operator(kind)
    return Distillation(
        denoiser(wanted, observed), torch.linspace(0.2, 0.5, 30), SHAPE, wanted.distill,
        wanted.pretrain,
        seed=0, precision="float32", operator=observed, distributed=distributed,
        **more,
    )  # fmt: skip


def modules(training):
    names = ("denoiser", "generator", "fake", "average")
    return {name: getattr(training, name) for name in names if hasattr(training, name)}


def ended(training):
    """Weights and what was recorded, after all steps from here on."""
    records = [vars(record) for record in training.steps()]
    found = {
        f"{name}/{key}": value.detach().clone().contiguous()
        for name, module in modules(training).items()
        for key, value in module.state_dict().items()
        if value.is_floating_point()
    }
    recorded = {
        f"{name} {step}": value.clone()
        for step, record in enumerate(records)
        for name, value in record.items()
        if isinstance(value, torch.Tensor)
    }
    return found | recorded


CASES = {
    "pretrain": partial(teacher_training, "mask", dropout=0.13),
    "sid": partial(distillation, "mask", "sid", dropout=0.13),
    "dmd": partial(distillation, "downsample", "dmd", dropout=0.13),
    "sds": partial(distillation, "identity", "sds", dropout=0.13),
}
MICRO_BATCHES = {"whole": None, "parts": 2}


def resumed(rank, size, folder):
    """A training that one process began."""
    state = folder / "begun.state"
    training = teacher_training("mask", DistributedContext(rank, size), 0.0)
    saved = TrainingState(modules(training), {"adam": training.optimizer})
    if size > 1:
        saved.load(state)
        training.step = 2
    for _ in training.steps():
        if size == 1 and training.step == 2:
            saved.save(state, {})
    return training


def main(folder, size, rank):
    torch.set_num_threads(1)
    if size > 1:
        meeting = f"file://{folder}/meeting-{size}"
        dist.init_process_group("gloo", init_method=meeting, world_size=size, rank=rank)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    found = {}
    for name, (word, micro_batch_size) in product(CASES, MICRO_BATCHES.items()):
        if size > 1 and word == "whole":
            continue
        distributed = DistributedContext(rank, size, micro_batch_size)
        values = ended(CASES[name](distributed, dropout=0.0))
        found |= {f"{name} {word}/{key}": value for key, value in values.items()}
    values = ended(resumed(rank, size, folder))
    found |= {f"resumed/{key}": value for key, value in values.items()}
    save_file(found, folder / f"{size}-{rank}.safetensors")
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
