"""Stage ``evaluate``: measure the generator and three ways to sample its teacher."""

import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr

from dsd.checkpoint import load_denoiser, load_generator
from dsd.config import FeatureSpace, Params
from dsd.features import Extractor, load_extractor
from dsd.generator import make_latents
from dsd.images import save_rows, to_uint8
from dsd.imagestore import ImageStore
from dsd.metrics.proximal import FrechetReference, ProximalReference
from dsd.operators import Operator
from dsd.samplers import TeacherSamples, sample_teacher
from dsd.seeds import derive_seed
from dsd.shapes import Level, Pixels, State
from pipeline.compute import resolve_device
from pipeline.paths import Paths
from pipeline.stagelog import StageLog
from pipeline.tables import write_csv

__all__ = ["run"]

NUM_SHOWN = 12
"""Images of each kind in the picture."""

MODELS = ("generator", "teacher_full", "teacher_truncated", "teacher_truncated_exact")
"""What is measured, by its name in the summary."""

LABELS = {
    "clean_data": "clean data",
    "noisy_data": "noisy data",
    "teacher_full": "teacher, Full",
    "teacher_truncated": "teacher, Truncated",
    "teacher_truncated_exact": "Truncated at sigma",
    "generator": "one step",
}


class Samples(NamedTuple):
    """Images of each model, and how often each evaluated its network for one image."""

    images: dict[str, Pixels]
    evaluations: dict[str, int]


class Data(NamedTuple):
    """The images that models are compared with."""

    clean: Pixels | None
    noisy: Pixels
    sigma: Level
    operator: Operator
    """Through which the noisy images were observed."""

    def left_to_observe(self, model: str) -> Operator | None:
        """What a model's images lack, but for noise, to be compared with noisy ones.

        Teachers of mapped images generate mapped images.
        """
        return self.operator if model == "generator" or self.operator.map is None else None


def run(params: Params, paths: Paths, log: StageLog) -> None:
    """Sample, measure and draw; write ``reports/summary.json`` and ``reports/evaluate``."""
    device = resolve_device(params.compute)
    data = _data(params, paths)
    samples = _sample(params, paths, data, device, log)
    spaces = [
        _Space(_extractor(params, name, device), data, params) for name in params.evaluate.features
    ]
    summary = _summary(params, samples, data, spaces)
    summary["selection"] = _trajectory(paths, spaces, data)
    paths.summary.write_text(json.dumps(summary, indent=2) + "\n")
    _draw(paths, samples, data)
    for name in MODELS:
        log.say(_line(name, summary))


def _data(params: Params, paths: Paths) -> Data:
    noisy = ImageStore.open(paths.artifact("corrupt") / "train")
    clean = None
    if params.data.content == "clean":
        clean = to_uint8(ImageStore.open(paths.artifact("prepare")).all())
    return Data(clean, to_uint8(noisy.all()), noisy.sigma, Operator.of_store(noisy.meta.info))


def _extractor(params: Params, name: FeatureSpace, device: torch.device) -> Extractor:
    return load_extractor(
        name, device=device, inception_weights=params.evaluate.inception_weights_path
    )


@final
class _Space:
    """One feature space with the data in it."""

    def __init__(self, extractor: Extractor, data: Data, params: Params) -> None:
        size = params.compute.eval_batch_size
        seed = derive_seed(params.seed, "evaluation noise")
        self.name = extractor.name
        self.protocol = extractor.protocol
        self.noisy = ProximalReference(
            data.noisy, data.sigma, extractor, batch_size=size, seed=seed
        )
        self.clean = None
        self.clean_shape = data.operator.shape
        if data.clean is not None:
            self.clean = FrechetReference(data.clean, extractor, batch_size=size)

    def frechet(self, images: Pixels) -> float | None:
        """Distance to the clean images, if there are any and of the size of ``images``."""
        if self.clean is None or images.shape[1:] != self.clean_shape:
            return None
        return self.clean.distance(images)

    def proximal(self, images: Pixels, operator: Operator | None) -> float:
        """Distance to the noisy images after observing ``images`` like those."""
        return self.noisy.distance(images, operator=operator)


