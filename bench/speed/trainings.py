"""Steps of both trainings: ours, plain ones, and the references'."""

import json
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.speed.plain import PlainDistillation, PlainTeacher, clamped_levels
from bench.speed.references import EdmTeacher, RawNetwork, SidDistillation, reference_network
from bench.speed.settings import Setting
from bench.speed.work import Work
from dsd.distillation.config import Distill
from dsd.distillation.trainer import Distillation
from dsd.model.checkpoint import build_denoiser
from dsd.model.config import GeneratorNoise, TeacherNoise
from dsd.model.denoiser import Denoiser
from dsd.model.noise_levels import sample_teacher_levels
from dsd.pretraining.config import Pretrain
from dsd.pretraining.trainer import TeacherTraining
from dsd.utils.config import Precision
from pipeline.params.model import Params
from pipeline.params.reader import load_params
from sandbox import ROOT

__all__ = [
    "SIGMA_Y",
    "distill_config",
    "distill_ours",
    "distill_ours_on_reference",
    "distill_plain",
    "distill_reference",
    "new_training",
    "our_denoiser",
    "pretrain_config",
    "setting_of",
    "teacher_ours",
    "teacher_ours_on_reference",
    "teacher_plain",
    "teacher_reference",
]

SIGMA_Y = 0.2
"""Noise level of the observations, the paper's on CIFAR-10."""

_IMAGES = 2048
_LEVELS = 2**16
"""Levels that are drawn to see which share of them is of use."""

_ENDLESS_KIMG = 1e9
_LEVEL_LAW = TeacherNoise(distribution="truncated", P_mean=-1.2, P_std=1.2)


@cache
def _params() -> Params:
    return load_params(ROOT)


def pretrain_config(batch_size: int) -> Pretrain:
    """The paper's objective, for an endless training; levels that waste nothing."""
    paper = {"objective": "adjusted", "weighting": "edm", "noise": _LEVEL_LAW}
    size = {"batch_size": batch_size, "kimg": _ENDLESS_KIMG}
    without = _params().pretrain.consistency.model_copy(update={"weight": 0.0})
    return _params().pretrain.model_copy(update={**paper, **size, "consistency": without})


def distill_config(batch_size: int) -> Distill:
    """SiD with the paper's numbers, for an endless distillation."""
    levels = GeneratorNoise(sigma_min=0.002, sigma_max=80.0, rho=7.0, t_max=0.8)
    paper = {
        **{"divergence": "sid", "alpha": 1.2, "sigma_init": 2.5, "clamp_output": False},
        **{
            "noise": levels,
            "fake_noise": _LEVEL_LAW,
            "fake_updates_per_step": 1,
            "betas": [0.0, 0.999],
        },
    }
    size = {"batch_size": batch_size, "kimg": _ENDLESS_KIMG}
    return _params().distill.model_copy(update={**paper, **size})


def setting_of(options: Mapping[str, Any]) -> Setting:
    """The size that the options name."""
    return Setting.model_validate_json(json.dumps(options["setting"]))


def _observations(
    setting: Setting, device: torch.device, count: int = _IMAGES
) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    images = 0.5 * torch.randn(count, *setting.shape, generator=random)
    return images.to(device), torch.full((count,), SIGMA_Y, device=device)


def _share_of_use(sigma: Tensor) -> dict[str, float]:
    """The share of levels at which an observation gets any noise, and so a gradient."""
    return {"of_use": float((sigma > SIGMA_Y).double().mean())}


def _our_share() -> dict[str, float]:
    random = torch.Generator().manual_seed(0)
    levels = torch.full((_LEVELS,), SIGMA_Y)
    sigma, added = sample_teacher_levels(_LEVEL_LAW, levels, random)
    return _share_of_use(torch.where(added > 0, sigma, levels))


def _clamped_share() -> dict[str, float]:
    random = torch.Generator().manual_seed(0)
    return _share_of_use(clamped_levels(torch.full((_LEVELS,), SIGMA_Y), random))


def _size(network: nn.Module) -> dict[str, float]:
    return {"parameters": float(sum(weight.numel() for weight in network.parameters()))}


def our_denoiser(setting: Setting, device: torch.device) -> Denoiser:
    """Our network, preconditioned, as the stages build it."""
    return build_denoiser(setting.network, setting.shape, seed=0).to(device)


def _plain_network(setting: Setting, device: torch.device) -> nn.Module:
    """Our network with weights in torch's usual layout."""
    return our_denoiser(setting, device).network.to(memory_format=torch.contiguous_format)


def _reference_denoiser(
    options: Mapping[str, Any], setting: Setting, device: torch.device
) -> Denoiser:
    made = reference_network(Path(options["checkout"]), setting, device)
    return Denoiser(RawNetwork(made), sigma_data=setting.network.sigma_data)


