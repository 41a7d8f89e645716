"""Steps of both trainings: ours, plain ones, and the references'."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.speed.plain import PlainDistillation, PlainTeacher, clamped_levels
from bench.speed.references import EdmTeacher, RawNetwork, SidDistillation, reference_network
from bench.speed.timing import Comparison, Way
from dsd.distillation.config import Distill
from dsd.distillation.trainer import Distillation
from dsd.model.checkpoint import build_denoiser
from dsd.model.config import GeneratorNoise, TeacherNoise, UNetConfig
from dsd.model.denoiser import Denoiser
from dsd.pretraining.config import Pretrain
from dsd.pretraining.trainer import TeacherTraining
from dsd.utils.config import Precision
from pipeline.params.model import Params
from pipeline.params.reader import load_params
from sandbox import ROOT

__all__ = [
    "SIGMA_Y", "Setting", "compare_distillations", "compare_teachers", "distillation",
    "edm_network", "settings", "teacher_training",
]  # fmt: skip

SIGMA_Y = 0.2
"""Noise level of the observations, the paper's on CIFAR-10."""

_IMAGES = 2048
_LEVELS = TeacherNoise(distribution="truncated", P_mean=-1.2, P_std=1.2)


class Setting(NamedTuple):
    """A network, its images and its batches."""

    name: str
    shape: tuple[int, int, int]
    network: UNetConfig
    batch_size: int
    """Images of a step of the teacher's training, or generated together in one step."""

    batch_size_distill: int
    sample: int
    """Images that the teacher samples together."""

    def __str__(self) -> str:
        """Its name and the shape of its images."""
        return f"{self.name}, {'x'.join(map(str, self.shape))}"


@cache
def parameters() -> Params:
    """The committed parameters."""
    return load_params(ROOT)


def settings() -> list[Setting]:
    """The default network, two small ones in EDM's manner, and the paper's DDPM++.

    A step on two cores takes at most some seconds.
    """
    grey, colour, default = (1, 16, 16), (3, 32, 32), parameters().network
    small, middle, paper = (
        edm_network(32, [1, 2], 1),
        edm_network(64, [1, 2, 2], 2),
        edm_network(128, [2, 2, 2], 4),
    )
    return [
        Setting("default", grey, default, 128, 128, 100),
        Setting("small", grey, small, 128, 64, 20),
        Setting("middle", colour, middle, 16, 8, 2),
        Setting("paper", colour, paper, 2, 1, 1),
    ]


def edm_network(model_channels: int, channel_mult: list[int], num_blocks: int) -> UNetConfig:
    """What EDM's training command gives for its architecture ``ddpmpp``, at this size."""
    size = {"model_channels": model_channels, "channel_mult": channel_mult}
    fixed = {
        "kind": "unet",
        "patch_size": 1,
        "attention_resolutions": [16],
        "dropout": 0.13,
        "sigma_data": 0.5,
    }
    return UNetConfig.model_validate({**size, **fixed, "num_blocks": num_blocks})


def pretrain_config(batch_size: int) -> Pretrain:
    """The paper's objective, for an endless training, with levels that waste nothing."""
    config = parameters().pretrain
    changes = {"objective": "adjusted", "weighting": "edm", "noise": _LEVELS, "kimg": 1e9}
    without = config.consistency.model_copy(update={"weight": 0.0})
    return config.model_copy(update={**changes, "consistency": without, "batch_size": batch_size})


def distill_config(batch_size: int) -> Distill:
    """SiD with the paper's numbers, for an endless distillation."""
    noise = GeneratorNoise(sigma_min=0.002, sigma_max=80.0, rho=7.0, t_max=0.8)
    paper: dict[str, object] = {"divergence": "sid", "alpha": 1.2, "sigma_init": 2.5}
    paper |= {"noise": noise, "fake_noise": _LEVELS, "clamp_output": False, "betas": [0.0, 0.999]}
    size = {"batch_size": batch_size, "kimg": 1e9, "fake_updates_per_step": 1}
    return parameters().distill.model_copy(update={**paper, **size})


def our_denoiser(setting: Setting, device: torch.device) -> Denoiser:
    """Our network, preconditioned, as the stages build it."""
    return build_denoiser(setting.network, setting.shape, seed=0).to(device)


