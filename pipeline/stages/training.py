"""What the stages ``pretrain`` and ``distill`` do alike around the steps of a training."""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar, final

from pydantic import BaseModel
from torch import nn, optim

from dsd.model.units import ImageUnits
from dsd.storage.image_store import ImageStore
from dsd.training.loss_meter import BinnedMean
from dsd.training.memory import DryRunnable
from dsd.training.nonfinite import NonFiniteMonitor, StepOutput
from dsd.training.state import TrainingState
from dsd.utils.images import save_grid
from dsd.utils.shapes import Pixels
from pipeline.stage_io.context import Attempt

__all__ = [
    "GRID_IMAGES",
    "History",
    "TrainingLoop",
    "units_of",
]

GRID_IMAGES, _GRID_COLUMNS = 32, 8

T = TypeVar("T")
RecordT = TypeVar("RecordT", bound=StepOutput, covariant=True)
HistoryT = TypeVar("HistoryT", bound="History")


def units_of(noisy: ImageStore) -> ImageUnits:
    """What the numbers of a model's images mean, from the noisy images that it learned from."""
    return ImageUnits(
        intensity=noisy.intensity,
        sigma=float(noisy.sigma.max()),
        is_complex=noisy.is_complex,
        suffix=str(noisy.meta.info.get("suffix", ".png")),
    )


def _nothing() -> Callable[[], None]:
    return lambda: None


class History(BaseModel):
    """Results of a training so far; saved with its state."""

    images_seen: int = 0


class _Training(DryRunnable, Protocol[RecordT]):
    """A training of the library."""

    step: int

    @property
    def num_steps(self) -> int: ...

    def steps(self) -> Iterator[RecordT]: ...


@final
class TrainingLoop(Generic[RecordT, HistoryT]):
    """A training that is verified, metered, saved and resumed.

    All processes have the same of everything; the main one writes it.

    Args:
        training: The training, at its first step.
        history: Of a training that begins.
        modules: Modules whose weights belong to the state, by name.
        optimizers: Optimizers whose moments belong to the state.
        attempt: Device, processes and saved states.
    """

    def __init__(
        self,
        training: _Training[RecordT],
        history: HistoryT,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, optim.Optimizer],
        attempt: Attempt,
    ) -> None:
        self.meter = BinnedMean().to(attempt.device)
        self._training = training
        self._watch = NonFiniteMonitor(attempt.distributed)
        self._checkpoints = attempt.checkpoints(
            TrainingState({**modules, "meter": self.meter}, optimizers)
        )
        self.folder = self._checkpoints.folder
        saved = self._checkpoints.restore()
        self.history = history if saved is None else type(history).model_validate(saved)
        training.step = self.history.images_seen // training.batch_size
        attempt.choose_micro_batch_size(training)

    @property
    def total_images(self) -> int:
        """Images of the whole training."""
        return self._training.num_steps * self._training.batch_size

    def records(self, saving: Callable[[], Callable[[], None]] = _nothing) -> Iterator[RecordT]:
        """Run all steps; after each verify it, let the caller act, and save where that is due.

        Args:
            saving: Called before each save; what it returns is called when the state is on the
                disk, maybe some steps later and by another thread.
        """
        for record in self._training.steps():
            self._watch.check(record)
            self.history.images_seen = record.images_seen
            yield record
            if self._checkpoints.should_save():
                self._watch.flush()
                self._checkpoints.save(self.history.model_dump(mode="json"), saving())
                self._checkpoints.raise_if_stopping(self.history.images_seen)

    def save(self) -> None:
        """Save state and history, and wait until they are on the disk."""
        self._checkpoints.save(self.history.model_dump(mode="json"))
        self._checkpoints.wait()

    def is_due(self, interval: int) -> bool:
        """Whether the last step is one of every ``interval``, or the end."""
        step = self._training.step
        return step % interval == 0 or step == self._training.num_steps

    def read(self, curve: list[tuple[int, str, float]]) -> float:
        """Return the mean since the last reading; add those by noise level to ``curve``."""
        self._watch.flush()
        reading = self.meter.read()
        seen = self.history.images_seen
        curve += [(seen, *item) for item in reading.by_level.items()]
        return reading.mean

    def on_main_process(self, work: Callable[[], T]) -> T | None:
        """Do ``work`` with images in the main process, after all steps were verified."""
        self._watch.flush()
        return self._watch.on_main_process(work, self.history.images_seen)

    def save_pictures(self, images: Pixels, kind: str = "pictures", *, is_complex: bool) -> None:
        """Save a grid of the first images in the folder ``kind``, named by the images seen."""
        target = self.folder / kind / f"{self.history.images_seen:09d}.png"
        zoom = max(1, 64 // images.shape[-1])
        save_grid(
            images[:GRID_IMAGES].cpu(),
            target,
            columns=_GRID_COLUMNS,
            zoom=zoom,
            is_complex=is_complex,
        )
