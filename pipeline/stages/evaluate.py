"""Stage ``evaluate``: measure the generator and three ways to sample its teacher."""

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor

from dsd.evaluation.memorisation import Memorisation, Observations, memorisation
from dsd.features.cache import FeatureCache, fingerprint
from dsd.model.checkpoint import load_denoiser, load_generator, read_spec
from dsd.model.generator import make_latents
from dsd.model.samplers import TeacherSamples, sample_teacher
from dsd.operators.operator import Operator
from dsd.selection.proximal import choose
from dsd.storage.image_store import ImageStore
from dsd.utils.files import write_json
from dsd.utils.images import save_grid, save_rows, to_uint8
from dsd.utils.random import derive_seed
from dsd.utils.shapes import Pixels, State
from pipeline.stage_io.context import StageContext
from pipeline.stage_io.inputs import open_images
from pipeline.stage_io.log import StageLog
from pipeline.stage_io.outputs import replaced_outputs
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import read_csv, write_csv
from pipeline.stages.features import open_features
from pipeline.stages.measures import Data, Measures, Space

if TYPE_CHECKING:
    from pipeline.params.model import Params

__all__ = ["run"]

NUM_SHOWN = 12
"""Images in a row of a picture."""

NUM_SAMPLED = 3 * NUM_SHOWN
"""Images in the picture of one model's."""

NUM_MOMENTS = 9
"""Moments of the distillation in the picture of its progress."""

SHOWN_PIXELS = 64
"""Width of an image in a picture, about."""

MODELS = ("generator", "teacher_full", "teacher_truncated", "teacher_truncated_exact")
"""What is measured, by its name in the summary."""

_MEMORISATION = (
    "verdict",
    "p_value",
    "matched_training",
    "by_chance",
    "recognised",
    "noticed_from",
    "repeated",
    "distinct",
)
"""What the summary says of copies; see :class:`dsd.evaluation.memorisation.Memorisation`."""

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
    """Draw all pictures and tables; the summary."""
    data = _data(params, paths, log)
    samples = _sample(params, paths, data, device, log)
    cache = FeatureCache(paths.features)
    by_name = {
        name: Space(open_features(name, params, paths, data.sigma, device), data, params, cache)
        for name in (*params.evaluate.features, params.distill.selection.features)
    }
    spaces = [by_name[name] for name in params.evaluate.features]
    copies = _memorisation(params, paths, samples.images["generator"], data.operator)
    log.say(f"copies of training images: {copies.verdict}")
    summary = _summary(params, samples, data, spaces)
    # Says which generator this is to whoever has the weights, such as a model registry.
    generator = read_spec(paths.artifact("distill") / "generator")
    summary["generator"]["weights_sha256"] = generator.weights_sha256
    ruler = by_name[params.distill.selection.features]
    summary["selection"] = _selection(params, paths, ruler, spaces[0], samples.images["generator"])
    summary["memorisation"] = {name: getattr(copies, name) for name in _MEMORISATION}
    _draw(paths, samples, data)
    _draw_progress(paths)
    _draw_neighbours(paths, samples.images["generator"], copies, data)
    return summary


def _data(params: "Params", paths: Paths, log: StageLog) -> Data:
    noisy = open_images(paths, "corrupt/train", log)
    heldout = open_images(paths, "corrupt/heldout", log)
    clean = None
    if params.data.content == "clean":
        clean = to_uint8(open_images(paths, "prepare", log).all())
    return Data(
        clean,
        to_uint8(noisy.all()),
        noisy.sigma,
        noisy.index,
        to_uint8(heldout.all()),
        heldout.sigma,
        Operator.of_store(noisy.meta.info),
    )


