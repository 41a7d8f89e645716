"""Stage ``pretrain``: fit the teacher denoiser to the noisy images, which are all it reads."""

from typing import TYPE_CHECKING, final

import torch
from pydantic import Field

from dsd.model.checkpoint import build_denoiser, save_model
from dsd.model.denoiser import AnyDenoiser, with_view
from dsd.model.samplers import sample_teacher
from dsd.operators.gaussian_noise import GaussianNoise
from dsd.operators.operator import Operator
from dsd.pretraining.trainer import TeacherTraining
from dsd.storage.image_store import ImageStore
from dsd.utils.errors import ParamsError
from dsd.utils.files import copy_files
from dsd.utils.images import to_uint8
from dsd.utils.philox import noise_of
from dsd.utils.random import derive_seed
from pipeline.stage_io.context import Attempt, StageContext
from pipeline.stage_io.inputs import open_images
from pipeline.stage_io.log import StageLog
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import write_csv
from pipeline.stages import training

if TYPE_CHECKING:
    from pipeline.params.model import Params

__all__ = ["run"]

NUM_READINGS = 100
"""Points of the loss curve."""

NUM_DENOISED = 20
"""Pictures of denoised observations."""

_LEAST_LEVEL = 1e-3
"""At which an observation without noise is denoised: there is no level 0."""


class History(training.History):
    """Curves of the training so far."""

    loss: list[tuple[int, float]] = Field(default_factory=list)
    loss_by_level: list[tuple[int, str, float]] = Field(default_factory=list)


def run(context: StageContext) -> None:
    """Fit the teacher on ``data/corrupt/train``; write ``data/`` and ``reports/pretrain``."""
    noisy = open_images(context.paths, "corrupt/train", context.log)

    def build(attempt: Attempt) -> _PretrainJob:
        return _PretrainJob(context.params, noisy, context.log, attempt)

    context.execution.train(build, {"data/corrupt/train": noisy.fingerprint})


@final
class _PretrainJob:
    """One teacher's training with its curves and pictures."""

    def __init__(
        self, params: "Params", noisy: ImageStore, log: StageLog, attempt: Attempt
    ) -> None:
        self._params = params
        self._log = log
        device = attempt.device
        self._operator = Operator.of_store(noisy.meta.info)
        self._shape = noisy.shape
        self._units = training.units_of(noisy)
        self._sigma = noisy.sigma.to(device)
        view = self._operator.stored_view(noisy.meta.info, noisy.index.numpy(), noisy.all())
        view = None if view is None else view.to(device)
        y, few = noisy.all().to(device), slice(training.GRID_IMAGES // 2)
        levels = self._sigma[few].clamp_min(_LEAST_LEVEL)
        self._observed = y[few], levels, None if view is None else view[few]
        self._training = TeacherTraining(
            _build(params, self._operator, GaussianNoise.of_store(noisy.meta.info)).to(device),
            y,
            noisy.noise_levels.to(device),
            params.pretrain,
            seed=params.seed,
            precision=attempt.precision,
            view=view,
            distributed=attempt.distributed,
            activation_checkpointing=params.compute.activation_checkpointing,
            compilation=attempt.compilation(),
        )
        self._loop = training.TrainingLoop(
            self._training,
            History(),
            {"net": self._training.denoiser, "ema": self._training.average},
            {"adam": self._training.optimizer},
            attempt,
        )
        self._history = self._loop.history
        for seen, loss in self._history.loss:  # a run that started again lacks them
            self._log.metrics(seen, {"loss": loss})

    def train(self) -> None:
        """Run all steps; save, measure and draw on the way."""
        config, loop = self._params.pretrain, self._loop
        reading = max(1, self._training.num_steps // NUM_READINGS)
        denoising = max(1, self._training.num_steps // NUM_DENOISED)
        drawing = max(1, round(config.sample_every_kimg * 1000 / config.batch_size))
        shown: dict[str, float] = {}
        self._log.doing("training")
        with self._log.progress(loop.total_images) as progress:
            for record in loop.records():
                loop.meter.add(record.loss, record.sigma)
                if loop.is_due(reading):
                    loss = loop.read(self._history.loss_by_level)
                    self._history.loss.append((record.images_seen, loss))
                    self._log.metrics(record.images_seen, {"loss": loss})
                    shown = {"loss": loss}
                progress.update(record.images_seen, **shown)
                if loop.is_due(drawing):
                    loop.on_main_process(self._draw)
                if loop.is_due(denoising):
                    loop.on_main_process(self._draw_denoised)

    def _draw(self) -> None:
        """Save images of the averaged teacher as it is now."""
        seed = derive_seed(self._params.seed, "pretrain pictures")
        indices = torch.arange(training.GRID_IMAGES).numpy()
        latents = torch.from_numpy(noise_of(seed, indices, self._shape)).to(self._sigma.device)
        with torch.inference_mode():  # not evaluate.sampler, a change of which must not retrain
            sigma_y = float(self._sigma.max())
            samples = sample_teacher(self._training.average, latents, sigma_y=sigma_y)
        shown = to_uint8(samples.truncated)
        self._loop.save_pictures(shown, is_complex=self._units.is_complex)

    def _draw_denoised(self) -> None:
        """Save the first observations, two rows above what the averaged teacher makes of them."""
        y, sigma, view = self._observed
        with torch.inference_mode():
            denoised = with_view(self._training.average, view)(y, sigma)
        shown = to_uint8(torch.cat([y, denoised]))
        self._loop.save_pictures(shown, "denoised", is_complex=self._units.is_complex)

    def write(self, paths: Paths) -> None:
        """Write the stage's outputs, which are empty folders."""
        self._loop.save()
        save_model(
            paths.artifact("pretrain"),
            self._training.average,
            network=self._params.network,
            operator=self._operator.choice,
            shape=self._shape,
            sigma_init=None,
            units=self._units,
        )
        report, history = paths.report("pretrain"), self._history
        write_csv(report / "loss.csv", ["images", "loss"], history.loss)
        write_csv(report / "loss_by_level.csv", ["images", "sigma", "loss"], history.loss_by_level)
        copy_files(self._loop.folder / "pictures", report / "samples")
        copy_files(self._loop.folder / "denoised", report / "denoised")


def _build(params: "Params", operator: Operator, noise: GaussianNoise) -> AnyDenoiser:
    seed = derive_seed(params.seed, "weights")
    try:
        return build_denoiser(
            params.network,
            operator.observed_shape,
            seed=seed,
            views=operator.views,
            noise=noise,
        )
    except ValueError as error:
        msg = f"{error}: run `python -m pipeline check`, which says what would fit"
        raise ParamsError(msg) from error
