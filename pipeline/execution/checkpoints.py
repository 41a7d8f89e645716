"""Saved states of training runs, retries, and who may continue a run.

A state lies outside DVC's outputs (DVC deletes those before each run), in a folder named by a
fingerprint of everything the result depends on: parameters, inputs and code. The same command
therefore continues exactly the run that was interrupted and never one with other parameters. The
folder is deleted when a later stage begins: only then has DVC recorded that this one is done.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar, final

from pydantic import JsonValue
from torch import Tensor

from dsd.training.distributed import DistributedContext
from dsd.training.state import TrainingState, read_info, write_state
from dsd.utils.errors import DataError, Interrupted, NonFiniteError
from dsd.utils.files import published
from pipeline.execution.locks import BusyError, exclusive
from pipeline.execution.origin import Origin
from pipeline.stage_io.log import StageLog

__all__ = [
    "CheckpointManager",
    "StateWriter",
    "begin",
    "lock_run_dir",
    "mark_finished",
    "remove_finished",
    "remove_superseded",
    "retry_on_nonfinite",
]

T = TypeVar("T")

_NEWEST, _LAST, _BEFORE = "newest", "state", "state-before"
_STATES = (_NEWEST, _LAST, _BEFORE)
"""States of one run, newest first; the first exists only between two renamings."""

_DONE = "done"
"""File in a run's folder that names the workspace which has its results."""


@contextmanager
def lock_run_dir(folder: Path, distributed: DistributedContext) -> Iterator[Path]:
    """Lock the folder of a run for the processes of ``distributed``, and yield it.

    Raises:
        BusyError: Another process computes the same; the message says which.
    """
    purpose = f"a training with the same parameters and images (its state is {folder})"
    with exclusive(_lock_of(folder), purpose) if distributed.is_main_process else nullcontext():
        yield folder


def remove_finished(states: Path, root: Path, *, but: str = "") -> None:
    """Delete the states of finished trainings, once DVC has recorded their results.

    Args:
        states: Folder of a stage's states.
        root: Workspace of the trainings; those of deleted workspaces are included.
        but: Name of a run whose state stays.
    """
    for note in states.glob(f"*/{_DONE}"):
        # Another experiment of this project may do the same now.
        with suppress(FileNotFoundError, BusyError):
            folder, owner = note.parent, Path(note.read_text(encoding="utf-8"))
            if folder.name != but and (owner == root.resolve() or not owner.exists()):
                with exclusive(_lock_of(folder), "a training"):
                    _remove(folder)


def begin(folder: Path, origin: Origin, log: StageLog) -> None:
    """Record what a training depends on, and log if it leaves another one unfinished.

    Raises:
        OSError: The disk refuses.
    """
    origin.write(folder)
    others = _unfinished(folder, origin)
    if not others or any((folder / name).exists() for name in _STATES):
        return
    other, earlier = max(others.items(), key=lambda item: (item[0] / _LAST).stat().st_mtime)
    goes = "it is deleted when this run is done" if _same_command(origin, earlier) else "it stays"
    log.say(
        f"starts from the beginning: a run that was stopped {_how_far(other, earlier)} is not "
        f"continued, because {origin.changes_since(earlier)}. To continue that one, undo the "
        f"change and run the same command; its state is {other}, and {goes}"
    )


def mark_finished(folder: Path, root: Path) -> None:
    """Record that a run is complete, with results in ``root``; see :func:`remove_finished`."""
    with published(folder / _DONE) as note:
        note.write(bytes(root.resolve()))


def remove_superseded(folder: Path, origin: Origin) -> None:
    """Delete unfinished states of this workspace with the parameters of a finished run.

    They had other code or images. States of other parameters stay: setting these again continues
    them.
    """
    for other, earlier in _unfinished(folder, origin).items():
        if _same_command(origin, earlier):
            with suppress(BusyError), exclusive(_lock_of(other), "a training"):
                _remove(other)


