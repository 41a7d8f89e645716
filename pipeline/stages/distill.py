"""Stage ``distill``: turn the teacher into a one-step generator; no clean image is read."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from pydantic import BaseModel, Field
from safetensors.torch import save

from dsd.distillation.trainer import Distillation
from dsd.model.checkpoint import load_denoiser, read_spec, save_model
from dsd.model.generator import make_latents
from dsd.operators.gaussian_noise import GaussianNoise
from dsd.operators.operator import Operator
from dsd.selection.proximal import ProximalReference, choose
from dsd.storage.image_store import ImageStore
from dsd.utils.errors import DataError
from dsd.utils.files import copy_files, published
from dsd.utils.images import to_uint8
from dsd.utils.random import derive_seed
from dsd.utils.shapes import Pixels
from pipeline.stage_io.context import Attempt, StageContext
from pipeline.stage_io.inputs import open_images
from pipeline.stage_io.log import StageLog
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import write_csv
from pipeline.stages import training
from pipeline.stages.features import open_features

if TYPE_CHECKING:
    from pipeline.params.model import Params

__all__ = ["run"]


class Measurement(BaseModel):
    """Metrics of the averaged generator at one checkpoint."""

    images_seen: int
    gap: float | None
    proximal_frechet: float
    proximal_frechet_standard_error: float


class History(training.History):
    """Measurements of the distillation so far."""

    measurements: list[Measurement] = Field(default_factory=list)
    gap_by_level: list[tuple[int, str, float]] = Field(default_factory=list)

    def ranked(self) -> list[Measurement]:
        """All measurements, that of the chosen generator first, the others by their distance."""
        chosen = self.measurements[
            choose(
                [item.proximal_frechet for item in self.measurements],
                [item.proximal_frechet_standard_error for item in self.measurements],
            )
        ]
        return sorted(
            self.measurements, key=lambda item: (item is not chosen, item.proximal_frechet)
        )


def run(context: StageContext) -> None:
    """Distil ``data/pretrain`` and write ``data/distill`` and ``reports/distill``."""
    params, paths, log = context.params, context.paths, context.log
    noisy = open_images(paths, "corrupt/train", log)
    given = _Inputs(noisy, open_images(paths, "corrupt/heldout", log), paths)
    given.check_teacher()

    def build(attempt: Attempt) -> _DistillJob:
        return _DistillJob(params, given, log, attempt)

    distillation = context.execution.train(build, given.fingerprints())
    best = distillation.history.ranked()[0]
    log.say(
        f"chose the generator after {best.images_seen:,} images, Proximal Frechet distance "
        f"{best.proximal_frechet:.4g} ({params.distill.selection.features})"
    )


@dataclass(frozen=True)
class _Inputs:
    """Images, and the workspace of the teacher."""

    train: ImageStore
    heldout: ImageStore
    paths: Paths

    @property
    def teacher(self) -> Path:
        """Folder of the teacher."""
        return self.paths.artifact("pretrain")

    @property
    def noise(self) -> GaussianNoise:
        """Distribution of the noise in the images."""
        return GaussianNoise.of_store(self.train.meta.info)

    def check_teacher(self) -> None:
        """Refuse a teacher of other images, as an imported one may be.

        Raises:
            DataError: Its shape, operator or noise is not that of the noisy images.
        """
        spec, ours = read_spec(self.teacher), Operator.of_store(self.train.meta.info)
        if (spec.shape, spec.operator) != (ours.observed_shape, ours.choice):
            shapes = [" x ".join(map(str, shape)) for shape in (spec.shape, ours.observed_shape)]
            msg = (
                f"{self.teacher}: a teacher of {shapes[0]} images ({spec.operator.kind}), but "
                f"data/corrupt has {shapes[1]} ({ours.choice.kind}). Train one for these images"
            )
            raise DataError(msg)
        if not load_denoiser(self.teacher).noise.same_as(self.noise):
            msg = (
                f"{self.teacher}: a teacher of noise with another spectrum than that of "
                "data/corrupt. Train one for these images"
            )
            raise DataError(msg)

    def fingerprints(self) -> dict[str, str]:
        """Hash of each folder."""
        return {
            "data/corrupt/train": self.train.fingerprint,
            "data/corrupt/heldout": self.heldout.fingerprint,
            "data/pretrain": read_spec(self.teacher).weights_sha256,
        }


def _proximal(params: "Params", given: _Inputs, device: torch.device) -> ProximalReference:
    """Proximal FID against the held-out noisy images, in the features chosen for selection."""
    heldout, name = given.heldout, params.distill.selection.features
    extractor = open_features(name, params, given.paths, given.train.sigma, device)
    return ProximalReference(
        to_uint8(heldout.all()),
        heldout.noise_levels,
        extractor,
        batch_size=params.run.eval_batch_size,
        seed=derive_seed(params.seed, "selection noise"),
        noise=given.noise,
    )


@final
class _DistillJob:
    """One distillation with its measurements and pictures; the main process alone measures."""

    def __init__(self, params: "Params", given: _Inputs, log: StageLog, attempt: Attempt) -> None:
        self._params = params
        self._log = log
        self._distributed = attempt.distributed
        device = attempt.device
        self._operator = Operator.of_store(given.train.meta.info)
        self._network = read_spec(given.teacher).network
        self._units = training.units_of(given.train)
        self._training = distillation = Distillation(
            load_denoiser(given.teacher, device),
            given.train.noise_levels.to(device),
            self._operator.shape,
            params.distill,
            params.pretrain,
            seed=params.seed,
            precision=attempt.precision,
            operator=self._operator,
            distributed=attempt.distributed,
            activation_checkpointing=params.compute.activation_checkpointing,
            compilation=attempt.compilation(),
        )
        self._proximal = (
            _proximal(params, given, device) if attempt.distributed.is_main_process else None
        )
        self._latents = make_latents(
            params.distill.selection.num_samples,
            self._operator.shape,
            seed=derive_seed(params.seed, "selection latents"),
        ).to(device)
        modules = {
            "net": distillation.generator,
            "fake": distillation.fake,
            "ema": distillation.average,
        }
        optimizers = {"adam": distillation.optimizer, "adam_fake": distillation.optimizer_fake}
        self._loop = training.TrainingLoop(distillation, History(), modules, optimizers, attempt)
        self.history = self._loop.history
        for measurement in self.history.measurements:  # a run that started again lacks them
            self._report(measurement)
        self._best_before = self._best() if self.history.measurements else set()
        self._checkpoints = self._loop.folder / "checkpoints"

    def train(self) -> None:
        """Run all steps; measure, choose, draw and save on the way."""
        config, loop = self._params.distill, self._loop
        measuring = max(1, round(config.selection.every_kimg * 1000 / config.batch_size))
        with self._log.progress(loop.total_images) as progress:
            if not self.history.measurements:
                self._measure()
            for record in loop.records(saving=self._worse):
                loop.meter.add(record.gap, record.sigma)
                if loop.is_due(measuring):
                    self._measure()
                proximal = self.history.measurements[-1].proximal_frechet
                progress.update(record.images_seen, proximal_frechet=proximal)

    def _measure(self) -> None:
        """Measure the averaged generator, and save it."""
        seen = self.history.images_seen
        self._log.doing(f"measuring the generator after {seen:,} images")
        gap = self._loop.read(self.history.gap_by_level) if seen else None
        judged = self._loop.on_main_process(self._judge)
        proximal, error = self._distributed.all_reduce_max(*(judged or (-math.inf, -math.inf)))
        measurement = Measurement(
            images_seen=seen,
            gap=gap,
            proximal_frechet=proximal,
            proximal_frechet_standard_error=error,
        )
        self.history.measurements.append(measurement)
        if self._distributed.is_main_process:
            self._keep_generator()
        self._report(measurement)
        self._log.doing("training")

    def _report(self, measurement: Measurement) -> None:
        values = measurement.model_dump(exclude={"images_seen"}, exclude_none=True)
        self._log.metrics(measurement.images_seen, values)

    def _judge(self) -> tuple[float, float]:
        """Proximal distance of the averaged generator's images, which are saved, and its error."""
        assert self._proximal is not None
        images = self._images()
        self._keep_images(images)
        found = self._proximal.estimate(images, operator=self._operator)
        return found.value, found.standard_error

    def _images(self) -> Pixels:
        """Images of the averaged generator from the fixed latents, as saved."""
        size = self._params.run.eval_batch_size
        average = self._training.average
        with torch.inference_mode():
            return torch.cat([to_uint8(average(z)) for z in self._latents.split(size)])

    def _keep_images(self, images: Pixels) -> None:
        """Save the images for the study of the trajectory, and a picture of the first of them."""
        target = (
            self._loop.folder / "trajectory" / f"{_name(self.history.images_seen)}.safetensors"
        )
        with published(target) as file:
            file.write(save({"images": images.cpu()}))
        self._loop.save_pictures(images, is_complex=self._units.is_complex)

    def _keep_generator(self) -> None:
        """Save the averaged generator."""
        save_model(
            self._checkpoints / _name(self.history.images_seen),
            self._training.average.denoiser,
            network=self._network,
            operator=self._operator.choice,
            shape=self._operator.shape,
            sigma_init=self._params.distill.sigma_init,
            units=self._units,
        )

    def _best(self) -> set[str]:
        """Names of the generators that are among the best now, and of the last one."""
        best = self.history.ranked()[: self._params.distill.selection.save_top_k]
        return {_name(item.images_seen) for item in (*best, self.history.measurements[-1])}

    def _removal(self, kept: set[str]) -> Callable[[], None]:
        """What removes all generators of now but these."""
        worse = [folder for folder in self._checkpoints.iterdir() if folder.name not in kept]
        return partial(_remove_all, worse)

    def _worse(self) -> Callable[[], None]:
        """What removes the generators that neither the next state nor the last one names.

        Only once two states say so: a GPU that measures again after an interruption may find other
        numbers, and then another one the best.
        """
        best, before = self._best(), self._best_before
        self._best_before = best
        writes = self._distributed.is_main_process
        return self._removal(best | before) if writes else partial(_remove_all, [])

    def write(self, paths: Paths) -> None:
        """Write the stage's outputs, which are empty folders."""
        artifact, report = paths.artifact("distill"), paths.report("distill")
        folder = self._loop.folder
        self._loop.save()
        self._removal(self._best())()
        chosen = self._checkpoints / _name(self.history.ranked()[0].images_seen)
        copy_files(chosen, artifact / "generator")
        header = ["images", "gap", "proximal_frechet", "proximal_frechet_standard_error"]
        rows = [tuple(item.model_dump().values()) for item in self.history.measurements]
        for place in (artifact, report):
            write_csv(place / "trajectory.csv", header, rows)
        write_csv(
            report / "gap_by_level.csv", ["images", "sigma", "gap"], self.history.gap_by_level
        )
        for kept in ("checkpoints", "trajectory"):
            copy_files(folder / kept, artifact / kept)
        copy_files(folder / "pictures", report / "samples")


def _remove_all(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder)


def _name(images_seen: int) -> str:
    """File name of a checkpoint; names sort by images seen."""
    return f"{images_seen:09d}"
