"""What is known on local disk of an MLflow run under way, so that it survives process and store.

Each run has a folder named after stage and parameters: a record, a journal of numbers and a lock.
The folder goes when the stage is done and the store has everything; until then a stage that is
started again with the same parameters goes on in the same run.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, final

from dsd.utils.errors import DataError
from dsd.utils.files import read_json
from pipeline.execution.locks import can_lock, try_lock, unlock
from pipeline.tracking.journal import Journal

__all__ = ["Record", "Session", "abandoned_sessions", "open_session"]

_RECORD, _JOURNAL = "record.json", "journal.jsonl"
_RENAMED = {"done": "completed_steps", "left": "handed_off"}
"""Fields of records that an earlier version left, and their names now."""


@final
@dataclass
class Record:
    """All that is needed to create the run, or to go on with it.

    Args:
        stage: Stage of the pipeline.
        name: Name of the run, for people.
        experiment: MLflow experiment.
        uri: Tracking store that ``run_id`` belongs to.
        params: Flattened parameters.
        tags: Tags of the run.
        started_ms: Start in milliseconds since 1970, as ``ended_ms``.
        token: Random name by which a run is found whose id was not noted.
        run_id: MLflow's id once the run exists.
        sent: Byte offset in the journal up to which the store has all numbers.
        status: RUNNING, FINISHED, FAILED or KILLED, as in MLflow.
        ended_ms: End.
        completed_steps: Closing steps that the store has seen.
        datasets: Sets of images that the stage read: name, digest, count and shape.
        handed_off: Whether the stage's process lived until all was sent, or gave up sending. If
            not, DVC does not know that the stage is done, and will run it again.
        training: Name of its state, for a stage that trains.
        title: What differs from the defaults, the name of the run of the whole pipeline.
        parent_id: Id of that run in MLflow.
    """

    stage: str
    name: str
    experiment: str
    uri: str
    params: dict[str, str]
    tags: dict[str, str]
    started_ms: int
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_id: str | None = None
    sent: int = 0
    status: str = "RUNNING"
    ended_ms: int | None = None
    completed_steps: list[str] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    handed_off: bool = False
    training: str | None = None
    title: str = ""
    parent_id: str | None = None

    def was_interrupted(self) -> bool:
        """Whether the process was killed, be it while it sent the last of a finished stage."""
        return self.status == "RUNNING" or (self.status == "FINISHED" and not self.handed_off)

    def key(self) -> str:
        """Name of the folder: equal for a stage that is started again with equal parameters."""
        text = json.dumps([self.stage, self.experiment, self.params])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@final
class Session:
    """A run's folder, locked by this process."""

    def __init__(self, folder: Path, lock: TextIO, record: Record) -> None:
        self.folder, self.record = folder, record
        self.journal = Journal(folder / _JOURNAL)
        self._lock = lock
        self._saving = threading.Lock()

    def save(self) -> None:
        """Write the record, whole or not at all, unless the folder has been given back."""
        with self._saving:
            if self._lock.closed:
                return
            text = json.dumps(dataclasses.asdict(self.record), indent=1)
            part = self.folder / f"{_RECORD}.part"
            # Not dsd.utils.files.published, which would make a folder that was just removed anew.
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.folder / _RECORD)

    def end(self, status: str, milliseconds: int) -> None:
        """Note how the stage ended."""
        self.record.status, self.record.ended_ms = status, milliseconds
        self.journal.write()
        self.save()

    def mark_handed_off(self) -> None:
        """Note that this process lived until all was sent, or gave up sending."""
        self.record.handed_off = True
        self.save()

    def is_over(self) -> bool:
        """Whether no stage can go on with this run, which has ended."""
        return self.record.status == "FINISHED" or self.folder.name != self.record.key()

    def archive(self) -> None:
        """Rename the folder so that a new run can use its name; it stays locked."""
        target = self.folder.with_name(f"{self.record.key()}-{self.record.token}")
        with self._saving:
            self.folder.rename(target)
            self.folder = target
            self.journal.file = target / _JOURNAL

    def remove(self) -> None:
        """Delete the folder."""
        with self._saving:
            # First the numbers: killed in between, the next run must not find them without a
            # record.
            with suppress(OSError):
                (self.folder / _JOURNAL).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.release()

    def release(self) -> None:
        """Let other processes have the folder."""
        if not self._lock.closed:
            unlock(self._lock)
            self._lock.close()


def open_session(parent: Path, record: Record) -> Session:
    """Go on with the unfinished run of the same stage and parameters, or begin a new one.

    ``parent`` has the stage's sessions. An unfinished run keeps its own record, with the new tags.
    """
    session = _find(parent, record)
    old = session.record
    if old.status == "FINISHED" and not old.was_interrupted():
        session.archive()
        session.release()
        session = _find(parent, record)
    elif old is not record:
        same_store = old.uri == record.uri
        session.record = dataclasses.replace(
            old,
            uri=record.uri,
            tags=record.tags,
            title=record.title,
            run_id=old.run_id if same_store else None,
            parent_id=old.parent_id if same_store else None,
            sent=old.sent if same_store else 0,
            status="RUNNING",
            ended_ms=None,
            completed_steps=[],
            handed_off=False,
        )
    session.save()
    return session


def abandoned_sessions(parent: Path) -> Iterator[Session]:
    """Sessions that no process holds; each is locked while the caller looks at it."""
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        session = _take(folder, None)
        if session is not None:
            try:
                yield session
            finally:
                session.release()


def _find(parent: Path, record: Record) -> Session:
    """The session's folder, or one beside it while another process works under the same name."""
    session = _take(parent / record.key(), lambda: record)
    if session is None:
        session = _take(parent / f"{record.key()}-{os.getpid()}", lambda: record)
    assert session is not None
    return session


def _take(folder: Path, make: Callable[[], Record] | None) -> Session | None:
    """Lock a folder and read its record; None if it is taken, or has no record to be read."""
    try:
        if make is not None:
            folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a", encoding="ascii")
    except (FileExistsError, FileNotFoundError):  # it goes, with its run, at this moment
        return None
    except OSError:
        # A folder that cannot be read is no session; one that cannot be made is an error.
        if make is None:
            return None
        raise
    if try_lock(lock) and _is_at(lock, folder / "lock"):
        record = _read(folder / _RECORD) or (make() if make is not None else None)
        # Where there are no locks, a run belongs to a living process until that has left it.
        free = make is not None or can_lock(lock) or (record is not None and record.handed_off)
        if record is not None and free:
            return Session(folder, lock, record)
    lock.close()
    return None


def _is_at(handle: TextIO, file: Path) -> bool:
    """Whether it is the file that lies there now.

    The folder may have gone, with the run that used it, between opening and locking; and another
    process may have made a new one.
    """
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle.fileno()), file.stat())
    return False


def _read(file: Path) -> Record | None:
    try:
        kept = read_json(file).items()
        return Record(**{_RENAMED.get(name, name): value for name, value in kept})
    except (OSError, DataError, TypeError, AttributeError):
        return None