def new_training(device: torch.device, options: Mapping[str, Any]) -> TeacherTraining:
    """Our training of our network, at its first step."""
    setting = setting_of(options)
    return _training(our_denoiser(setting, device), setting, options)


def _training(denoiser: Denoiser, setting: Setting, options: Mapping[str, Any]) -> TeacherTraining:
    precision: Precision = options.get("precision", "float32")
    count = options.get("observations", _IMAGES)
    return TeacherTraining(
        denoiser,
        *_observations(setting, next(denoiser.parameters()).device, count),
        pretrain_config(setting.batch_size),
        seed=0,
        precision=precision,
    )


def _train(denoiser: Denoiser, setting: Setting, options: Mapping[str, Any]) -> Work:
    training = _training(denoiser, setting, options)
    facts = _our_share() | _size(denoiser)
    return Work(partial(next, training.steps()), setting.batch_size, counted=True, facts=facts)


def teacher_ours(device: torch.device, options: Mapping[str, Any]) -> Work:
    """Our training of our network."""
    setting = setting_of(options)
    return _train(our_denoiser(setting, device), setting, options)


def teacher_ours_on_reference(device: torch.device, options: Mapping[str, Any]) -> Work:
    """Our training of EDM's network."""
    setting = setting_of(options)
    return _train(_reference_denoiser(options, setting, device), setting, options)


def teacher_plain(device: torch.device, options: Mapping[str, Any]) -> Work:
    """The plain training of our network."""
    setting = setting_of(options)
    config = pretrain_config(setting.batch_size)
    training = PlainTeacher(
        _plain_network(setting, device),
        *_observations(setting, device),
        batch_size=setting.batch_size,
        learning_rate=config.learning_rate,
        halflife=1000 * config.ema_halflife_kimg,
        rampup=config.ema_rampup_ratio,
        sigma_data=setting.network.sigma_data,
    )
    facts = _clamped_share() | _size(training.network)
    return Work(training.advance, setting.batch_size, counted=True, facts=facts)


def teacher_reference(device: torch.device, options: Mapping[str, Any]) -> Work:
    """EDM's training of its network, whose levels DSD's reference code clamps."""
    setting = setting_of(options)
    training = EdmTeacher(Path(options["checkout"]), setting, device)
    law = training.loss
    drawn = (law.P_mean + law.P_std * torch.randn(_LEVELS)).exp().clamp(min=SIGMA_Y)
    facts = _share_of_use(drawn) | _size(training.network)
    return Work(training.advance, setting.batch_size, counted=True, facts=facts)


def _distil(teacher: Denoiser, setting: Setting, options: Mapping[str, Any]) -> Work:
    device = next(teacher.parameters()).device
    precision: Precision = options.get("precision", "float32")
    distillation = Distillation(
        teacher.eval(),
        torch.full((_IMAGES,), SIGMA_Y, device=device),
        setting.shape,
        distill_config(setting.batch_size_distill),
        pretrain_config(setting.batch_size),
        seed=0,
        precision=precision,
    )
    do = partial(next, distillation.steps())
    return Work(do, setting.batch_size_distill, counted=True, facts=_size(teacher))


def distill_ours(device: torch.device, options: Mapping[str, Any]) -> Work:
    """Our distillation with our networks."""
    setting = setting_of(options)
    return _distil(our_denoiser(setting, device), setting, options)


def distill_ours_on_reference(device: torch.device, options: Mapping[str, Any]) -> Work:
    """Our distillation with SiD's networks."""
    setting = setting_of(options)
    return _distil(_reference_denoiser(options, setting, device), setting, options)


def distill_plain(device: torch.device, options: Mapping[str, Any]) -> Work:
    """The plain distillation with our networks."""
    setting = setting_of(options)
    config = distill_config(setting.batch_size_distill)
    distillation = PlainDistillation(
        _plain_network(setting, device),
        setting.shape,
        sigma_y=SIGMA_Y,
        batch_size=setting.batch_size_distill,
        learning_rate=config.learning_rate,
        learning_rate_fake=config.learning_rate_fake,
        betas=(config.betas[0], config.betas[1]),
        alpha=config.alpha,
        sigma_init=config.sigma_init,
        halflife=1000 * config.ema_halflife_kimg,
        rampup=config.ema_rampup_ratio,
        sigma_data=setting.network.sigma_data,
    )
    facts = _size(distillation.teacher)
    return Work(distillation.advance, setting.batch_size_distill, counted=True, facts=facts)


def distill_reference(device: torch.device, options: Mapping[str, Any]) -> Work:
    """SiD's distillation with its networks."""
    setting = setting_of(options)
    distillation = SidDistillation(Path(options["checkout"]), setting, device)
    facts = _size(distillation.teacher)
    return Work(distillation.advance, setting.batch_size_distill, counted=True, facts=facts)
