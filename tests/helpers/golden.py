"""Numbers that no refactoring may move: 100 steps of both trainings, and one evaluation.

``python tests/helpers/golden.py [FOLDER]`` computes them and writes them to ``tests/golden/``, or
to another folder; a change of theirs belongs into CHANGELOG.md, with its reason.
``test_golden.py`` compares. Everything is fixed here and nothing read from params.yaml, on one
thread of a CPU in float32, without dropout, whose random numbers are those of the platform.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from sandbox import ROOT

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from torch import Tensor

from dsd.distillation.config import Distill
from dsd.distillation.trainer import Distillation
from dsd.evaluation.inception_score import inception_score
from dsd.evaluation.kid import kernel_distance
from dsd.evaluation.precision_recall import Manifold, density_coverage, precision_recall
from dsd.features.extractor import extract, load_extractor
from dsd.metrics.frechet import frechet_distance, moments
from dsd.metrics.intervals import frechet_estimate
from dsd.model.checkpoint import build_denoiser
from dsd.model.config import Churn, Sampler, UNetConfig
from dsd.model.generator import OneStepGenerator, make_latents
from dsd.model.samplers import sample_teacher
from dsd.pretraining.config import Pretrain
from dsd.pretraining.trainer import TeacherTraining
from dsd.selection.proximal import ProximalReference
from dsd.utils.images import to_uint8

FOLDER = Path(__file__).parent / "golden"
CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
COUNT, SIGMA, BATCH = 60, 0.3, 8
STEPS, STEPS_OF_VARIANTS = 100, 25
SHOWN = (1, 2, 5, 10, 20, 50, 100)
"""Steps whose losses are kept."""

NETWORK = UNetConfig(
    kind="unet",
    patch_size=1, model_channels=8, channel_mult=[1, 2], num_blocks=1, attention_resolutions=[4],
    dropout=0.0, sigma_data=0.5,
)  # fmt: skip
PRETRAIN: dict[str, Any] = {
    "objective": "adjusted",
    "weighting": "inverse-variance",
    "noise": {"distribution": "added", "P_mean": -1.2, "P_std": 1.2},
    "consistency": {"weight": 0.0, "batch_size": 2, "num_steps": 1},
    "batch_size": BATCH,
    "learning_rate": 1e-3,
    "lr_warmup_kimg": 0.08,
    "lr_schedule": "cosine",
    "ema_halflife_kimg": 0.2,
    "ema_rampup_ratio": 0.05,
    "sample_every_kimg": 1.0,
}
DISTILL: dict[str, Any] = {
    "divergence": "sid",
    "alpha": 1.2,
    "sigma_init": 2.5,
    "clamp_output": True,
    "noise": {"sigma_min": 0.05, "sigma_max": 80.0, "rho": 7.0, "t_max": 0.65},
    "fake_noise": {"distribution": "added", "P_mean": -0.6, "P_std": 1.2},
    "batch_size": BATCH,
    "learning_rate": 2.5e-4,
    "learning_rate_fake": 2.0e-4,
    "lr_warmup_kimg": 0.0,
    "lr_schedule": "cosine",
    "betas": [0.0, 0.999],
    "fake_updates_per_step": 1,
    "ema_halflife_kimg": 0.2,
    "ema_rampup_ratio": 0.05,
    "selection": {
        "features": "fashion-classifier", "every_kimg": 1.0, "num_samples": 10, "save_top_k": 1,
    },
}  # fmt: skip
SAMPLER = Sampler(
    method="heun",
    num_steps=6,
    sigma_min=0.002,
    sigma_max=80.0,
    rho=7.0,
    churn=Churn(S_churn=1.0, S_min=0.3, S_max=80.0, S_noise=1.0),
)

TEACHERS: dict[str, dict[str, Any]] = {
    "pretrain": {},
    "pretrain, standard, truncated levels": {
        "objective": "standard",
        "weighting": "edm",
        "noise": {**PRETRAIN["noise"], "distribution": "truncated"},
    },
    "pretrain, consistency": {"consistency": {**PRETRAIN["consistency"], "weight": 1.0}},
}
"""What each teacher's training changes."""

GENERATORS: dict[str, dict[str, Any]] = {
    "distill": {},
    "distill, dmd": {"divergence": "dmd"},
    "distill, sds": {"divergence": "sds"},
}
"""What each distillation changes."""


