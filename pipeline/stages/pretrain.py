"""Stage ``pretrain``: fit the teacher denoiser to the noisy images, which are all it reads."""

from typing import TYPE_CHECKING, final

import torch
from pydantic import BaseModel

from dsd.model.checkpoint import build_denoiser, save_model
from dsd.model.denoiser import AnyDenoiser
from dsd.model.samplers import sample_teacher
from dsd.operators.operator import Operator
from dsd.pretraining.trainer import TeacherTraining
from dsd.storage.image_store import ImageStore
from dsd.training.loss_meter import LevelMeter
from dsd.training.nonfinite import HealthWatch
from dsd.training.state import TrainingState
from dsd.utils.errors import ParamsError
from dsd.utils.files import copy_files
from dsd.utils.images import save_grid, to_uint8
from dsd.utils.philox import noise_of
from dsd.utils.random import derive_seed
from pipeline.stage_io.context import Attempt, Checkpoints, StageContext
from pipeline.stage_io.inputs import open_images
from pipeline.stage_io.log import StageLog
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import write_csv

if TYPE_CHECKING:
    from pipeline.params.model import Params

__all__ = ["run"]

NUM_READINGS = 100
"""Points of the loss curve."""

GRID_IMAGES, GRID_COLUMNS = 32, 8


class History(BaseModel):
    """What the training has said so far; saved with its state."""

    images_seen: int = 0
    loss: list[tuple[int, float]] = []
    loss_by_level: list[tuple[int, str, float]] = []


def run(context: StageContext) -> None:
    """Fit the teacher on ``data/corrupt/train``; write ``data/`` and ``reports/pretrain``."""
    noisy = open_images(context.paths, "corrupt/train", context.log)

    def build(attempt: Attempt) -> _Fit:
        return _Fit(context.params, noisy, context.log, attempt)

    context.execution.train(build, {"data/corrupt/train": noisy.fingerprint})


@final
class _Fit:
    """One teacher's training with its curves, pictures and resumable state.

    All processes of a team have the same of everything; the one that leads writes it.
    """

    def __init__(
        self,
        params: "Params",
        noisy: ImageStore,
        log: StageLog,
        attempt: Attempt,
    ) -> None:
        self._params = params
        self._log = log
        device = attempt.device
        self._operator = Operator.of_store(noisy.meta.info)
        self._shape = noisy.shape
        self._sigma = noisy.sigma.to(device)
        denoiser = _build(params, self._operator).to(device)
        view = self._operator.stored_view(noisy.meta.info, noisy.index.numpy())
        self.training = TeacherTraining(
            denoiser,
            noisy.all().to(device),
            self._sigma,
            params.pretrain,
            seed=params.seed,
            precision=attempt.precision,
            view=None if view is None else view.to(device),
            team=attempt.team,
            activation_checkpointing=params.compute.activation_checkpointing,
        )
        self._watch = HealthWatch(attempt.team)
        self._meter = LevelMeter().to(device)
        self._history = History()
        self.state = self._resumed(attempt)
        attempt.fit_into_memory(self.training)

    def _resumed(self, attempt: Attempt) -> Checkpoints:
        training = self.training
        modules = {"net": training.denoiser, "ema": training.average, "meter": self._meter}
        state = attempt.checkpoints(TrainingState(modules, {"adam": training.optimizer}))
        saved = state.restore()
        if saved is not None:
            self._history = History.model_validate(saved)
            training.step = self._history.images_seen // self._params.pretrain.batch_size
            for seen, loss in self._history.loss:  # a run that began anew has not heard of them
                self._log.metrics(seen, {"loss": loss})
        return state

    def train(self) -> None:
        """Run all steps; save, measure and draw on the way."""
        training, config = self.training, self._params.pretrain
        reading = max(1, training.num_steps // NUM_READINGS)
        drawing = max(1, round(config.sample_every_kimg * 1000 / config.batch_size))
        with self._log.progress(training.num_steps * config.batch_size) as progress:
            for record in training.steps():
                self._watch.see(record)
                self._meter.add(record.loss, record.sigma)
                self._history.images_seen = record.images_seen
                if training.step % reading == 0 or training.step == training.num_steps:
                    progress.update(record.images_seen, loss=self._read())
                if training.step % drawing == 0 or training.step == training.num_steps:
                    self._watch.settle()
                    self._watch.by_leader(self._draw, record.images_seen)
                if self.state.due():
                    self._save()

    def _read(self) -> float:
        self._watch.settle()
        seen = self._history.images_seen
        reading = self._meter.read()
        self._history.loss.append((seen, reading.mean))
        self._history.loss_by_level += [(seen, *item) for item in reading.by_level.items()]
        self._log.metrics(seen, {"loss": reading.mean})
        return reading.mean

    def _save(self) -> None:
        self._watch.settle()
        self.state.save(self._history.model_dump(mode="json"))
        self.state.stop_if_asked(self._history.images_seen)

    def _draw(self) -> None:
        """Save images of the averaged teacher as it is now."""
        device = self._sigma.device
        seed = derive_seed(self._params.seed, "pretrain pictures")
        indices = torch.arange(GRID_IMAGES).numpy()
        latents = torch.from_numpy(noise_of(seed, indices, self._shape)).to(device)
        with torch.inference_mode():  # not evaluate.sampler, a change of which must not retrain
            sigma_y = float(self._sigma.max())
            samples = sample_teacher(self.training.average, latents, sigma_y=sigma_y)
        target = self.state.folder / "pictures" / f"{self._history.images_seen:09d}.png"
        zoom = max(1, 64 // self._shape[-1])
        save_grid(to_uint8(samples.truncated), target, columns=GRID_COLUMNS, zoom=zoom)

    def write(self, paths: Paths) -> None:
        """Write the stage's outputs, which are empty folders."""
        self.state.save(self._history.model_dump(mode="json"))
        save_model(
            paths.artifact("pretrain"),
            self.training.average,
            network=self._params.network,
            operator=self._operator.choice,
            shape=self._shape,
            sigma_init=None,
        )
        report = paths.report("pretrain")
        write_csv(report / "loss.csv", ["images", "loss"], self._history.loss)
        write_csv(
            report / "loss_by_level.csv", ["images", "sigma", "loss"], self._history.loss_by_level
        )
        copy_files(self.state.folder / "pictures", report / "samples")


def _build(params: "Params", operator: Operator) -> AnyDenoiser:
    seed = derive_seed(params.seed, "weights")
    try:
        return build_denoiser(
            params.network, operator.observed_shape, seed=seed, views=operator.views
        )
    except ValueError as error:
        msg = f"{error}: run `python -m pipeline check`, which says what would fit"
        raise ParamsError(msg) from error
