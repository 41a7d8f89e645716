"""Drawing images: from the teacher in 18 steps of Heun's method, and in one step."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.speed.references import reference_module, reference_network
from bench.speed.settings import Setting
from bench.speed.trainings import our_denoiser, setting_of
from bench.speed.work import Work
from dsd.model.generator import OneStepGenerator, make_latents
from dsd.model.samplers import sample_teacher
from pipeline.params.reader import load_params
from sandbox import ROOT

__all__ = ["heun_ours", "heun_reference", "one_step_ours", "one_step_reference"]

_SIGMA_INIT = 2.5


def _latents(count: int, setting: Setting, device: torch.device) -> torch.Tensor:
    return make_latents(count, setting.shape, seed=0).to(device)


def _work(do: Callable[[], object], count: int) -> Work:
    return Work(torch.inference_mode()(do), count, counted=True)


def heun_ours(device: torch.device, options: Mapping[str, Any]) -> Work:
    """Our sampler to the end, with our network."""
    setting = setting_of(options)
    sampler = load_params(ROOT).evaluate.sampler
    denoiser = our_denoiser(setting, device).eval()
    latents = _latents(setting.sample, setting, device)
    # At level 0 its three kinds of samples are one, and none costs anything besides.
    do = partial(sample_teacher, denoiser, latents, config=sampler, sigma_y=0.0)
    return _work(do, setting.sample)


def heun_reference(device: torch.device, options: Mapping[str, Any]) -> Work:
    """EDM's sampler with its network."""
    setting, checkout = setting_of(options), Path(options["checkout"])
    network = reference_network(checkout, setting, device).eval().requires_grad_(False)
    sampler = reference_module(checkout, "generate").edm_sampler
    latents = _latents(setting.sample, setting, device)
    return _work(partial(sampler, network, latents, num_steps=18), setting.sample)


def one_step_ours(device: torch.device, options: Mapping[str, Any]) -> Work:
    """Our generator."""
    setting = setting_of(options)
    denoiser = our_denoiser(setting, device)
    generator = OneStepGenerator(denoiser, sigma_init=_SIGMA_INIT, shape=setting.shape).eval()
    latents = _latents(setting.batch_size, setting, device)
    return _work(partial(generator, latents), setting.batch_size)


def one_step_reference(device: torch.device, options: Mapping[str, Any]) -> Work:
    """SiD's generator, which is EDM's network at one level."""
    setting, checkout = setting_of(options), Path(options["checkout"])
    network = reference_network(checkout, setting, device).eval().requires_grad_(False)
    latents = _latents(setting.batch_size, setting, device)
    level = torch.full((len(latents),), _SIGMA_INIT, device=device)
    return _work(lambda: network(_SIGMA_INIT * latents, level), setting.batch_size)