def platform_now() -> dict[str, str]:
    """What decides whether numbers are equal to the last bit."""
    return {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def training(name: str) -> dict[str, Any]:
    """Losses and weights of one training of :data:`TEACHERS` or :data:`GENERATORS`."""
    if name in TEACHERS:
        return _teach(TEACHERS[name])[1]
    return _distil(_teacher(), GENERATORS[name])


@cache
def _teacher() -> torch.nn.Module:
    return _teach(TEACHERS["pretrain"])[0].average


def trainings() -> dict[str, Any]:
    """All of them, by name."""
    return {name: training(name) for name in (*TEACHERS, *GENERATORS)}


def _length(changes: dict[str, Any]) -> dict[str, float]:
    """How long a training is; variants are shorter."""
    return {"kimg": (STEPS_OF_VARIANTS if changes else STEPS) * BATCH / 1000}


def _teach(changes: dict[str, Any]) -> tuple[TeacherTraining, dict[str, Any]]:
    images = _random_images(COUNT, *SHAPE) / 127.5 - 1
    training = TeacherTraining(
        build_denoiser(NETWORK, SHAPE, seed=1),
        images.float(),
        torch.full((COUNT,), SIGMA),
        Pretrain.model_validate({**PRETRAIN, **_length(changes), **changes}),
        seed=0,
        precision="float32",
    )
    losses = [float(record.loss.mean()) for record in training.steps()]
    weights = {"trained": training.denoiser, "average": training.average}
    return training, _values(losses, weights)


def _distil(teacher: torch.nn.Module, changes: dict[str, Any]) -> dict[str, Any]:
    training = Distillation(
        teacher,
        torch.full((COUNT,), SIGMA),
        SHAPE,
        Distill.model_validate({**DISTILL, **_length(changes), **changes}),
        Pretrain.model_validate({**PRETRAIN, **_length({})}),
        seed=0,
        precision="float32",
    )
    gaps = [float(record.gap.mean()) for record in training.steps()]
    names = ("generator", "fake", "average")
    return _values(gaps, {name: getattr(training, name) for name in names})


def _values(losses: list[float], modules: dict[str, torch.nn.Module]) -> dict[str, Any]:
    assert len(losses) in (STEPS, STEPS_OF_VARIANTS)
    tensors = {name: list(module.state_dict().values()) for name, module in modules.items()}
    return {
        "losses": {str(step): losses[step - 1] for step in SHOWN if step <= len(losses)},
        "norms": {name: _norm(values) for name, values in tensors.items()},
        "sha256": {name: _digest(values) for name, values in tensors.items()},
    }


def _norm(tensors: Iterable[Tensor]) -> float:
    squares = [float(tensor.double().square().sum()) for tensor in tensors]
    return sum(squares) ** 0.5


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _random_images(count: int, *shape: int) -> Tensor:
    """Whole numbers from 0 to 255; the same for any version of torch."""
    return torch.from_numpy(np.random.default_rng(count).integers(0, 256, (count, *shape)))


def evaluation() -> dict[str, Any]:
    """All measures of fixed images, and a hash of what a fixed teacher and generator make."""
    extractor = load_extractor("fashion-classifier", device=CPU, inception_weights=None)
    first, second = _photographs(0), _photographs(300)
    a, b = (extract(extractor, images, batch_size=100) for images in (first, second))
    reference, generated = moments(b), Manifold(a)
    kid = kernel_distance(a, b, seed=0)
    proximal = ProximalReference(
        second, torch.full((len(second),), SIGMA), extractor, batch_size=100, seed=0
    )
    estimate = frechet_estimate(a, reference)
    measured = {
        "frechet": frechet_distance(moments(a), reference),
        "frechet_standard_error": estimate.standard_error,
        "frechet_infinity": estimate.limit,
        "proximal_frechet": proximal.distance(first),
        "kid": kid.value,
        "kid_standard_error": kid.standard_error,
        **precision_recall(generated, Manifold(b))._asdict(),
        **density_coverage(generated, Manifold(b))._asdict(),
        "inception_score": inception_score(extractor.probabilities(a.float())),
    }
    return {"measures": {name: float(value) for name, value in measured.items()}, **_samples()}


def _photographs(first: int) -> Tensor:
    """300 of the embedded images of clothes, 16 x 16, as stage ``prepare`` makes them."""
    from dsd.sources.reader import Reader, find_images

    path = ROOT / "data" / "embedded" / "fashion-mnist.parquet"
    source = find_images("parquet", path, None)
    reader = Reader(source, pad=2, resolution=16, on_error="raise", max_images=first + 300)
    images = np.concatenate(list(reader.blocks()))
    return torch.from_numpy(images[first:])


def _samples() -> dict[str, Any]:
    """Images of networks with fixed random weights."""
    denoiser = build_denoiser(NETWORK, SHAPE, seed=1).eval()
    random = torch.Generator().manual_seed(3)
    for parameter in denoiser.parameters():  # fresh weights end in zeros
        torch.nn.init.normal_(parameter, std=0.05, generator=random)
    latents = make_latents(20, SHAPE, seed=0)
    with torch.inference_mode():
        taught = sample_teacher(denoiser, latents, config=SAMPLER, sigma_y=SIGMA, seed=0)
        one_step = OneStepGenerator(denoiser, sigma_init=2.5, shape=SHAPE)(latents)
    images = {**{name: getattr(taught, name) for name in taught._fields[:3]}, "one_step": one_step}
    return {
        "means": {name: float(to_uint8(found).double().mean()) for name, found in images.items()},
        "sha256": {name: _digest([found]) for name, found in images.items()},
    }


def load(name: str) -> dict[str, Any]:
    """The committed document of that name."""
    document: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return document


def main(folder: Path = FOLDER) -> None:
    """Write both documents."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    for make in (trainings, evaluation):
        document = {"platform": platform_now(), "values": make()}
        path = folder / f"{make.__name__}.json"
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
