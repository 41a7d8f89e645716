"""Stage ``evaluate``: measure the generator and three ways to sample its teacher."""

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor

from dsd.evaluation.memorisation import Observations, memorisation
from dsd.features.cache import FeatureCache, fingerprint
from dsd.model.checkpoint import load_denoiser, load_generator, read_spec
from dsd.model.generator import make_latents
from dsd.model.samplers import sample_teacher
from dsd.operators.gaussian_noise import GaussianNoise
from dsd.operators.operator import Operator
from dsd.selection.proximal import choose
from dsd.storage.image_store import ImageStore
from dsd.utils.files import write_json
from dsd.utils.images import to_uint8
from dsd.utils.random import derive_seed
from dsd.utils.shapes import Pixels
from pipeline.stage_io.context import StageContext
from pipeline.stage_io.inputs import open_images
from pipeline.stage_io.log import StageLog
from pipeline.stage_io.outputs import replaced_outputs
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import read_csv, write_csv
from pipeline.stages.evaluation_pictures import (
    LABELS,
    MODELS,
    denoised_images,
    draw_models,
    draw_neighbours,
    draw_progress,
)
from pipeline.stages.features import open_features
from pipeline.stages.measures import (
    EvaluationData,
    FeatureSpaceEvaluator,
    Measures,
    Measuring,
    published_statistics,
)

if TYPE_CHECKING:
    from pipeline.params.model import Params

__all__ = ["MODELS", "run"]


class Samples(NamedTuple):
    """Images of each model, and how often each evaluated its network for one image."""

    images: dict[str, Pixels]
    evaluations: dict[str, int]


def run(context: StageContext) -> None:
    """Sample, measure and draw; write ``reports/summary.json`` and ``reports/evaluate``."""
    with replaced_outputs(context.paths, "evaluate") as fresh:
        summary = _evaluate(context.params, fresh, context.log, context.execution.device())
    write_json(context.paths.summary, summary)
    for name in MODELS:
        context.log.say(_line(name, summary))


def _evaluate(
    params: "Params", paths: Paths, log: StageLog, device: torch.device
) -> dict[str, Any]:
    """Draw all pictures and tables; return the summary."""
    log.doing("reading the images")
    data = _data(params, paths, log)
    log.doing("drawing samples")
    samples = _sample(params, paths, data, device, log)
    images = samples.images["generator"]
    with Measuring(log, _images_to_measure(params, data)) as measuring:
        spaces = _spaces(params, paths, data, device, measuring)
        measuring.now("copies of training images")
        copies = memorisation(
            images,
            *(
                Observations.of_store(ImageStore.open(paths.artifact(f"corrupt/{part}")))
                for part in ("train", "heldout")  # as they were before 8 bits
            ),
            operator=data.operator,
            seed=params.seed,
            noise=data.noise,
        )
        log.say(f"copies of training images: {copies.verdict}")
        named = [spaces[name] for name in params.evaluate.features]
        summary = _summary(params, samples, data, named, measuring)
        # Names the generator to whoever has the weights, such as a model registry.
        generator = read_spec(paths.artifact("distill") / "generator")
        summary["generator"]["weights_sha256"] = generator.weights_sha256
        measuring.now("the choice of the generator")
        chosen_in = spaces[params.distill.selection.features]
        summary["selection"] = _selection(params, paths, chosen_in, named[0], images)
    summary["memorisation"] = copies.summary()
    log.doing("drawing the pictures")
    draw_models(paths, samples.images, data)
    draw_progress(paths, is_complex=data.is_complex)
    draw_neighbours(paths, images, copies, data)
    return summary


def _images_to_measure(params: "Params", data: EvaluationData) -> int:
    """Images whose features all measures need, about."""
    drawn, clean = len(MODELS) * params.evaluate.num_samples, data.clean
    noisy = len({*params.evaluate.features, params.distill.selection.features})
    compared = len({*params.evaluate.features} - {"teacher"}) * (clean is not None)
    return noisy * (len(data.noisy) + drawn) + compared * (
        drawn + (0 if clean is None else len(clean))
    )