def _unfinished(folder: Path, origin: Origin) -> dict[Path, Origin]:
    """Folders of other unfinished trainings of the same stage and workspace."""
    found = {other.parent: Origin.read(other.parent) for other in folder.parent.glob(f"*/{_LAST}")}
    return {
        other: earlier
        for other, earlier in found.items()
        if earlier is not None
        and earlier.workspace == origin.workspace
        and other.name != folder.name
        and not (other / _DONE).exists()
    }


def _same_command(origin: Origin, earlier: Origin) -> bool:
    return origin.parameters == earlier.parameters


def _how_far(folder: Path, origin: Origin) -> str:
    """Progress of the training whose states are in ``folder``, in words."""
    section = origin.parameters.get(folder.parent.name)
    total = section.get("kimg") if isinstance(section, dict) else None
    with suppress(OSError, DataError):
        seen = read_info(folder / _LAST).get("images_seen")
        if isinstance(seen, int) and isinstance(total, int | float):
            return f"after {seen:,} of {1000 * total:,.0f} images"
    return "half-way"


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _remove(folder: Path) -> None:
    # First the states: after a kill in between, a run must not continue without its other files.
    for name in _STATES:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def retry_on_nonfinite(attempt: Callable[[], T], max_retries: int, log: StageLog) -> T:
    """Return the result of ``attempt``, repeated from the last checkpoint on a non-finite value.

    Nothing is changed from one attempt to the next: a hardware fault does not repeat, and leaves
    no trace in the result.

    Raises:
        NonFiniteError: All attempts failed; the message is a diagnosis.
    """
    steps: list[int | None] = []
    while True:
        try:
            return attempt()
        except NonFiniteError as error:
            steps.append(error.images_seen)
            log.nonfinite_failures(len(steps))
            if len(steps) > max_retries:
                raise NonFiniteError(_diagnosis(error, steps), error.images_seen) from error
            log.say(f"{error}; retry {len(steps)} of {max_retries} from the last good state")


def _diagnosis(error: NonFiniteError, steps: list[int | None]) -> str:
    """Message about the last of several failures at these numbers of images."""
    again = ""
    if len(steps) > 1 and None not in steps:
        place = "the same step" if len(set(steps)) == 1 else "different steps"
        cause = "the numbers" if len(set(steps)) == 1 else "perhaps the machine"
        again = f"; {len(steps)} attempts ended so, at {place}, which points to {cause}"
    return (
        f"{error}{again}. The last good state is kept: lower the learning rate or set "
        "compute.precision to float32, and run the same command"
    )


