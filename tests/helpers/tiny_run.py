"""One run of all five stages with every value away from its default, and what torch computed.

Tests recompute from this what the stages write. Hooks of torch record each call of a denoiser and
each step of an optimizer, so that no test depends on how the trainings are written.
"""

import json
import math
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file
from stage_helpers import Recorder, params_with, png, write_parquet
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from dsd.model.checkpoint import load_denoiser
from dsd.model.denoiser import Denoiser
from dsd.model.generator import OneStepGenerator
from dsd.storage.image_store import ImageStore
from pipeline.execution.run import run_stage
from pipeline.params.model import Params
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import read_csv
from pipeline.stages import corrupt, distill, evaluate, prepare, pretrain

SHAPE = (1, 8, 8)
SIGMA, ASSUMED = 0.4, 0.45
NUM_READINGS = 6

PIXEL_UNITS = {
    "intensity": {"low": 0.0, "high": 255.0, "dtype": "uint8", "camera": None},
    "sigma": float(np.float32(ASSUMED)),
    "is_complex": False,
    "suffix": ".png",
}
"""What models of 8-bit pictures know of them."""

CHANGES = {
    "seed": 5,
    "data": {"path": "images.parquet", "pad": 0, "resolution": 8, "max_images": 140,
             "shard_size": 32},
    "corrupt": {"sigma": SIGMA, "sigma_hat": ASSUMED, "clean_fraction": 0.25, "num_heldout": 40,
                "workers": 1},
    "network": {"model_channels": 8, "channel_mult": [1], "attention_resolutions": [],
                "dropout": 0.2, "sigma_data": 0.6},
    "pretrain": {
        "weighting": "ambient-omni",
        "noise": {"distribution": "added", "P_mean": -1.1, "P_std": 0.4},
        "batch_size": 8, "kimg": 0.208, "learning_rate": 4.0e-3, "lr_warmup_kimg": 0.024,
        "lr_schedule": "constant", "ema_halflife_kimg": 0.02, "ema_rampup_ratio": 0.5,
        "sample_every_kimg": 0.104,
    },
    "distill": {
        "alpha": 1.1, "sigma_init": 1.7,
        "noise": {"sigma_min": 0.04, "sigma_max": 40.0, "rho": 5.0, "t_max": 0.7},
        "fake_noise": {"distribution": "added", "P_mean": -0.9, "P_std": 0.8},
        "batch_size": 8, "kimg": 0.16, "learning_rate": 1.0e-3, "learning_rate_fake": 1.5e-3,
        "lr_warmup_kimg": 0.016, "lr_schedule": "cosine", "betas": [0.3, 0.95],
        "fake_updates_per_step": 2,
        "ema_halflife_kimg": 0.02, "ema_rampup_ratio": 0.5,
        "selection": {"features": "tiny_features:rough", "every_kimg": 0.024, "num_samples": 50,
                      "save_top_k": 2},
    },
    "evaluate": {
        "features": ["tiny_features:fine", "tiny_features:rough", "fashion-classifier"],
        "num_samples": 60,
        "sampler": {
            "method": "heun", "num_steps": 6, "sigma_min": 0.01, "sigma_max": 20.0, "rho": 5.0,
            "churn": {"S_churn": 1.5, "S_min": 0.3, "S_max": 10.0, "S_noise": 1.02},
        },
    },
    "compute": {"device": "cpu", "precision": "float32", "micro_batch_size": 8},
    "run": {"eval_batch_size": 40, "checkpoint_minutes": 1000.0},
}  # fmt: skip


class Call(NamedTuple):
    """One call of a denoiser."""

    denoiser: Denoiser
    x: torch.Tensor
    sigma: torch.Tensor
    out: torch.Tensor
    inference: bool
    """Whether it was in inference mode: for pictures and measurements, not for training."""


class Update(NamedTuple):
    """One step of an optimizer."""

    optimizer: torch.optim.Optimizer
    group: dict[str, Any]
    before: list[torch.Tensor]
    gradients: list[torch.Tensor]
    after: list[torch.Tensor]


@contextmanager
def recorded():
    """Calls and updates in their order."""
    events, before = [], {}

    def called(module, args, out):
        if isinstance(module, Denoiser):
            x, sigma = (a.detach().clone() for a in args[:2])
            inference = torch.is_inference_mode_enabled()
            events.append(Call(module, x, sigma, out.detach().clone(), inference))

    def begins(optimizer, *_):
        before[optimizer] = copies(optimizer)

    def ends(optimizer, *_):
        (group,) = optimizer.param_groups
        gradients = [p.grad.clone() for p in group["params"]]
        rest = {key: value for key, value in group.items() if key != "params"}
        after = copies(optimizer)
        events.append(Update(optimizer, rest, before[optimizer], gradients, after))

    hooks = [
        register_module_forward_hook(called),
        register_optimizer_step_pre_hook(begins),
        register_optimizer_step_post_hook(ends),
    ]
    try:
        yield events
    finally:
        for hook in hooks:
            hook.remove()


