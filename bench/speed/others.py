"""Sampling, features, distances, the data's stages, and processes with nothing to do."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.accuracy.frechet import clean_fid
from bench.speed.references import reference_module, reference_network
from bench.speed.timing import Comparison, Way
from bench.speed.trainings import Setting, missing, our_denoiser, parameters, teacher_training
from dsd.metrics.frechet import Moments, frechet_distance, moments
from dsd.model.generator import OneStepGenerator, make_latents
from dsd.model.samplers import sample_teacher
from dsd.storage.image_store import ImageStore
from dsd.utils.random import step_generator
from pipeline.execution.run import run_stage
from pipeline.runtime.launch import NullLog
from pipeline.runtime.signals import StopSignal
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, prepare
from sandbox import ROOT
from sandbox.workspace import clone

__all__ = ["compare_samplers", "data_stages", "distances", "startup"]

_SIGMA_INIT = 2.5


def compare_samplers(
    setting: Setting, device: torch.device, edm: Path | None
) -> Iterator[Comparison]:
    """One step of the generator, and 18 steps of Heun's method."""
    why = missing("EDM", edm, setting)
    absent = {} if why is None else {"EDM": why}
    denoiser = our_denoiser(setting, device).eval()
    generator = OneStepGenerator(denoiser, sigma_init=_SIGMA_INIT, shape=setting.shape).eval()
    z = make_latents(setting.batch_size, setting.shape, seed=0).to(device)
    few = make_latents(setting.sample, setting.shape, seed=0).to(device)
    config = parameters().evaluate.sampler
    # At level 0 the three kinds of samples are one.
    heun = partial(sample_teacher, denoiser, few, config=config, sigma_y=0.0)
    one = [Way("ours", _inference(partial(generator, z)), len(z))]
    many = [Way("ours", _inference(heun), len(few))]
    if edm is not None and why is None:
        network = reference_network(edm, setting, device).eval().requires_grad_(False)
        level = torch.full((len(z),), _SIGMA_INIT, device=device)
        one.append(Way("EDM", _inference(partial(network, _SIGMA_INIT * z, level)), len(z)))
        sampler = partial(reference_module(edm, "generate").edm_sampler, network, few)
        many.append(Way("EDM", _inference(partial(sampler, num_steps=18)), len(few)))
    yield Comparison(f"One step: {setting}", "images/s", one, absent)
    if setting.name != "paper":  # where a CPU takes ten seconds an image
        yield Comparison(f"18 steps of Heun: {setting}", "images/s", many, absent)


def _inference(do: Callable[[], object]) -> Callable[[], object]:
    return torch.inference_mode()(do)


def distances(dims: tuple[int, ...]) -> Iterator[Comparison]:
    """A Frechet distance against clean-fid's, and mean and covariance."""
    for dim in dims:
        random = torch.Generator().manual_seed(0)
        scale = torch.linspace(1, 0.01, dim, dtype=torch.float64)
        sets = torch.randn(2, dim + 500, dim, generator=random, dtype=torch.float64) * scale
        generated, reference = map(moments, sets)

        def ours(fresh: Moments = generated, other: Moments = reference) -> float:
            # A copy without the factor that moments keep once it was needed.
            return frechet_distance(replace(fresh), other)

        ways = [Way("ours", ours), Way("clean-fid", partial(clean_fid, generated, reference))]
        yield Comparison(f"Frechet distance, {dim} features", "s", ways, computes=False)
        ways = [Way("ours", partial(moments, sets[0]))]
        yield Comparison(f"Mean and covariance, {dim} features", "s", ways, computes=False)


def data_stages(setting: Setting, device: torch.device, images: int) -> Iterator[Comparison]:
    """The first two stages, loading, and what a step of the teacher waits for."""
    params = parameters()
    source = {"path": str(ROOT / params.data.path), "max_images": images}
    size = {"num_heldout": images // 10} | ({"workers": 1} if images < 1000 else {})
    held = params.corrupt.model_copy(update=size)
    changes = {"data": params.data.model_copy(update=source), "corrupt": held}
    log = NullLog(StopSignal())
    with TemporaryDirectory() as folder:
        paths = Paths(Path(folder))
        few = params.model_copy(update=changes)
        run = [partial(run_stage, stage, few, paths, log) for stage in (prepare, corrupt)]
        for do in run:
            do()
        noisy = paths.artifact("corrupt") / "train"

        def load() -> torch.Tensor:
            return ImageStore.open(noisy).all().to(device)

        ways = [Way("prepare", run[0], images), Way("corrupt", run[1], images)]
        ways.append(Way("load", load, images))
        yield Comparison("Images on their way", "images/s", ways, computes=False)
    training = teacher_training(our_denoiser(setting, device), setting)
    drawn, numbers = teacher_training(our_denoiser(setting, device), setting), count()

    def draw() -> None:
        drawn.step = next(numbers)
        drawn._sample_batch(step_generator(0, "pretrain", drawn.step, device))

    step = partial(next, training.steps())
    ways = [Way("a whole step of the teacher", step), Way("drawing its images and noise", draw)]
    yield Comparison(f"Waiting for images: {setting}", "s", ways)


def startup() -> Iterator[Comparison]:
    """Whole processes; ``dvc repro`` runs in a clone whose tiny pipeline is up to date."""

    def command(*arguments: str) -> Way:
        line = [sys.executable, *arguments]
        do = partial(subprocess.run, line, cwd=ROOT, check=True, capture_output=True)
        return Way(f"python {' '.join(arguments)}", do)

    for who in ("AUTHOR", "COMMITTER"):
        os.environ |= {f"GIT_{who}_NAME": "bench", f"GIT_{who}_EMAIL": "bench@example.org"}
    with TemporaryDirectory() as folder:
        workspace = clone(Path(folder))
        workspace.repro()
        ways = [command("-c", "import dsd"), command("-m", "pipeline", "--help")]
        ways.append(Way("dvc repro, nothing to do", partial(workspace.run, "dvc", "repro")))
        yield Comparison("Processes with nothing to do", "s", ways, computes=False)