def missing(reference: str, checkout: Path | None, setting: Setting) -> str | None:
    """Why a reference cannot take part, if so."""
    if setting.network.patch_size > 1:
        return "it does not fold pixels into channels"
    return f"no --{reference.lower()}" if checkout is None else None


def teacher_training(
    denoiser: Denoiser,
    setting: Setting,
    precision: Precision = "float32",
    **options: Any,  # noqa: ANN401 - of TeacherTraining
) -> TeacherTraining:
    """Our training of a teacher, at its first step."""
    observations = _observations(setting, next(denoiser.parameters()).device)
    config = pretrain_config(setting.batch_size)
    return TeacherTraining(denoiser, *observations, config, seed=0, precision=precision, **options)


def distillation(
    denoiser: Denoiser,
    setting: Setting,
    precision: Precision = "float32",
    **options: Any,  # noqa: ANN401 - of Distillation
) -> Distillation:
    """Our distillation of a teacher, at its first step."""
    levels = torch.full((_IMAGES,), SIGMA_Y, device=next(denoiser.parameters()).device)
    config, objective = distill_config(setting.batch_size_distill), pretrain_config(1)
    given = denoiser.eval(), levels, setting.shape, config, objective
    return Distillation(*given, seed=0, precision=precision, **options)


def _observations(setting: Setting, device: torch.device) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    images = 0.5 * torch.randn(_IMAGES, *setting.shape, generator=random)
    return images.to(device), torch.full((_IMAGES,), SIGMA_Y, device=device)


def _plain_network(setting: Setting, device: torch.device) -> nn.Module:
    """Our network with weights in torch's usual layout."""
    return our_denoiser(setting, device).network.to(memory_format=torch.contiguous_format)


def compare_teachers(setting: Setting, device: torch.device, edm: Path | None) -> Comparison:
    """A step of the teacher: ours, the plain one, EDM's, and ours on EDM's network."""
    config = pretrain_config(setting.batch_size)
    network, observations = _plain_network(setting, device), _observations(setting, device)
    plain = PlainTeacher(network, *observations, config, setting.network.sigma_data)
    # Levels that are clamped to that of the data give no gradient.
    levels = clamped_levels(torch.full((2**16,), SIGMA_Y), torch.Generator().manual_seed(0))
    of_use = (levels > SIGMA_Y).double().mean().item()

    def ours(denoiser: Denoiser) -> Iterator[object]:
        return teacher_training(denoiser, setting).steps()

    rival, title = ("EDM", EdmTeacher, edm), f"Training a teacher: {setting}"
    return _compare(title, ours, plain.advance, rival, config.batch_size, of_use, setting, device)


def compare_distillations(setting: Setting, device: torch.device, sid: Path | None) -> Comparison:
    """A step of the fake denoiser and one of the generator: ours, plain, SiD's, ours on SiD's."""
    config = distill_config(setting.batch_size_distill)
    network, sigma_data = _plain_network(setting, device), setting.network.sigma_data
    plain = PlainDistillation(network, setting.shape, SIGMA_Y, config, sigma_data)

    def ours(denoiser: Denoiser) -> Iterator[object]:
        return distillation(denoiser, setting).steps()

    rival, title = ("SiD", SidDistillation, sid), f"Distilling: {setting}"
    return _compare(title, ours, plain.advance, rival, config.batch_size, 1.0, setting, device)


def _compare(
    title: str,
    ours: Callable[..., Iterator[object]],
    plain: Callable[[], object],
    rival: tuple[str, Callable[..., EdmTeacher | SidDistillation], Path | None],
    batch: int,
    of_use: float,
    setting: Setting,
    device: torch.device,
) -> Comparison:
    name, theirs, checkout = rival
    step = partial(next, ours(our_denoiser(setting, device)))
    ways = [Way("ours", step, batch), Way("plain", plain, batch, of_use)]
    why = missing(name, checkout, setting)
    if checkout is not None and why is None:
        network = partial(reference_network, checkout, setting, device)
        made = theirs(checkout, network(), batch, setting.shape, device)
        mixed = Denoiser(RawNetwork(network()), sigma_data=setting.network.sigma_data)
        ways.append(Way(name, made.advance, batch, of_use))
        ways.append(Way(f"our step, {name}'s network", partial(next, ours(mixed)), batch))
    return Comparison(title, "images/s", ways, {} if why is None else {name: why})