def copies(optimizer):
    (group,) = optimizer.param_groups
    return [p.detach().clone() for p in group["params"]]


class Run:
    """The workspace with what was recorded while its stages ran."""

    def __init__(self, root, changes=CHANGES):
        self.params: Params = params_with(**changes)
        self.paths = Paths(root)
        self.events, self.logs = {}, {}
        self.images = pictures(150)
        write_parquet(root / "images.parquet", [png(image) for image in self.images])
        for stage in (prepare, corrupt, pretrain, distill, evaluate):
            self.carry_out(stage)

    def carry_out(self, stage):
        name = stage.__name__.split(".")[-1]
        self.paths.report(name).mkdir(parents=True, exist_ok=True)
        self.logs[name] = Recorder()
        with recorded() as events, patch.object(pretrain, "NUM_READINGS", NUM_READINGS):
            run_stage(stage, self.params, self.paths, self.logs[name])
        self.events[name] = events

    def store(self, name):
        return ImageStore.open(self.paths.artifact(name))

    def table(self, stage, name):
        return read_csv(self.paths.report(stage) / name)

    def json(self, path):
        return json.loads((self.paths.root / "reports" / path).read_text())

    def updates(self, stage, number=0):
        """All steps of one optimizer, by the order in which they were first used."""
        found = [event for event in self.events[stage] if isinstance(event, Update)]
        optimizers = list(dict.fromkeys(update.optimizer for update in found))
        return [update for update in found if update.optimizer is optimizers[number]]

    def calls(self, stage, *, inference=False):
        found = (event for event in self.events[stage] if isinstance(event, Call))
        return [call for call in found if call.inference is inference]

    def teacher(self):
        return load_denoiser(self.paths.artifact("pretrain"), torch.device("cpu"))

    def generator_of(self, weights):
        """The one-step generator with these weights, in the order of its parameters."""
        denoiser = self.teacher()
        for parameter, value in zip(denoiser.parameters(), weights, strict=True):
            parameter.data.copy_(value)
        sigma_init = self.params.distill.sigma_init
        return OneStepGenerator(denoiser.eval(), sigma_init=sigma_init, shape=SHAPE).eval()

    def trajectory(self, images_seen):
        folder = self.paths.artifact("distill") / "trajectory"
        return load_file(folder / f"{images_seen:09d}.safetensors")["images"]


def pictures(count):
    """Images [n, 8, 8] of coarse squares, so that there is something to learn."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 2, 2)).repeat(4, 1).repeat(4, 2)
    return (0.8 * coarse + rng.integers(0, 50, coarse.shape)).astype(np.uint8)


def averages(updates, first, config):
    """The average of the weights after each step, with EDM's half-life and ramp-up."""
    average, found = [w.double() for w in first], []
    for step, update in enumerate(updates):
        seen = (step + 1) * config.batch_size
        halflife = min(1000 * config.ema_halflife_kimg, config.ema_rampup_ratio * seen)
        share = 0.5 ** (config.batch_size / halflife)
        average = [
            share * old + (1 - share) * new.double()
            for old, new in zip(average, update.after, strict=True)
        ]
        found.append(average)
    return found


def step_size(peak, seen, config, steps):
    """Warm-up, then constant or half a cosine from the peak to a twentieth of it."""
    warm = 1000 * config.lr_warmup_kimg
    if seen < warm:
        return peak * (seen + 1) / (warm + 1)
    if config.lr_schedule == "constant":
        return peak
    angle = math.pi * (seen - warm) / (steps * config.batch_size - warm)
    return peak * (0.05 + 0.95 * (1 + math.cos(angle)) / 2)


def flat(tensors):
    """All numbers of some tensors as one vector of float64."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).double().numpy()


def adam_in_numpy(updates, betas, sizes):
    """Weights after each step of Adam (Kingma and Ba 2014, Algorithm 1) with these gradients."""
    b1, b2 = betas
    weights, m, v = flat(updates[0].before), 0.0, 0.0
    for t, (update, size) in enumerate(zip(updates, sizes, strict=True), start=1):
        g = flat(update.gradients)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        weights = weights - size * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        yield weights
