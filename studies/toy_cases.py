"""One toy problem: train a teacher and its one-step student on noisy points, measure both.

Points in the plane travel as images of two channels and one pixel, through the same losses,
training and samplers as images.
"""

import time
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from dsd.distillation.config import Distill
from dsd.distillation.trainer import Distillation
from dsd.model.config import GeneratorNoise, Sampler, TeacherNoise
from dsd.model.denoiser import AnyDenoiser, Denoiser
from dsd.model.generator import OneStepGenerator, make_latents
from dsd.model.networks.mlp import MLP
from dsd.model.samplers import EDM_SAMPLER, sample_teacher
from dsd.pretraining.config import Consistency, Pretrain
from dsd.pretraining.trainer import TeacherTraining
from dsd.selection.config import Selection
from dsd.theory.toys import Points, ToyName, make_toy, sliced_wasserstein
from dsd.utils.random import derive_seed

__all__ = ["SETTINGS", "Case", "Outcome", "Result", "Settings", "train_case"]

_SHAPE = (2, 1, 1)
"""A point as an image."""

_NOISE = TeacherNoise(distribution="added", P_mean=-2.3, P_std=1.2)
_UNUSED_SELECTION = Selection(
    features="fashion-classifier", every_kimg=1.0, num_samples=2, save_top_k=1
)


@final
@dataclass(frozen=True)
class Settings:
    """Training and sampling of all cases."""

    num_observations: int
    """Noisy points, drawn once; all that training sees."""

    num_samples: int
    """Points drawn from each model and from the data to compare with."""

    width: int
    depth: int
    pretrain: Pretrain
    distill: Distill
    sampler: Sampler


SETTINGS = Settings(
    num_observations=20_000,
    num_samples=4000,
    width=128,
    depth=3,
    pretrain=Pretrain(
        objective="adjusted",
        weighting="inverse-variance",
        noise=_NOISE,
        consistency=Consistency(weight=0.0, batch_size=1, num_steps=1),
        batch_size=256,
        kimg=512.0,
        learning_rate=3e-3,
        lr_warmup_kimg=20.0,
        lr_schedule="cosine",
        ema_halflife_kimg=20.0,
        ema_rampup_ratio=0.1,
        sample_every_kimg=512.0,
    ),
    distill=Distill(
        divergence="sid",
        alpha=1.0,
        sigma_init=1.0,
        clamp_output=False,
        noise=GeneratorNoise(sigma_min=0.05, sigma_max=3.0, rho=7.0, t_max=1.0),
        fake_noise=_NOISE,
        batch_size=256,
        kimg=400.0,
        learning_rate=1e-3,
        learning_rate_fake=2e-3,
        lr_warmup_kimg=20.0,
        lr_schedule="cosine",
        betas=[0.0, 0.999],
        fake_updates_per_step=1,
        ema_halflife_kimg=20.0,
        ema_rampup_ratio=0.1,
        selection=_UNUSED_SELECTION,
    ),
    sampler=EDM_SAMPLER,
)


class Case(NamedTuple):
    """Data, their noise, and the level that training assumes."""

    toy: ToyName
    sigma: float
    sigma_hat: float
    seed: int


class Result(NamedTuple):
    """One row of the table."""

    toy: ToyName
    sigma: float
    sigma_hat: float
    seed: int
    method: str
    distance: float
    """Mean distance to the curves, in data units."""

    wasserstein: float
    """Sliced 2-Wasserstein distance to clean points, in data units."""

    coverage: float
    """How evenly the points lie along the curves, see :meth:`dsd.theory.toys.Toy.coverage`."""

    evaluations: int
    """Network evaluations for one point."""

    seconds: float
    """CPU time of the model's own training; the student's comes on top of its teacher's."""


@final
@dataclass(frozen=True)
class Outcome:
    """Results of one case by method: ``points`` to draw and a row of the table."""

    case: Case
    points: dict[str, Float32[np.ndarray, " n 2"]]
    results: dict[str, Result]


def train_case(case: Case, settings: Settings) -> Outcome:
    """Train a teacher and its student on one case, sample and measure both."""
    toy, shown = make_toy(case.toy), settings.num_samples
    random = _random(case, "observations")
    x0 = toy.sample(settings.num_observations, generator=random)
    y = x0 + case.sigma * torch.randn(x0.shape, generator=random)
    start = time.process_time()
    teacher = _train_teacher(y, case, settings)
    trained = time.process_time()
    student = _distil(teacher, case, settings)
    distilled = time.process_time()
    latents = _latents(case, settings)
    with torch.no_grad():
        found = sample_teacher(teacher, latents, config=settings.sampler, sigma_y=case.sigma_hat)
        one_step = student(latents)
    samples = {  # points, evaluations of the network, seconds of training
        "clean": (x0[:shown], 0, 0.0),
        "noisy": (y[:shown], 0, 0.0),
        "Full": (found.full, found.evaluations_full, trained - start),
        "Truncated": (found.truncated, found.evaluations_truncated, trained - start),
        "Truncated at sigma": (
            found.truncated_exact, found.evaluations_truncated_exact, trained - start,
        ),
        "one step": (one_step, 1, distilled - trained),
    }  # fmt: skip
    clean = toy.sample(shown, generator=_random(case, "reference"))
    points, results = {}, {}
    for method, (images, evaluations, seconds) in samples.items():
        x = images.flatten(1)
        points[method] = x.numpy()
        distance, coverage = float(toy.distance(x).mean()), toy.coverage(x)
        measured = (distance, sliced_wasserstein(x, clean), coverage)
        results[method] = Result(*case, method, *measured, evaluations, seconds)
    return Outcome(case, points, results)


def _train_teacher(y: Points, case: Case, settings: Settings) -> AnyDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(case.seed, "weights"))
        network = MLP(dimensions=2, width=settings.width, depth=settings.depth)
    training = TeacherTraining(
        Denoiser(network, sigma_data=0.5),
        y.reshape(-1, *_SHAPE),
        torch.full((len(y),), case.sigma_hat),
        settings.pretrain,
        seed=derive_seed(case.seed, "teacher"),
        precision="float32",
    )
    for _ in training.steps():
        pass
    return training.average


def _distil(teacher: AnyDenoiser, case: Case, settings: Settings) -> OneStepGenerator:
    distillation = Distillation(
        teacher,
        torch.full((1,), case.sigma_hat),
        _SHAPE,
        settings.distill,
        settings.pretrain,
        seed=derive_seed(case.seed, "student"),
        precision="float32",
    )
    for _ in distillation.steps():
        pass
    return distillation.average


def _random(case: Case, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(case.seed, "toys", case.toy, purpose))


def _latents(case: Case, settings: Settings) -> Tensor:
    return make_latents(settings.num_samples, _SHAPE, seed=derive_seed(case.seed, "latents"))
