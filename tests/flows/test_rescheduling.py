"""Which runs the next worker continues: those whose worker was stopped or whose host is gone."""

import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect import states

from flows.runtime.run_records import Record, crashed_runs
from flows.services import reconcile as reconciling
from flows.services.reconcile import MOST_STARTS, reconcile
from flows.services.rescheduling import give_back, runs_below
from pipeline.execution.locks import this_host
from sandbox import ROOT


class Server:
    """Knows one run, and notes the states that it is given."""

    def __init__(self, state, starts=1):
        self.run = SimpleNamespace(id=uuid4(), name="a run", state=state, run_count=starts)
        self.given = []

    def read_flow_run(self, run_id):
        return self.run

    def read_flow_run_states(self, run_id):
        return [states.Running(id=self.run.id), self.run.state]

    def read_flow_runs(self, **filters):
        return []

    def read_task_runs(self, **filters):
        return []

    def set_flow_run_state(self, run_id, state, force):
        assert force
        self.given.append(state.name)


@pytest.mark.parametrize(
    ("state", "given"),
    [
        (states.Running(), ["AwaitingRetry"]),
        (states.Crashed(), ["AwaitingRetry"]),
        (states.Completed(), []),
        (states.Failed(), []),
        (states.Cancelled(), []),
        (states.Cancelling(), []),
    ],
)
def test_a_stopped_worker_gives_back_what_has_neither_ended_nor_was_cancelled(
    state, given, tmp_path, monkeypatch
):
    server = Server(state)
    get = "prefect.client.orchestration.get_client"
    monkeypatch.setattr(get, lambda sync_client: nullcontext(server))
    record = Record(uuid4(), uuid4(), 1, "host", tmp_path / "record")
    record.file.touch()
    assert len([*give_back([record])]) == len(given)
    assert server.given == given
    assert record.file.exists() == (not given)


@pytest.mark.parametrize(
    ("host", "state", "starts", "given"),
    [
        ("elsewhere", states.Running(), 1, "AwaitingRetry"),
        ("elsewhere", states.Running(), MOST_STARTS, "Crashed"),
        ("elsewhere", states.Cancelling(), 1, "Cancelled"),
        (None, states.Running(), 1, "Crashed"),
    ],
)
def test_a_run_whose_host_is_gone_is_queued_again(
    host, state, starts, given, tmp_path, monkeypatch
):
    server = Server(state, starts)
    monkeypatch.setattr(reconciling, "_is_that_of", lambda client, run, record: True)
    text = f"{uuid4()} 1 {host or this_host()}\n"
    (tmp_path / str(server.run.id)).write_text(text)
    assert len([*reconcile(server, tmp_path)]) == 1
    assert server.given == [given]
    assert [*crashed_runs(tmp_path)] == []


def test_only_runs_below_the_worker_are_its_own(tmp_path):
    code = (
        "import sys; from pathlib import Path; from uuid import uuid4; "
        "from flows.runtime.run_records import create_record; "
        "create_record(Path(sys.argv[1]), uuid4(), uuid4()); print('held', flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        assert [run.pid for run in runs_below(tmp_path)] == [process.pid]
        assert runs_below(tmp_path, process.pid) == []
        assert runs_below(tmp_path, os.getpid()) != []
        process.kill()
