"""Arguments of a stage: parameters, paths, a log, and the execution of a training.

Stages do not import devices, processes, locks or checkpoints, which decide no byte of a result, so
that their changes repeat no stage.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, final

from pydantic import JsonValue

from pipeline.stage_io.log import StageLog
from pipeline.stage_io.paths import Paths

# Not every stage needs torch, and none needs all sections of the parameters.
if TYPE_CHECKING:
    import torch

    from dsd.training.compiled import Compilation
    from dsd.training.distributed import DistributedContext
    from dsd.training.memory import DryRunnable
    from dsd.training.state import TrainingState
    from dsd.utils.config import Precision
    from pipeline.params.model import Params

__all__ = ["Attempt", "Checkpoints", "Execution", "StageContext", "TrainingJob"]


class Checkpoints(Protocol):
    """Saved states of one training run; files of the stage may lie beside them in ``folder``."""

    folder: Path

    def restore(self) -> dict[str, JsonValue] | None:
        """Bring back the last state and return its ``info``; None where there is none."""

    def save(self, info: Mapping[str, JsonValue], written: Callable[[], None] = ...) -> None:
        """Save the state as it is now, with ``info``; call ``written`` when it is on the disk."""

    def wait(self) -> None:
        """Wait until it is on the disk."""

    def should_save(self) -> bool:
        """Return whether it is time to save, because of the clock or of a signal."""

    def raise_if_stopping(self, images_seen: int) -> None:
        """Raise ``Interrupted`` if a signal came; call after :meth:`save`."""


class Attempt(Protocol):
    """One attempt at a training: its device, its processes and its saved states."""

    distributed: "DistributedContext"
    device: "torch.device"
    precision: "Precision"

    def checkpoints(self, state: "TrainingState") -> Checkpoints:
        """The saved states of this run."""

    def compilation(self) -> "Compilation | None":
        """What a training tells while it compiles; None if it is not compiled."""

    def choose_micro_batch_size(self, training: "DryRunnable") -> None:
        """Choose how many images the processes take at once."""


class TrainingJob(Protocol):
    """A stage's training, as one attempt runs it."""

    def train(self) -> None:
        """Run all steps that are left; all processes do."""

    def write(self, paths: Paths) -> None:
        """Write the stage's outputs into empty folders; only the main process does."""


JobT = TypeVar("JobT", bound=TrainingJob)


class Execution(Protocol):
    """Device and processes of a stage."""

    def device(self) -> "torch.device":
        """The device to compute on."""

    def train(self, build: Callable[[Attempt], JobT], inputs: Mapping[str, str]) -> JobT:
        """Train, write the outputs, and return the job.

        Args:
            build: Makes the job as the last saved state left it.
            inputs: Hash of each folder that the stage reads, by its name.
        """


@final
@dataclass(frozen=True)
class StageContext:
    """All that a stage is given."""

    params: "Params"
    paths: Paths
    log: StageLog
    execution: Execution
