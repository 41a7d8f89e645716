"""Stage ``pretrain``: fit the teacher denoiser to the noisy images, which are all it reads."""

from pathlib import Path
from typing import final

import torch
from pydantic import BaseModel

from dsd.checkpoint import TrainingState, build_denoiser, save_model
from dsd.config import Churn, Params, Sampler
from dsd.corruption import noise_of
from dsd.errors import ParamsError
from dsd.files import copy_files
from dsd.images import save_grid, to_uint8
from dsd.imagestore import ImageStore
from dsd.operators import Operator
from dsd.precond import Denoiser
from dsd.samplers import sample_teacher
from dsd.seeds import derive_seed
from dsd.training.health import HealthWatch
from dsd.training.meter import LevelMeter
from dsd.training.pretrain import TeacherTraining
from dsd.training.team import Team
from pipeline.carrying_out import carry_out
from pipeline.compute import resolve_precision
from pipeline.origin import Origin
from pipeline.paths import Paths
from pipeline.resume import KEPT_BY_STATES, Resumable
from pipeline.stagelog import StageLog
from pipeline.stores import open_images
from pipeline.tables import write_csv
from pipeline.team import fit_into_memory

__all__ = ["POLLS_STOP", "run"]

POLLS_STOP = True

NUM_READINGS = 100
"""Points of the loss curve."""

GRID_IMAGES, GRID_COLUMNS = 32, 8

PICTURE_SAMPLER = Sampler(
    method="heun",
    num_steps=18,
    sigma_min=0.002,
    sigma_max=80.0,
    rho=7.0,
    churn=Churn(S_churn=0.0, S_min=0.0, S_max=80.0, S_noise=1.0),
)
"""EDM's, for the pictures: measuring with another sampler must not retrain the teacher."""


class History(BaseModel):
    """What the training has said so far; saved with its state."""

    images_seen: int = 0
    loss: list[tuple[int, float]] = []
    loss_by_level: list[tuple[int, str, float]] = []


def run(params: Params, paths: Paths, log: StageLog) -> None:
    """Fit the teacher on ``data/corrupt/train``; write ``data/`` and ``reports/pretrain``."""
    noisy = open_images(paths, "corrupt/train", log)

    def build(folder: Path, team: Team, device: torch.device) -> _Fit:
        return _Fit(params, folder, noisy, log, team, device)

    carry_out(
        build, paths, "pretrain", _origin(params, paths, noisy), params.compute,
        params.pretrain.batch_size, log,
    )  # fmt: skip


def _origin(params: Params, paths: Paths, noisy: ImageStore) -> Origin:
    """All that the result depends on."""
    wanted = params.model_dump(
        mode="json",
        include={"seed", "network", "pretrain", "compute"},
        exclude={"compute": KEPT_BY_STATES},
    )
    return Origin.here(paths.root, wanted, {"data/corrupt/train": noisy.fingerprint})


@final
class _Fit:
    """One teacher's training with its curves, pictures and resumable state.

    All processes of a team have the same of everything; the one that leads writes it.
    """

    def __init__(
        self,
        params: Params,
        folder: Path,
        noisy: ImageStore,
        log: StageLog,
        team: Team,
        device: torch.device,
    ) -> None:
        self._params = params
        self._team = team
        self._log = log
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
            precision=resolve_precision(params.compute, device),
            view=None if view is None else view.to(device),
            team=team,
            activation_checkpointing=params.compute.activation_checkpointing,
        )
        self._watch = HealthWatch(team)
        self._meter = LevelMeter().to(device)
        self._history = History()
        self.state = self._resumable(folder)
        log.say(fit_into_memory(self.training, team, params.compute, device))

    def _resumable(self, folder: Path) -> Resumable:
        training = self.training
        modules = {"net": training.denoiser, "ema": training.average, "meter": self._meter}
        state = Resumable(
            folder,
            TrainingState(modules, {"adam": training.optimizer}),
            minutes=self._params.compute.checkpoint_minutes,
            log=self._log,
            team=self._team,
        )
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
        with torch.inference_mode():
            samples = sample_teacher(
                self.training.average,
                latents,
                config=PICTURE_SAMPLER,
                sigma_y=float(self._sigma.max()),
            )
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


def _build(params: Params, operator: Operator) -> Denoiser:
    seed = derive_seed(params.seed, "weights")
    try:
        return build_denoiser(
            params.network, operator.observed_shape, seed=seed, views=operator.views
        )
    except ValueError as error:
        msg = f"{error}: run `python -m pipeline check`, which says what would fit"
        raise ParamsError(msg) from error
