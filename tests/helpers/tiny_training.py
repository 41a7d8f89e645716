"""Small trainings that tests of steps and of whole runs share."""

from collections import deque
from itertools import islice

import torch
from stage_helpers import params_with

from dsd.distillation.trainer import Distillation
from dsd.model.checkpoint import build_denoiser
from dsd.pretraining.trainer import TeacherTraining
from dsd.training.state import TrainingState
from dsd.utils.random import seeded_dropout

SHAPE = (1, 8, 8)
SIGMA = 0.3


def tiny_params(dropout=0.1, **sections):
    network = {
        "model_channels": 8,
        "channel_mult": [1],
        "attention_resolutions": [],
        "dropout": dropout,
    }
    short = {"batch_size": 8, "kimg": 0.08, "lr_warmup_kimg": 0.016}
    return params_with(
        network=network,
        pretrain={**short, **sections.get("pretrain", {})},
        distill={**short, **sections.get("distill", {})},
    )


def teacher_training(params, seed=0, distributed=None, precision="float32", **more):
    denoiser = build_denoiser(params.network, SHAPE, seed=1)
    images = torch.randn(30, *SHAPE, generator=torch.Generator().manual_seed(2))
    levels = torch.full((30,), SIGMA)
    return TeacherTraining(
        denoiser, images, levels, params.pretrain, seed=seed, precision=precision,
        distributed=distributed, **more,
    )  # fmt: skip


def distillation(params, seed=0, distributed=None, precision="float32", teacher=None, **more):
    return Distillation(
        teacher or random_teacher(params), torch.full((30,), SIGMA), SHAPE, params.distill,
        params.pretrain, seed=seed, precision=precision, distributed=distributed, **more,
    )  # fmt: skip


def random_teacher(params):
    teacher = build_denoiser(params.network, SHAPE, seed=1)
    random = torch.Generator().manual_seed(3)
    for parameter in teacher.parameters():  # fresh weights end in zeros
        torch.nn.init.normal_(parameter, std=0.05, generator=random)
    return teacher


def fake_step(run, x_g, random):
    """One step of a distillation's fake denoiser on these images; the loss of each."""
    _, (noise, *_) = run._sample_noise(random)
    with seeded_dropout(0, "test", 0, x_g.device):
        return run._update_fake([x_g], [noise])


def judged(run, x_g, random):
    """The generator's gradient with respect to these images, their gaps, and what was drawn."""
    noise, _ = run._sample_noise(random)
    gaps, (grad_x,) = run._differentiate([x_g], noise)
    return grad_x, gaps, noise


def run_steps(training, count):
    deque(islice(training.steps(), count), maxlen=0)


def weights(training):
    """Copies of the averaged and the trained weights."""
    own = training.denoiser if hasattr(training, "denoiser") else training.generator
    return [p.clone() for module in (training.average, own) for p in module.state_dict().values()]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def state_of_teacher(training):
    modules = {"net": training.denoiser, "ema": training.average}
    return TrainingState(modules, {"adam": training.optimizer})


def state_of_distillation(training):
    modules = {"net": training.generator, "fake": training.fake, "ema": training.average}
    optimizers = {"adam": training.optimizer, "adam_fake": training.optimizer_fake}
    return TrainingState(modules, optimizers)


KINDS = {
    "pretrain": (teacher_training, state_of_teacher),
    "distill": (distillation, state_of_distillation),
}
