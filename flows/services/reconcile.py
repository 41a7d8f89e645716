"""Mark orphaned flow runs as Crashed: ``python -m flows.services.reconcile``.

A run that the server shows as Running while its process on this machine is gone is marked Crashed
(Cancelled, if that was asked for), and so are its tasks. A run whose whole host is gone returns to
its queue. A run that a worker took but never started is marked Crashed after some minutes. A run
that was cancelled and goes on is stopped: a worker gives up looking for cancellations when the
server has been away for half a minute. Runs of machines with another folder are left to these.

With ``--every`` it also lets the form of new runs show the values of params.yaml when they change.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.runtime.environment import ROOT, stage_environment
from flows.runtime.run_records import RECORDS, Record, active_runs, crashed_runs
from flows.services.prefect_server import ServerError, named_server
from flows.services.rescheduling import reschedule
from pipeline.runtime.proxies import through_proxy
from pipeline.stage_io.paths import Paths

# Prefect is imported where it is used: it takes a second, too long for --help.
if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

__all__ = ["CANCELLED_WITHIN", "MOST_STARTS", "NEVER_STARTED_AFTER", "POOLS", "main", "reconcile"]

POOLS = ("gpu", "control")
"""Work pools of this project: runs that train, and runs that start and await those."""

NEVER_STARTED_AFTER = timedelta(minutes=5)
"""How long a run may stay between a worker's taking it and its start, which takes seconds."""

MOST_STARTS = 10
"""How often a run may start whose host is gone: it may be what brings hosts down."""

CANCELLED_WITHIN = timedelta(seconds=15)
"""How long a run's worker may take to stop it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Reconcile once, or at intervals until stopped; the exit code is 1 if no server answers."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.services.reconcile",
        description="Mark flow runs as Crashed whose process is gone.",
    )
    parser.add_argument("--every", type=_pause, metavar="SECONDS", help="repeat until stopped")
    options = parser.parse_args(arguments)
    from prefect.client.orchestration import get_client

    try:
        address = named_server()
    except ServerError as error:
        return _fail(str(error))
    shown = _params_version()  # `make up` has just made the form
    with get_client(sync_client=True) as client:
        while True:
            trouble = _attempt(client)
            if options.every is not None and shown != (shown := _params_version()):
                _refresh_form()
            silent = f"{address} does not answer{through_proxy(address)}"
            if options.every is None:
                return _fail(f"{silent}: {trouble}") if trouble else 0
            if trouble:
                print(f"{silent}, trying again: {trouble}", flush=True)
            time.sleep(options.every)


def _params_version() -> tuple[int, int] | None:
    """Changes whenever params.yaml does; None while there is no such file."""
    try:
        found = Paths(ROOT).params.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _refresh_form() -> None:
    # Another process, as the form is made of params.yaml when its module is imported.
    command = [sys.executable, "-m", "flows.definitions.refresh_form"]
    done = subprocess.run(command, cwd=ROOT, env=stage_environment(), check=False)
    result = "shows" if done.returncode == 0 else "could not be given"
    print(f"the form of new runs {result} the values of params.yaml", flush=True)


def _pause(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not within 0.1 and 86400 seconds")
    return seconds


def reconcile(
    client: "SyncPrefectClient",
    records: Path,
    never_started_after: timedelta = NEVER_STARTED_AFTER,
) -> Iterator[str]:
    """Correct the server's view of runs that died on this machine.

    Args:
        client: Connection to the server.
        records: Folder of :func:`flows.runtime.run_records.create_record`.
        never_started_after: Age at which a run that nobody started is given up.

    Yields:
        One line for each run that was corrected.
    """
    from prefect.states import Crashed

    for record in crashed_runs(records):
        run = _read(client, record.run_id)
        if run is not None and _is_that_of(client, run, record):
            if _deserves_another_host(run, record):
                _end_tasks(client, run, Crashed(message="Its host is gone."))
                yield reschedule(client, run, "its host is gone")
            else:
                yield _end(client, run, f"its process {record.pid} is gone")
        record.forget()
    for record in active_runs(records):
        run = _read(client, record.run_id)
        # Its worker should have stopped the run by now.
        in_vain = datetime.now(UTC) - CANCELLED_WITHIN
        if run is None or run.state is None or not record.is_of_this_host:
            continue
        if run.state.is_cancelling() and run.state.timestamp < in_vain:
            os.kill(record.pid, signal.SIGTERM)
            yield f"flow run {run.name!r} was cancelled but went on: stopped process {record.pid}"
    for run in _never_started(client, datetime.now(UTC) - never_started_after):
        yield _end(client, run, "a worker took it but never started it")


def _attempt(client: "SyncPrefectClient") -> str | None:
    """Reconcile and say what was done; the reason if the server does not answer."""
    import httpx

    try:
        for line in reconcile(client, RECORDS):
            print(line, flush=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return str(error) or type(error).__name__
    return None


def _read(client: "SyncPrefectClient", run_id: UUID) -> "FlowRun | None":
    """The run, or None if the server does not know it (any more)."""
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_flow_run(run_id)
    except ObjectNotFound:
        return None


def _is_that_of(client: "SyncPrefectClient", run: "FlowRun", record: Record) -> bool:
    """Whether the server still shows the attempt that the record is about, not a later one."""
    if run.state is None or not (run.state.is_running() or run.state.is_cancelling()):
        return False
    states = sorted(client.read_flow_run_states(run.id), key=lambda state: state.timestamp)
    running = [state for state in states if state.is_running()]
    return bool(running) and running[-1].id == record.state_id


def _deserves_another_host(run: "FlowRun", record: Record) -> bool:
    """Whether a dead run is to start again: not a cancelled one, nor one that ends every host."""
    assert run.state is not None
    is_over = run.state.is_cancelling() or run.run_count >= MOST_STARTS
    return not record.is_of_this_host and not is_over


def _never_started(client: "SyncPrefectClient", before: datetime) -> list["FlowRun"]:
    """Runs that were taken by a worker, and perhaps cancelled since, but have not begun."""
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter, WorkPoolFilterName

    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(
            {"state": {"type": {"any_": ["PENDING", "CANCELLING"]}}}
        ),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=list(POOLS))),
    )
    return [
        run
        for run in runs
        if run.state is not None
        and run.state.timestamp < before
        and (run.state.is_pending() or run.start_time is None)
    ]


def _end(client: "SyncPrefectClient", run: "FlowRun", why: str) -> str:
    """Give a dead run and its unfinished tasks their final state."""
    from prefect.states import Cancelled, Crashed

    assert run.state is not None
    make = Cancelled if run.state.is_cancelling() else Crashed
    before = run.state.name
    state: State[Any] = make(
        message=f"Reconciled: {why}. The next run goes on where this one was."
    )
    _end_tasks(client, run, state)
    client.set_flow_run_state(run.id, state, force=True)
    return f"flow run {run.name!r} was {before}, but {why}: now {state.name}"


def _end_tasks(client: "SyncPrefectClient", run: "FlowRun", state: "State[Any]") -> None:
    """Give the unfinished tasks of a dead run their final state."""
    from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter

    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run.id]}}),
        task_run_filter=TaskRunFilter.model_validate(
            {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}}
        ),
    )
    for task in tasks:
        client.set_task_run_state(task.id, state, force=True)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
