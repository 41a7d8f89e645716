"""The Prefect flow, for real: with its own short-lived server and with a lasting one."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from contextlib import closing

import psutil
import pytest
from workspace import STAGES, Workspace, end, wait_until


@pytest.fixture(scope="module")
def free_port():
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def server(free_port, tmp_path_factory):
    """A real Prefect server; newer FastAPI releases stopped it from starting."""
    folder = tmp_path_factory.mktemp("prefect-server")
    address = f"http://127.0.0.1:{free_port}/api"
    env = {**os.environ, "PREFECT_HOME": str(folder), "PREFECT_API_URL": address}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(free_port)],
            cwd=folder,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
            text=True,
        )

    def healthy():
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return json.load(urllib.request.urlopen(f"{address}/health", timeout=5)) is True
        except OSError:
            return False

    try:
        wait_until(healthy, 600, "a healthy Prefect server")
        yield env
    finally:
        end(process)
        process.wait()


def ask(server, path, body):
    request = urllib.request.Request(
        f"{server['PREFECT_API_URL']}/{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    return json.load(urllib.request.urlopen(request, timeout=30))


def test_a_summary_becomes_a_table_that_names_its_features():
    from flows.training_flow import summary_table

    summary = {
        "generator": {"frechet": 1.234, "proximal_frechet": 2},
        "teacher_full": {"frechet": None, "proximal_frechet": 3.0},
        "noisy_data": {"frechet": 9.0},
        "protocol": {"features": "fashion-classifier", "num_samples": 5},
    }
    table = summary_table(summary).splitlines()
    assert "Frechet (fashion-classifier)" in table[0]
    assert table[2:] == [
        "| generator | 1.23 | 2.00 |",
        "| teacher full | - | 3.00 |",
        "| noisy data | 9.00 | - |",
    ]


def test_only_killed_stages_are_tried_again():
    from prefect.states import Failed

    from flows.dvc_runner import DvcError, StageFailedError
    from flows.training_flow import bring_up_to_date

    def again(error):
        return bring_up_to_date.retry_condition_fn(bring_up_to_date, None, Failed(data=error))

    assert again(StageFailedError("pretrain", -9, []))
    assert again(StageFailedError("pretrain", 137, []))
    assert again(StageFailedError("pretrain", 143, []))
    assert not again(StageFailedError("pretrain", 2, ["error: bad value"]))
    assert not again(StageFailedError("pretrain", 130, ["stopped"]))
    assert not again(DvcError("no such stage"))
    assert bring_up_to_date.retries > 0


def test_a_failure_survives_being_sent_between_processes():
    import pickle

    from flows.dvc_runner import StageFailedError

    error = StageFailedError("pretrain", 4, ["error: loss is NaN"])
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert "error: loss is NaN" in str(copy)


@pytest.mark.slow
def test_without_a_server_unchanged_stages_are_shown_as_cached(workspace, tmp_path):
    workspace.back_to_the_first_run()
    runs = sqlite3.connect(workspace.root / "mlflow.db").execute("select count(*) from runs")
    before = runs.fetchone()
    flow = Workspace(workspace.root)
    flow.env["PREFECT_HOME"] = str(tmp_path)
    done = flow.run(sys.executable, "-m", "flows.train")
    printed = done.stdout + done.stderr
    for stage in STAGES:
        assert f"Stage '{stage}' didn't change, skipping" in printed
        assert "Finished in state Cached('unchanged" in printed
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as store:
        states = store.execute("select name, state_name from task_run order by start_time")
        assert states.fetchall() == [(stage, "Cached") for stage in STAGES]
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as store:
        assert store.execute("select count(*) from runs").fetchone() == before


@pytest.mark.slow
def test_stopping_the_flow_stops_the_stage(workspace, tmp_path):
    workspace.back_to_the_first_run()
    workspace.set({"pretrain.kimg": 64.0})
    flow = Workspace(workspace.root)
    flow.env["PREFECT_HOME"] = str(tmp_path)
    lock = workspace.root / ".dsd" / "locks" / "pretrain"
    lock.unlink()
    process = flow.start(sys.executable, "-m", "flows.train")
    try:
        wait_until(lambda: lock.is_file() and lock.read_text(), 600, "the training", process)
        stage = psutil.Process(int(lock.read_text()))
        process.terminate()
        process.communicate(timeout=300)
    finally:
        end(process)
    assert process.returncode != 0
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_server_takes_the_deployment_and_a_run_that_fails_says_why(workspace, server):
    workspace.back_to_the_first_run()
    flow = Workspace(workspace.root)
    flow.env.update(server)
    flow.run(sys.executable, "-m", "prefect", "work-pool", "create", "gpu", "--type", "process")
    flow.run(sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all")
    (deployment,) = ask(server, "deployments/filter", {})
    assert deployment["work_pool_name"] == "gpu"
    assert deployment["schedules"][0]["active"] is False
    assert set(deployment["parameter_openapi_schema"]["properties"]) == {"force", "push"}

    # No remote to push to: refused before anything runs.
    refused = flow.run(sys.executable, "-m", "flows.train", "--push", code=1)
    assert "no default DVC remote is configured" in refused.stderr.splitlines()[-1]
    assert ask(server, "task_runs/count", {}) == 0

    flow.set({"corrupt.sigma": -1.0})
    failed = flow.run(sys.executable, "-m", "flows.train", code=2)
    assert "corrupt.sigma" in failed.stderr.splitlines()[-1]
    (last,) = ask(server, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    assert last["state_type"] == "FAILED"
    names = {run["name"]: run["state_name"] for run in ask(server, "task_runs/filter", {})}
    assert names == {"prepare": "Cached", "corrupt": "Failed"}