def _sample(
    params: Params, paths: Paths, data: Data, device: torch.device, log: StageLog
) -> Samples:
    """Draw from generator and teacher, from the same latents."""
    generator = load_generator(paths.artifact("distill") / "generator", device)
    teacher = load_denoiser(paths.artifact("pretrain"), device)
    count, seed = params.evaluate.num_samples, derive_seed(params.seed, "evaluation latents")
    latents = make_latents(count, generator.shape, seed=seed)
    latents_teacher = latents
    if generator.shape != data.operator.observed_shape:
        latents_teacher = make_latents(count, data.operator.observed_shape, seed=seed)
    sigma_y = float(data.sigma.max())
    parts: dict[str, list[Pixels]] = {name: [] for name in MODELS}
    evaluations = {"generator": 1}
    seconds = {"generator": 0.0, "teacher": 0.0}
    done = 0
    with log.progress(count) as progress, torch.inference_mode():
        size = params.compute.eval_batch_size
        for z, z_teacher in zip(latents.split(size), latents_teacher.split(size), strict=True):
            z = z.to(device)
            started = time.perf_counter()
            parts["generator"].append(to_uint8(generator(z)).cpu())
            between = time.perf_counter()
            drawn = sample_teacher(
                teacher,
                z_teacher.to(device),
                config=params.evaluate.sampler,
                sigma_y=sigma_y,
                seed=seed,
                first=done,
            )
            for name, (images, calls) in _by_name(drawn).items():
                parts[name].append(to_uint8(images).cpu())
                evaluations[name] = calls
            seconds["generator"] += between - started
            seconds["teacher"] += time.perf_counter() - between
            done += len(z)
            progress.update(done)
    log.metrics(count, {f"{name}_images_per_second": count / s for name, s in seconds.items()})
    log.say(
        f"{count:,} images: one step {seconds['generator']:.1f} s, "
        f"teacher ({evaluations['teacher_full']} evaluations for Full) {seconds['teacher']:.1f} s"
    )
    return Samples({name: torch.cat(images) for name, images in parts.items()}, evaluations)


def _by_name(drawn: TeacherSamples) -> dict[str, tuple[State, int]]:
    """Images and evaluations of each way to sample, by its name in the summary."""
    return {
        "teacher_full": (drawn.full, drawn.evaluations_full),
        "teacher_truncated": (drawn.truncated, drawn.evaluations_truncated),
        "teacher_truncated_exact": (drawn.truncated_exact, drawn.evaluations_truncated_exact),
    }


def _summary(params: Params, samples: Samples, data: Data, spaces: list[_Space]) -> dict[str, Any]:
    """All distances; those in the first feature space stand at the top of each model."""
    count = params.evaluate.num_samples
    summary: dict[str, Any] = {}
    for name in MODELS:
        images = samples.images[name]
        by_features = {
            space.name: {
                "frechet": space.frechet(images),
                "proximal_frechet": space.proximal(images, data.left_to_observe(name)),
            }
            for space in spaces
        }
        summary[name] = {
            **by_features[spaces[0].name],
            "evaluations": samples.evaluations[name],
            "by_features": by_features,
        }
    noisy = {space.name: {"frechet": space.frechet(data.noisy[:count])} for space in spaces}
    summary["noisy_data"] = {**noisy[spaces[0].name], "by_features": noisy}
    summary["protocol"] = _protocol(params, data, spaces)
    return summary


def _protocol(params: Params, data: Data, spaces: list[_Space]) -> dict[str, object]:
    """All that must be equal for two numbers to be comparable."""
    return {
        "features": spaces[0].name,
        "extractors": {space.name: space.protocol for space in spaces},
        "pixels": "clamped to [-1, 1], 8 bit; re-noised images and noisy references likewise",
        "num_samples": params.evaluate.num_samples,
        "num_clean": None if data.clean is None else len(data.clean),
        "num_noisy": len(data.noisy),
        "seed": params.seed,
        "sigma": params.corrupt.sigma,
        "sigma_hat": float(data.sigma.max()),
        "operator": data.operator.choice.model_dump(),
        "without_frechet": _without_frechet(data),
    }


def _without_frechet(data: Data) -> str | None:
    """Why a distance to clean images is missing, where one is."""
    if data.clean is None:
        return "there are no clean images to measure against"
    if data.operator.observed_shape != data.operator.shape:
        return "noisy data and teachers' images are smaller than clean ones"
    return None


def _trajectory(paths: Paths, spaces: list[_Space], data: Data) -> dict[str, object]:
    """How Proximal FID followed the distance to clean images over the distillation.

    The images are those on which the generator was chosen; this study comes after the choice.
    """
    space = spaces[0]
    rows = []
    for path in sorted((paths.artifact("distill") / "trajectory").glob("*.safetensors")):
        images = load_file(path)["images"]
        proximal = space.proximal(images, data.operator)
        rows.append((int(path.stem), proximal, space.frechet(images)))
    header = ["images", "proximal_frechet", "frechet"]
    write_csv(paths.report("evaluate") / "selection.csv", header, rows)
    if space.clean is not None:
        _, near, clean = zip(*rows, strict=True)
        return {"spearman": float(spearmanr(near, clean).statistic), "checkpoints": len(rows)}
    return {"checkpoints": len(rows)}


def _draw(paths: Paths, samples: Samples, data: Data) -> None:
    """Save one picture: data above, then each model's images of the same latents."""
    rows = {"noisy_data": data.noisy}
    rows |= {name: samples.images[name] for name in reversed(MODELS)}
    if data.clean is not None:
        rows["clean_data"] = data.clean
    labelled = {label: rows[name][:NUM_SHOWN] for name, label in LABELS.items() if name in rows}
    save_rows(labelled, paths.report("evaluate") / "comparison.png")


def _line(name: str, summary: Mapping[str, Any]) -> str:
    values = summary[name]
    clean = "" if values["frechet"] is None else f"Frechet {values['frechet']:.4g}, "
    features = summary["protocol"]["features"]
    return f"{name}: {clean}Proximal Frechet {values['proximal_frechet']:.4g} ({features})"
