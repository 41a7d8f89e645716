"""Runs whose worker is stopped go back to the queue, where the next worker finds them.

Prefect has this for ``prefect flow-run execute``, which its workers for Kubernetes and the like
start (``PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR=reschedule``), and not for workers of local
processes, which report such a run as Crashed.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from flows.runtime.run_records import Record, active_runs

# Prefect is imported where it is used: it takes a second, too long for --help.
if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

__all__ = ["give_back", "reschedule", "runs_below"]


def runs_below(records: Path, parent: int | None = None) -> list[Record]:
    """Living flow runs of processes below ``parent``, this process unless given."""
    mine = {child.pid for child in psutil.Process(parent or os.getpid()).children(recursive=True)}
    return [run for run in active_runs(records) if run.is_of_this_host and run.pid in mine]


def give_back(runs: list[Record]) -> Iterator[str]:
    """Queue the runs that were stopped and neither ended nor were cancelled.

    Args:
        runs: Whose processes have ended.

    Yields:
        One line for each.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for record in runs:
            run = client.read_flow_run(record.run_id)
            if run.state is not None and (run.state.is_running() or run.state.is_crashed()):
                yield reschedule(client, run, "its worker was stopped")
                record.forget()


def reschedule(client: "SyncPrefectClient", run: "FlowRun", why: str) -> str:
    """Put a run that has stopped into its queue; what was done, in a line."""
    from prefect.states import AwaitingRetry

    message = f"{why[0].upper()}{why[1:]}. The next worker continues where this run was."
    client.set_flow_run_state(run.id, AwaitingRetry(message=message), force=True)
    return f"flow run {run.name!r}: {why}; the next worker continues it"