@final
class StateWriter:
    """A thread that writes states, one at a time, while the training goes on."""

    def __init__(self, threads: Executor) -> None:
        self.seconds = 0.0
        """How long the last state took to write."""

        self._threads = threads
        self._pending: Future[None] | None = None

    @classmethod
    @contextmanager
    def started(cls) -> Iterator["StateWriter"]:
        """A writer whose states are all on the disk after the block."""
        with ThreadPoolExecutor(1, thread_name_prefix="states") as threads:
            writer = cls(threads)
            yield writer
            writer.wait()

    def write(self, work: Callable[[], None]) -> None:
        """Begin to write a state when the one before is complete; errors as in :meth:`wait`."""
        self.wait()
        self._pending = self._threads.submit(self._timed, work)

    def _timed(self, work: Callable[[], None]) -> None:
        started = time.monotonic()
        work()
        self.seconds = time.monotonic() - started

    def check(self) -> None:
        """Raise the error of a state that could not be written, if that is known by now."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the state is on the disk.

        Raises:
            OSError: It cannot be; the states before are kept.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


@final
class CheckpointManager:
    """Saved states of one training run: the last one and, in case it breaks, the one before.

    Args:
        folder: Of this run.
        state: Modules and optimisers to save.
        minutes: Time between two saves.
        log: Log of the stage.
        distributed: Processes of the run: all read the state, one writes it, all stop together.
        writer: Writes states while the training goes on; None lets it wait for them.
    """

    def __init__(
        self,
        folder: Path,
        state: TrainingState,
        *,
        minutes: float,
        log: StageLog,
        distributed: DistributedContext,
        writer: StateWriter | None = None,
    ) -> None:
        self.folder = folder
        self._state = state
        self._writer = writer
        self._distributed = distributed
        self._signal = 0
        self._seconds = minutes * 60
        self._saved_at = self._asked_at = time.monotonic()
        self._log = log

    def restore(self) -> dict[str, JsonValue] | None:
        """Restore the state of an interrupted run and return its ``info``; None without one.

        Raises:
            DataError: The state is damaged, or not the same for all processes.
            OSError: The disk refuses, be it the state of an earlier attempt.
        """
        self.wait()
        info, damaged = self._load()
        seen = -1 if info is None else info["images_seen"]
        assert isinstance(seen, int)
        most, least = self._distributed.all_reduce_max(seen, -seen)
        if most != -least:
            msg = (
                f"{self.folder} is not the same for all processes: let them share one workspace, "
                "or delete it everywhere"
            )
            raise DataError(msg)
        for file in damaged:
            self._log.say(f"{file} is damaged, and deleted; going on from the state before it")
            if self._distributed.is_main_process:
                file.unlink()  # or the next state would take the place of the good one
        if info is not None:
            self._log.say(f"resumed after {seen:,} images")
        return info

    def _load(self) -> tuple[dict[str, JsonValue] | None, list[Path]]:
        """Load the newest good state; return its ``info`` and the files of newer damaged ones."""
        damaged: dict[Path, str] = {}
        for file in (self.folder / name for name in _STATES):
            try:
                return self._state.load(file), list(damaged)
            except FileNotFoundError:
                continue
            except DataError as error:
                damaged[file] = str(error)
        if damaged:
            raise DataError("; ".join(damaged.values()))
        return None, []

    def save(
        self, info: Mapping[str, JsonValue], written: Callable[[], None] = lambda: None
    ) -> None:
        """Save the state as it is now, in the main process.

        Args:
            info: Saved with it.
            written: Called when the state is on the disk, maybe by another thread.

        Raises:
            OSError: The disk refuses. That may also be raised by a later call.
        """
        if self._distributed.is_main_process:
            if self._writer is None:
                self._state.save(self.folder / _NEWEST, info)
                self._rename()
                written()
            else:
                self._writer.write(partial(self._write, self._state.snapshot(info), written))
        self._saved_at = time.monotonic()

    def _write(self, snapshot: Mapping[str, Tensor], written: Callable[[], None]) -> None:
        write_state(self.folder / _NEWEST, snapshot)
        self._rename()
        written()

    def _rename(self) -> None:
        """Make the newest state the last one, and the last one that before."""
        last = self.folder / _LAST
        with suppress(FileNotFoundError):
            last.replace(self.folder / _BEFORE)
        (self.folder / _NEWEST).replace(last)

    def wait(self) -> None:
        """Wait until the saved state is on the disk; errors as for :meth:`save`."""
        if self._writer is not None:
            self._writer.wait()

    def should_save(self) -> bool:
        """Whether all processes should save: before the interval is exceeded, or after a signal.

        The next step, and writing, are taken to be as long as the last time.

        Raises:
            OSError: The last state could not be written.
        """
        writing = 0.0
        if self._writer is not None:
            self._writer.check()
            writing = self._writer.seconds
        now = time.monotonic()
        step, self._asked_at = now - self._asked_at, now
        waited = now + step + writing - self._saved_at > self._seconds
        late, number = self._distributed.all_reduce_max(waited, self._log.stop_signal() or 0)
        self._signal = int(number)
        return bool(late or number)

    def raise_if_stopping(self, images_seen: int) -> None:
        """Raise ``Interrupted`` if a signal came before :meth:`should_save`; call after a save."""
        if self._signal:
            self.wait()
            msg = f"stopped after {images_seen:,} images; the same command continues from there"
            raise Interrupted(msg, self._signal)
