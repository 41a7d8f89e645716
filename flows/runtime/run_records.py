"""Which flow runs are alive: each keeps a record, and a lease on it for as long as it lives.

Prefect's server learns of a dead flow run only from its worker. When the worker dies too, as in a
reboot or at a job's time limit, the run would be shown as running for ever. Hosts that share the
folder see each other's runs.
"""

import atexit
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from uuid import UUID

from filelock import SoftFileLease

from flows.runtime.environment import ROOT
from pipeline.execution.locks import is_held, lease, this_host
from pipeline.runtime.parent_death import end_with_parent
from pipeline.stage_io.paths import home_of

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

__all__ = [
    "RECORDS",
    "Record",
    "active_runs",
    "crashed_runs",
    "create_record",
    "forget_run",
    "register_run",
]

RECORDS = home_of(ROOT) / ".dsd" / "flow_runs"
"""Folder of the records of this workspace; worktrees share it."""

_LEASE = ".lease"

_held: dict[Path, SoftFileLease] = {}
"""Leases of this process, by record."""


@final
@dataclass(frozen=True)
class Record:
    """A flow run that was begun in this workspace."""

    run_id: UUID
    state_id: UUID
    """The Running state that the process entered: a retried run enters another one, elsewhere."""
    pid: int
    host: str
    file: Path

    @property
    def is_of_this_host(self) -> bool:
        """Whether its process is, or was, one of this host."""
        return self.host == this_host()

    def forget(self) -> None:
        """Delete the record, once the server knows how the run ended."""
        _forget(self.file)


def register_run(flow: object, flow_run: "FlowRun", state: "State[Any]") -> None:
    """Hook ``on_running`` of every flow: note that this process is the run, and follow its worker.

    A run whose worker is gone could not be cancelled, and a new worker would give its GPU to
    another run. It therefore ends with its worker: SIGTERM, on which the stage saves its state and
    the run is reported as Crashed. A flow that a person started by hand has no worker.
    """
    file = create_record(RECORDS, flow_run.id, state.id)
    if "PREFECT__FLOW_RUN_ID" in os.environ:  # set by Prefect's workers alone
        # The record stays if the process ends before Prefect has reported how the run ended.
        end_with_parent(os.getppid())
    else:
        atexit.register(_forget, file)


def forget_run(flow: object, flow_run: "FlowRun", state: "State[Any]") -> None:
    """Hook ``on_completion`` and ``on_failure`` of every flow: the server knows the end."""
    _forget(RECORDS / str(flow_run.id))


def _forget(record: Path) -> None:
    record.unlink(missing_ok=True)
    if record in _held:
        _held.pop(record).release()
    record.with_suffix(_LEASE).unlink(missing_ok=True)


def create_record(records: Path, run_id: UUID, state_id: UUID) -> Path:
    """Write the record of a run in its Running state, held until this process ends."""
    records.mkdir(parents=True, exist_ok=True)
    file, part = records / str(run_id), records / f"{run_id}.{os.getpid()}.part"
    # Held before it has its name: nobody sees the record of a living run without its lease.
    held = lease(file.with_suffix(_LEASE))
    held.acquire(blocking=False)
    _held[file] = held
    part.write_text(f"{state_id} {os.getpid()} {this_host()}\n", encoding="ascii")
    part.replace(file)
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
        if file.suffix:
            continue
        try:
            state_id, pid, host = file.read_text(encoding="ascii").split()
        except FileNotFoundError:  # the run has just ended
            continue
        alive = is_held(file.with_suffix(_LEASE))
        yield Record(UUID(file.name), UUID(state_id), int(pid), host, file), alive
