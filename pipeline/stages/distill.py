"""Stage ``distill``: turn the teacher into a one-step generator; no clean image is read."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from pydantic import BaseModel
from safetensors.torch import save

from dsd.distillation.trainer import Distillation
from dsd.model.checkpoint import load_denoiser, read_spec, save_model
from dsd.model.generator import make_latents
from dsd.operators.operator import Operator
from dsd.selection.proximal import ProximalReference, choose
from dsd.storage.image_store import ImageStore
from dsd.training.loss_meter import LevelMeter
from dsd.training.nonfinite import HealthWatch
from dsd.training.state import TrainingState
from dsd.utils.files import copy_files, published
from dsd.utils.images import save_grid, to_uint8
from dsd.utils.random import derive_seed
from dsd.utils.shapes import Pixels
from pipeline.stage_io.context import Attempt, Checkpoints, StageContext
from pipeline.stage_io.inputs import open_images
from pipeline.stage_io.log import StageLog
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import write_csv
from pipeline.stages.features import open_features

if TYPE_CHECKING:
    from pipeline.params.model import Params

__all__ = ["run"]

GRID_IMAGES, GRID_COLUMNS = 32, 8


class Measurement(BaseModel):
    """The averaged generator at one moment of the distillation."""

    images_seen: int
    gap: float | None
    proximal_frechet: float
    proximal_frechet_standard_error: float


class History(BaseModel):
    """What the distillation has said so far; saved with its state."""

    images_seen: int = 0
    measurements: list[Measurement] = []
    gap_by_level: list[tuple[int, str, float]] = []

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
    given = _Given(
        open_images(paths, "corrupt/train", log),
        open_images(paths, "corrupt/heldout", log),
        paths,
    )

    def build(attempt: Attempt) -> _Run:
        return _Run(params, given, log, attempt)

    distillation = context.execution.train(build, given.fingerprints())
    best = distillation.history.ranked()[0]
    log.say(
        f"chose the generator after {best.images_seen:,} images, Proximal Frechet distance "
        f"{best.proximal_frechet:.4g} ({params.distill.selection.features})"
    )


@dataclass(frozen=True)
class _Given:
    """What the stage reads."""

    train: ImageStore
    heldout: ImageStore
    paths: Paths

    @property
    def teacher(self) -> Path:
        """Folder of the teacher."""
        return self.paths.artifact("pretrain")

    def fingerprints(self) -> dict[str, str]:
        """Hash of each folder."""
        return {
            "data/corrupt/train": self.train.fingerprint,
            "data/corrupt/heldout": self.heldout.fingerprint,
            "data/pretrain": read_spec(self.teacher).weights_sha256,
        }


def _proximal(params: "Params", given: _Given, device: torch.device) -> ProximalReference:
    """Proximal FID against the held-out noisy images, in the features chosen for selection."""
    heldout, name = given.heldout, params.distill.selection.features
    extractor = open_features(name, params, given.paths, given.train.sigma, device)
    return ProximalReference(
        to_uint8(heldout.all()),
        heldout.sigma,
        extractor,
        batch_size=params.run.eval_batch_size,
        seed=derive_seed(params.seed, "selection noise"),
    )


@final
class _Run:
    """One distillation with its measurements, pictures and resumable state.

    All processes of a team have the same of everything but the measure for choosing; the one that
    leads measures, and writes.
    """

    def __init__(
        self,
        params: "Params",
        given: _Given,
        log: StageLog,
        attempt: Attempt,
    ) -> None:
        self._params = params
        self._log = log
        self._team = team = attempt.team
        device = attempt.device
        self._operator = Operator.of_store(given.train.meta.info)
        self._network = read_spec(given.teacher).network
        self._training = Distillation(
            load_denoiser(given.teacher, device),
            given.train.sigma.to(device),
            self._operator.shape,
            params.distill,
            params.pretrain,
            seed=params.seed,
            precision=attempt.precision,
            operator=self._operator,
            team=team,
            activation_checkpointing=params.compute.activation_checkpointing,
        )
        self._proximal = _proximal(params, given, device) if team.leads else None
        self._watch = HealthWatch(team)
        self._meter = LevelMeter().to(device)
        self._latents = make_latents(
            params.distill.selection.num_samples,
            self._operator.shape,
            seed=derive_seed(params.seed, "selection latents"),
        ).to(device)
        self.history = History()
        self._best_before: set[str] = set()
        self.state = self._resumed(attempt)
        self._checkpoints = self.state.folder / "checkpoints"
        attempt.fit_into_memory(self._training)

    def _resumed(self, attempt: Attempt) -> Checkpoints:
        training = self._training
        modules = {
            "net": training.generator,
            "fake": training.fake,
            "ema": training.average,
            "meter": self._meter,
        }
        optimizers = {"adam": training.optimizer, "adam_fake": training.optimizer_fake}
        state = attempt.checkpoints(TrainingState(modules, optimizers))
        saved = state.restore()
        if saved is not None:
            self.history = History.model_validate(saved)
            training.step = self.history.images_seen // self._params.distill.batch_size
            for measurement in self.history.measurements:
                self._tell(measurement)  # a run that began anew has not heard of it
            self._best_before = self._best()
        return state

    def train(self) -> None:
        """Run all steps; measure, choose, draw and save on the way."""
        training, config = self._training, self._params.distill
        measuring = max(1, round(config.selection.every_kimg * 1000 / config.batch_size))
        with self._log.progress(training.num_steps * config.batch_size) as progress:
            if not self.history.measurements:
                self._measure()
            for record in training.steps():
                self._watch.see(record)
                self._meter.add(record.gap, record.sigma)
                self.history.images_seen = record.images_seen
                if training.step % measuring == 0 or training.step == training.num_steps:
                    self._measure()
                proximal = self.history.measurements[-1].proximal_frechet
                progress.update(record.images_seen, proximal_frechet=proximal)
                if self.state.due():
                    self._save()

    def _measure(self) -> None:
        """Measure the averaged generator, and keep it for as long as it is one of the best."""
        self._watch.settle()
        seen = self.history.images_seen
        gap = self._read_gap() if seen else None
        judged = self._watch.by_leader(self._judge, seen)
        proximal, error = self._team.largest(*(judged or (-math.inf, -math.inf)))
        measurement = Measurement(
            images_seen=seen,
            gap=gap,
            proximal_frechet=proximal,
            proximal_frechet_standard_error=error,
        )
        self.history.measurements.append(measurement)
        if self._team.leads:
            self._keep_generator()
        self._tell(measurement)

    def _tell(self, measurement: Measurement) -> None:
        values = measurement.model_dump(exclude={"images_seen"}, exclude_none=True)
        self._log.metrics(measurement.images_seen, values)

    def _judge(self) -> tuple[float, float]:
        """Proximal distance of the averaged generator's images, which are kept, and its error."""
        assert self._proximal is not None
        images = self._images()
        self._keep_images(images)
        found = self._proximal.estimate(images, operator=self._operator)
        return found.value, found.standard_error

    def _read_gap(self) -> float:
        seen = self.history.images_seen
        reading = self._meter.read()
        self.history.gap_by_level += [(seen, *item) for item in reading.by_level.items()]
        return reading.mean

    def _images(self) -> Pixels:
        """What the averaged generator makes of the fixed latents, as saved."""
        size = self._params.run.eval_batch_size
        average = self._training.average
        with torch.inference_mode():
            return torch.cat([to_uint8(average(z)) for z in self._latents.split(size)])

    def _keep_images(self, images: Pixels) -> None:
        """Keep the images for the study of the trajectory, and show the first of them."""
        name = _moment(self.history.images_seen)
        with published(self.state.folder / "trajectory" / f"{name}.safetensors") as file:
            file.write(save({"images": images.cpu()}))
        picture = self.state.folder / "pictures" / f"{name}.png"
        zoom = max(1, 64 // images.shape[-1])
        save_grid(images[:GRID_IMAGES].cpu(), picture, columns=GRID_COLUMNS, zoom=zoom)

    def _keep_generator(self) -> None:
        """Save the averaged generator."""
        save_model(
            self._checkpoints / _moment(self.history.images_seen),
            self._training.average.denoiser,
            network=self._network,
            operator=self._operator.choice,
            shape=self._operator.shape,
            sigma_init=self._params.distill.sigma_init,
        )

    def _best(self) -> set[str]:
        """Names of the generators that are among the best now, and of the last one."""
        best = self.history.ranked()[: self._params.distill.selection.save_top_k]
        return {_moment(item.images_seen) for item in (*best, self.history.measurements[-1])}

    def _remove_generators(self, kept: set[str]) -> None:
        """Remove all generators but these.

        Only once two states say so: a GPU that measures again after an interruption may find other
        numbers, and then another one the best.
        """
        for checkpoint in self._checkpoints.iterdir():
            if checkpoint.name not in kept:
                shutil.rmtree(checkpoint)

    def _save(self) -> None:
        self._watch.settle()
        self.state.save(self.history.model_dump(mode="json"))
        best = self._best()
        if self._team.leads:
            self._remove_generators(best | self._best_before)
        self._best_before = best
        self.state.stop_if_asked(self.history.images_seen)

    def write(self, paths: Paths) -> None:
        """Write the stage's outputs, which are empty folders."""
        artifact, report = paths.artifact("distill"), paths.report("distill")
        folder = self.state.folder
        self.state.save(self.history.model_dump(mode="json"))
        self._remove_generators(self._best())
        chosen = self._checkpoints / _moment(self.history.ranked()[0].images_seen)
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


def _moment(images_seen: int) -> str:
    """Name of what belongs to one moment of the distillation; in order of time."""
    return f"{images_seen:09d}"
