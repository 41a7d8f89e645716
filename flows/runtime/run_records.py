"""Which flow runs are alive on this machine: each keeps a file locked for as long as it lives.

Prefect's server learns of a dead flow run only from its worker. When the worker dies too, as in a
reboot, the run would be shown as running for ever. The kernel knows better: it frees the locks of
a process however that ends. A lock cannot be lost by a living process, unlike a heartbeat, which
the server also misses while it is down itself.
"""

import atexit
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, final
from uuid import UUID

from psutil import pid_exists

from flows.runtime.environment import ROOT
from pipeline.execution.locks import can_lock, try_lock
from pipeline.runtime.parent_death import end_with_parent
from pipeline.stage_io.paths import home_of

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

__all__ = [
    "RECORDS",
    "Record",
    "active_runs",
    "crashed_runs",
    "create_locked_record",
    "forget_run",
    "register_run",
]

RECORDS = home_of(ROOT) / ".dsd" / "flow_runs"
"""Folder of the records of this workspace; worktrees share it."""

_held: list[TextIO] = []


@final
@dataclass(frozen=True)
class Record:
    """A flow run that was begun on this machine."""

    run_id: UUID
    state_id: UUID
    """The Running state that the process entered: a retried run enters another one, elsewhere."""
    pid: int
    file: Path

    def forget(self) -> None:
        """Delete the record, once the server knows how the run ended."""
        self.file.unlink(missing_ok=True)


def register_run(flow: object, flow_run: "FlowRun", state: "State[Any]") -> None:
    """Hook ``on_running`` of every flow: note that this process is the run, and follow its worker.

    A run whose worker is gone could not be cancelled, and a new worker would give its GPU to
    another run. It therefore ends with its worker: SIGTERM, on which the stage saves its state and
    the run is reported as Crashed. A flow that a person started by hand has no worker.
    """
    file = create_locked_record(RECORDS, flow_run.id, state.id)
    if "PREFECT__FLOW_RUN_ID" in os.environ:  # set by Prefect's workers alone
        # The record stays if the process ends before Prefect has reported how the run ended.
        end_with_parent(os.getppid())
    else:
        atexit.register(file.unlink, missing_ok=True)


def forget_run(flow: object, flow_run: "FlowRun", state: "State[Any]") -> None:
    """Hook ``on_completion`` and ``on_failure`` of every flow: the server knows the end."""
    (RECORDS / str(flow_run.id)).unlink(missing_ok=True)


def create_locked_record(records: Path, run_id: UUID, state_id: UUID) -> Path:
    """Write the record of a run in its Running state, locked until this process ends."""
    records.mkdir(parents=True, exist_ok=True)
    file, part = records / str(run_id), records / f"{run_id}.{os.getpid()}.part"
    # Locked before it has its name: nobody sees the record of a living run unlocked.
    handle = part.open("w", encoding="ascii")
    try_lock(handle)
    handle.write(f"{state_id} {os.getpid()}\n")
    handle.flush()
    part.replace(file)
    _held.append(handle)
    return file


def crashed_runs(records: Path) -> Iterator[Record]:
    """Records of runs whose process is gone, with or without a report of its end."""
    yield from (record for record, alive in _records(records) if not alive)


def active_runs(records: Path) -> list[Record]:
    """Records of runs whose process is alive."""
    return [record for record, alive in _records(records) if alive]


def _records(records: Path) -> Iterator[tuple[Record, bool]]:
    """All records, each with whether its process is alive."""
    for file in sorted(records.iterdir()) if records.is_dir() else []:
        if file.suffix == ".part":
            continue
        try:
            with file.open("r+", encoding="ascii") as handle:  # NFS locks only what can be written
                locked = not try_lock(handle)
                state_id, pid = handle.read().split()
                alive = locked or (not can_lock(handle) and pid_exists(int(pid)))
        except FileNotFoundError:  # the run has just ended
            continue
        yield Record(UUID(file.name), UUID(state_id), int(pid), file), alive