def _spaces(
    params: "Params",
    paths: Paths,
    data: EvaluationData,
    device: torch.device,
    measuring: Measuring,
) -> dict[str, FeatureSpaceEvaluator]:
    """All feature spaces by name, that in which the generator was chosen among them."""
    cache, published = FeatureCache(paths.features), published_statistics(params)
    spaces = {}
    for name in dict.fromkeys((*params.evaluate.features, params.distill.selection.features)):
        measuring.now(f"the data ({name})")
        extractor = open_features(name, params, paths, data.sigma, device)
        spaces[name] = FeatureSpaceEvaluator(
            extractor, data, params, cache, published, measuring.add
        )
    return spaces


def _data(params: "Params", paths: Paths, log: StageLog) -> EvaluationData:
    noisy = open_images(paths, "corrupt/train", log)
    heldout = open_images(paths, "corrupt/heldout", log)
    clean = None
    if params.data.content == "clean":
        clean = to_uint8(open_images(paths, "prepare", log).all())
    return EvaluationData(
        clean,
        to_uint8(noisy.all()),
        noisy.sigma,
        noisy.index,
        to_uint8(heldout.all()),
        heldout.sigma,
        Operator.of_store(noisy.meta.info),
        GaussianNoise.of_store(noisy.meta.info),
        noisy.noise_levels,
        heldout.noise_levels,
        noisy.is_complex,
    )


def _sample(
    params: "Params", paths: Paths, data: EvaluationData, device: torch.device, log: StageLog
) -> Samples:
    """Draw from generator and teacher, from the same latents."""
    generator = load_generator(paths.artifact("distill") / "generator", device)
    teacher = load_denoiser(paths.artifact("pretrain"), device)
    count, seed = params.evaluate.num_samples, derive_seed(params.seed, "evaluation latents")
    denoised = denoised_images(paths, teacher, device)
    latents, latents_teacher = (
        make_latents(count, shape, seed=seed)
        for shape in (generator.shape, data.operator.observed_shape)
    )
    sigma_y = float(data.sigma.max())
    parts: dict[str, list[Pixels]] = {name: [] for name in MODELS}
    evaluations = {"generator": 1}
    seconds = {"generator": 0.0, "teacher": 0.0}
    done = 0
    with log.progress(count) as progress, torch.inference_mode():
        size = params.run.eval_batch_size
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
            for name, (images, calls) in {
                "teacher_full": (drawn.full, drawn.evaluations_full),
                "teacher_truncated": (drawn.truncated, drawn.evaluations_truncated),
                "teacher_truncated_exact": (
                    drawn.truncated_exact,
                    drawn.evaluations_truncated_exact,
                ),
            }.items():
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
    parts["denoised"] = [denoised]
    return Samples({name: torch.cat(images) for name, images in parts.items()}, evaluations)


def _summary(
    params: "Params",
    samples: Samples,
    data: EvaluationData,
    spaces: list[FeatureSpaceEvaluator],
    measuring: Measuring,
) -> dict[str, Any]:
    """All distances; those in the first feature space stand at the top of each model."""
    summary: dict[str, Any] = {}
    for name in MODELS:
        images, operator = samples.images[name], data.remaining_operator(name)
        by_features = {}
        for space in spaces:
            measuring.now(f"{LABELS[name]} ({space.name})")
            by_features[space.name] = space.measures(images, operator)
        summary[name] = {
            **_main_distances(by_features[spaces[0].name]),
            "evaluations": samples.evaluations[name],
            "by_features": by_features,
        }
    measuring.now(LABELS["noisy_data"])
    noisy = {space.name: space.measures_of_noisy() for space in spaces}
    summary["noisy_data"] = {**_main_distances(noisy[spaces[0].name]), "by_features": noisy}
    summary["protocol"] = _protocol(params, data, spaces)
    return summary


def _main_distances(measures: Measures) -> Measures:
    return {name: measures[name] for name in ("frechet", "proximal_frechet") if name in measures}