def _sample(
    params: "Params", paths: Paths, data: Data, device: torch.device, log: StageLog
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


def _summary(
    params: "Params", samples: Samples, data: Data, spaces: list[Space]
) -> dict[str, Any]:
    """All distances; those in the first feature space stand at the top of each model."""
    summary: dict[str, Any] = {}
    for name in MODELS:
        images = samples.images[name]
        by_features = {
            space.name: space.measures(images, data.left_to_observe(name)) for space in spaces
        }
        summary[name] = {
            **_main_distances(by_features[spaces[0].name]),
            "evaluations": samples.evaluations[name],
            "by_features": by_features,
        }
    noisy = {space.name: space.measures_of_noisy() for space in spaces}
    summary["noisy_data"] = {**_main_distances(noisy[spaces[0].name]), "by_features": noisy}
    summary["protocol"] = _protocol(params, data, spaces)
    return summary


def _main_distances(measures: Measures) -> Measures:
    return {name: measures[name] for name in ("frechet", "proximal_frechet") if name in measures}


def _protocol(params: "Params", data: Data, spaces: list[Space]) -> dict[str, object]:
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


def _without_frechet(data: Data) -> str | None:
    """Why a distance to clean images is missing, where one is."""
    if data.clean is None:
        return "there are no clean images to measure against"
    if data.operator.observed_shape != data.operator.shape:
        return "noisy data and teachers' images are smaller than clean ones"
    return None


def _selection(
    params: "Params", paths: Paths, ruler: Space, space: Space, images: Pixels
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
    moments = [_moment(artifact, row, space) for row in read_csv(artifact / "trajectory.csv")]
    write_csv(paths.report("evaluate") / "selection.csv", list(_Moment._fields), moments)
    again = ruler.to_heldout(images[: params.distill.selection.num_samples])
    named = {
        "chosen": moments[choose(*zip(*[moment[1:3] for moment in moments], strict=True))],
        "last": moments[-1],
    }
    if moments[0].frechet is not None:
        named["oracle"] = min(moments, key=lambda moment: moment.frechet or 0.0)
    return {
        "features": ruler.name,
        "checkpoints": len(moments),
        **_agreement("spearman", moments),
        **_agreement("spearman_later_half", moments[len(moments) // 2 :]),
        **{name: moment._asdict() for name, moment in named.items()},
        "again": {f"heldout_proximal_{name}": value for name, value in again.items()},
    }


class _Moment(NamedTuple):
    """The generator at one moment of the distillation."""

    images: int
    heldout_proximal_frechet: float
    """To the held-out noisy images; by it the generator was chosen."""

    heldout_proximal_frechet_standard_error: float

    frechet: float | None
    """To the clean images."""


def _moment(artifact: Path, row: Mapping[str, str], space: Space) -> _Moment:
    seen = int(row["images"])
    images = load_file(artifact / "trajectory" / f"{seen:09d}.safetensors")["images"]
    distance, error = (float(row[f"proximal_frechet{end}"]) for end in ("", "_standard_error"))
    return _Moment(seen, distance, error, space.to_clean(images))


def _agreement(name: str, moments: list[_Moment]) -> dict[str, float]:
    """Rank correlation of both distances under ``name``; nothing where there is no order."""
    chosen_by = [moment.heldout_proximal_frechet for moment in moments]
    clean = [moment.frechet for moment in moments if moment.frechet is not None]
    if len({*chosen_by}) < 2 or len({*clean}) < 2:
        return {}
    return {name: float(spearmanr(chosen_by, clean).statistic)}


def _memorisation(
    params: "Params", paths: Paths, images: Pixels, operator: Operator
) -> Memorisation:
    """Search for copies of training images, with the observations as they were before 8 bits."""
    training, heldout = (
        Observations.of_store(ImageStore.open(paths.artifact(f"corrupt/{part}")))
        for part in ("train", "heldout")
    )
    return memorisation(images, training, heldout, operator=operator, seed=params.seed)


def _draw(paths: Paths, samples: Samples, data: Data) -> None:
    """Save data above each model's images of the same latents; and more of each model's.

    Each noisy image stands below the clean one that it shows.
    """
    rows = {"noisy_data": data.noisy[:NUM_SHOWN]}
    rows |= {name: samples.images[name][:NUM_SHOWN] for name in reversed(MODELS)}
    if data.clean is not None:
        rows["clean_data"] = data.clean[data.numbers[:NUM_SHOWN]]
    labelled = {label: rows[name] for name, label in LABELS.items() if name in rows}
    folder = paths.report("evaluate")
    save_rows(labelled, folder / "comparison.png")
    for name in MODELS:
        images = samples.images[name][:NUM_SAMPLED]
        zoom = max(1, SHOWN_PIXELS // images.shape[-1])
        save_grid(images, folder / "samples" / f"{name}.png", columns=NUM_SHOWN, zoom=zoom)


def _draw_progress(paths: Paths) -> None:
    """Save what the generator made of the same latents, at a few moments of the distillation."""
    files = sorted((paths.artifact("distill") / "trajectory").glob("*.safetensors"))
    shown = np.linspace(0, len(files) - 1, min(NUM_MOMENTS, len(files))).round().astype(int)
    rows = {f"{int(files[at].stem):,} images": _first_images(files[at]) for at in shown}
    save_rows(rows, paths.report("evaluate") / "progress.png")


def _draw_neighbours(paths: Paths, images: Pixels, copies: Memorisation, data: Data) -> None:
    """Save the generated images that match an observation best, above their best training ones."""
    shown = copies.most_suspicious(NUM_SHOWN)
    nearest = copies.nearest[shown]
    rows = {"one step": images[shown], "nearest noisy": data.noisy[nearest]}
    if data.clean is not None:
        rows["the same, clean"] = data.clean[data.numbers[nearest]]
    save_rows(rows, paths.report("evaluate") / "neighbours.png")


def _first_images(file: Path) -> Pixels:
    """The images of the first latents at one moment."""
    with safe_open(file, framework="pt") as stored:
        images: Pixels = stored.get_slice("images")[:NUM_SHOWN]
    return images


def _line(name: str, summary: Mapping[str, Any]) -> str:
    values = summary[name]
    clean = "" if values["frechet"] is None else f"Frechet {values['frechet']:.4g}, "
    features = summary["protocol"]["features"]
    return f"{name}: {clean}Proximal Frechet {values['proximal_frechet']:.4g} ({features})"