def _protocol(
    params: "Params", data: EvaluationData, spaces: list[FeatureSpaceEvaluator]
) -> dict[str, object]:
    """All that must be equal for two numbers to be comparable."""
    published = params.evaluate.published_statistics
    digest = published and hashlib.sha256(published[1].read_bytes()).hexdigest()
    return {
        **({"published_sha256": digest} if digest else {}),
        "features": spaces[0].name,
        "extractors": {space.name: space.protocol for space in spaces},
        "pixels": "clamped to [-1, 1], 8 bit; re-noised images and noisy references likewise",
        "num_samples": params.evaluate.num_samples,
        "num_clean": None if data.clean is None else len(data.clean),
        "num_noisy": len(data.noisy),
        "clean_sha256": None if data.clean is None else fingerprint(data.clean),
        "noisy_sha256": fingerprint(data.noisy),
        "seed": params.seed,
        "sigma": params.corrupt.sigma,
        "sigma_hat": _as_written(data.sigma.max()),
        "operator": data.operator.choice.model_dump(),
        "notes": {space.name: list(space.notes) for space in spaces},
        "without_frechet": _without_frechet(data),
    }


def _as_written(level: Tensor) -> float:
    """The shortest decimal that float32 stores alike: 0.2, not 0.20000000298."""
    return float(str(np.float32(level.item())))


def _without_frechet(data: EvaluationData) -> str | None:
    """Why a distance to clean images is missing, where one is."""
    if data.clean is None:
        return "there are no clean images to measure against"
    if data.operator.observed_shape != data.operator.shape:
        return "noisy data and teachers' images are smaller than clean ones"
    return None


class _Checkpoint(NamedTuple):
    """Distances of the generator at one time of the distillation."""

    images: int
    heldout_proximal_frechet: float
    """To the held-out noisy images; by it the generator was chosen."""

    heldout_proximal_frechet_standard_error: float

    frechet: float | None
    """To the clean images."""


def _selection(
    params: "Params",
    paths: Paths,
    ruler: FeatureSpaceEvaluator,
    space: FeatureSpaceEvaluator,
    images: Pixels,
) -> dict[str, object]:
    """How the generator was chosen, and how right that was.

    The chosen checkpoint's distance is the least of many, so it is measured again, with other
    latents and noise. Where there are clean images, which took no part in the choice, the distance
    to them says what the choice cost: the chosen generator's beside the last one's and the least
    of all, the oracle's.

    Args:
        params: All parameters.
        paths: The workspace.
        ruler: The space in which the generator was chosen.
        space: The space of the distances to clean images.
        images: Of the chosen generator.
    """
    artifact = paths.artifact("distill")
    found = [_checkpoint(artifact, row, space) for row in read_csv(artifact / "trajectory.csv")]
    write_csv(paths.report("evaluate") / "selection.csv", list(_Checkpoint._fields), found)
    again = ruler.to_heldout(images[: params.distill.selection.num_samples])
    named = {
        "chosen": found[choose(*zip(*[one[1:3] for one in found], strict=True))],
        "last": found[-1],
    }
    if found[0].frechet is not None:
        named["oracle"] = min(found, key=lambda one: one.frechet or 0.0)
    return {
        "features": ruler.name,
        "checkpoints": len(found),
        **_agreement("spearman", found),
        **_agreement("spearman_later_half", found[len(found) // 2 :]),
        **{name: one._asdict() for name, one in named.items()},
        "again": {f"heldout_proximal_{name}": value for name, value in again.items()},
    }


def _checkpoint(
    artifact: Path, row: Mapping[str, str], space: FeatureSpaceEvaluator
) -> _Checkpoint:
    seen = int(row["images"])
    images = load_file(artifact / "trajectory" / f"{seen:09d}.safetensors")["images"]
    distance, error = (float(row[f"proximal_frechet{end}"]) for end in ("", "_standard_error"))
    return _Checkpoint(seen, distance, error, space.to_clean(images))


def _agreement(name: str, found: list[_Checkpoint]) -> dict[str, float]:
    """Rank correlation of both distances under ``name``; nothing where there is no order."""
    chosen_by = [one.heldout_proximal_frechet for one in found]
    clean = [one.frechet for one in found if one.frechet is not None]
    if len({*chosen_by}) < 2 or len({*clean}) < 2:
        return {}
    return {name: float(spearmanr(chosen_by, clean).statistic)}


def _line(name: str, summary: Mapping[str, Any]) -> str:
    values = summary[name]
    clean = "" if values["frechet"] is None else f"Frechet {values['frechet']:.4g}, "
    features = summary["protocol"]["features"]
    return f"{name}: {clean}Proximal Frechet {values['proximal_frechet']:.4g} ({features})"
