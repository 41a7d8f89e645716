"""The Prefect flow, for real: with its own short-lived server and with a lasting one."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from PIL import Image

from sandbox.pages import COMPARISON_SCRIPT, check
from sandbox.ports import free_port
from sandbox.quick_project import executed, experiments, looks, quick_project
from sandbox.workspace import PROJECT, Workspace, end, wait_until


@pytest.fixture(scope="module")
def server(prefect_home):
    """A real Prefect server; newer FastAPI releases stopped it from starting."""
    folder = prefect_home()
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    env = {**os.environ, "PREFECT_HOME": str(folder), "PREFECT_API_URL": address}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
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


def test_a_summary_becomes_a_table_with_links(tmp_path):
    from flows.definitions.results import distance_rows, result_page, stage_row

    assert distance_rows(tmp_path) == []
    summary = {
        "generator": {"frechet": 1.234, "proximal_frechet": 2},
        "teacher_full": {"frechet": None, "proximal_frechet": 3.0},
        "noisy_data": {"frechet": 9.0},
        "protocol": {"features": "fashion-classifier", "num_samples": 5},
    }
    (tmp_path / "reports/evaluate").mkdir(parents=True)
    (tmp_path / "reports/summary.json").write_text(json.dumps(summary))
    rows = distance_rows(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "reports/evaluate/comparison.png")
    picture, _, page = result_page(tmp_path, rows, None, None).partition("\n\n")
    assert picture.startswith("![noisy data, teacher and generator](data:image/webp;base64,")
    assert page.splitlines()[0].count("(fashion-classifier)") == 2
    assert page.splitlines()[2:5] == [
        "| one-step generator | 1.23 | 2 |",
        "| teacher, Full | - | 3.00 |",
        "| noisy data | 9.00 | - |",
    ]
    assert "pipeline sync" in page

    record = {"run_id": "0123456789abcdef", "tracking_uri": "http://127.0.0.1:5000"}
    (tmp_path / "reports/evaluate/run.json").write_text(json.dumps(record))
    page = result_page(tmp_path, rows, Path("reports/report.html"), "one")
    assert "[run 01234567](http://127.0.0.1:5000/#/runs/0123456789abcdef)" in page
    assert "`reports/report.html`" in page
    assert "`dvc exp apply one`" in page
    row = stage_row(tmp_path, "evaluate", "Restored", "restored\nfrom there")
    assert row["MLflow run"] == record["run_id"]
    assert row["what happened"] == "restored"
    assert stage_row(tmp_path, "evaluate", "Failed", "")["MLflow run"] is None


def test_the_report_is_a_link_into_mlflow_where_that_is_a_server(tmp_path, monkeypatch):
    from flows.definitions import results

    asked = []

    def get(url, **options):
        asked.append((url, options["params"]))
        body = {"run": {"info": {"experiment_id": "7"}}}
        return results.httpx.Response(200, json=body, request=results.httpx.Request("GET", url))

    record = {"run_id": "0123", "tracking_uri": "http://127.0.0.1:5000/"}
    (tmp_path / "reports/evaluate").mkdir(parents=True)
    (tmp_path / "reports/evaluate/run.json").write_text(json.dumps(record))
    monkeypatch.setattr(results.httpx, "get", get)
    page = results.result_page(tmp_path, [], Path("reports/report.html"), None)
    base = "http://127.0.0.1:5000"
    assert f"[open]({base}/#/experiments/7/runs/0123/artifacts/report.html)" in page
    assert f"[download]({base}/get-artifact?path=report.html&run_uuid=0123)" in page
    assert asked == [(f"{base}/api/2.0/mlflow/runs/get", {"run_id": "0123"})]

    def refuse(url, **options):
        raise results.httpx.ConnectError("away")

    monkeypatch.setattr(results.httpx, "get", refuse)
    page = results.result_page(tmp_path, [], Path("reports/report.html"), None)
    assert "Report: [download](" in page
    assert "[open]" not in page


def test_figure_1_grows_with_the_reports_of_a_sweep(tmp_path):
    from flows.definitions.results import figure_lines

    assert figure_lines([]) == []
    found = json.loads((PROJECT / "docs/results/default/seed0.json").read_text())
    for sigma in (0.2, 0.4):
        folder = tmp_path / f"sigma-{sigma}"
        folder.mkdir()
        found["protocol"] |= {"sigma": sigma, "sigma_hat": sigma}
        (folder / "summary.json").write_text(json.dumps(found))
        text = (PROJECT / "params.yaml").read_text().replace("sigma: 0.5", f"sigma: {sigma}")
        (folder / "params.yaml").write_text(text)
    one, both = figure_lines([tmp_path / "sigma-0.2"]), figure_lines([*tmp_path.glob("sigma-*")])
    assert [line.partition("(data")[0] for line in both[::2]] == [
        "![Frechet to clean against sigma]",
        "![Proximal Frechet against sigma]",
    ]
    assert one[0] != both[0]


def test_only_killed_stages_are_tried_again():
    from prefect.states import Failed

    from flows.definitions.train_flow import bring_up_to_date
    from flows.dvc.runner import DvcError, StageFailedError

    def again(error):
        return bring_up_to_date.retry_condition_fn(bring_up_to_date, None, Failed(data=error))

    assert again(StageFailedError("pretrain", -9, []))
    assert again(StageFailedError("pretrain", 137, []))
    assert again(StageFailedError("pretrain", 143, []))
    assert not again(StageFailedError("pretrain", 2, ["error: bad value"]))
    assert not again(StageFailedError("pretrain", 130, ["stopped"]))
    assert not again(DvcError("no such stage"))
    assert bring_up_to_date.retries > 0
    error = StageFailedError("pretrain", 4, ["error: loss is NaN"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


FLOW = """
import sys, time
from flows.cli import run_flow

def run():
    from prefect import flow
    from flows.services.prefect_server import prepare_own_server
    from flows.runtime.stopping import end_soon_when_stopped

    @flow(on_running=[end_soon_when_stopped])
    def works():
        print("works", flush=True)
        time.sleep(float(sys.argv[1]))

    prepare_own_server()
    works()
    return True

sys.exit(run_flow(run))
"""


@pytest.mark.slow
def test_two_first_flows_at_once_both_run_and_one_that_is_stopped_with_its_server_ends_soon(
    tmp_path,
):
    short, long = two = [
        subprocess.Popen(
            [sys.executable, "-c", FLOW, seconds],
            cwd=PROJECT,
            env={**os.environ, "PREFECT_HOME": str(tmp_path)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for seconds in ("0", "600")
    ]
    try:
        printed = short.communicate(timeout=500)[0]
        assert short.returncode == 0, printed
        before = list(iter(long.stdout.readline, "works\n"))
        start = time.monotonic()
        os.killpg(long.pid, signal.SIGTERM)  # as systemd does: the server hears it too
        after = long.communicate(timeout=300)[0]
    finally:
        for one in two:
            end(one)
    assert time.monotonic() - start < 35
    assert (printed + "".join(before)).count("making Prefect's data base") == 1
    assert long.returncode == 128 + signal.SIGTERM
    assert "stopped; the same command continues" in after
    assert "Traceback" not in after


@pytest.fixture(scope="module")
def project(server, tmp_path_factory):
    """A quick project that the server knows."""
    quick = quick_project(tmp_path_factory.mktemp("project"))
    # This folder's flows, whatever project the environment has installed.
    quick.env.update(server, PYTHONPATH=str(quick.root))
    quick.run(sys.executable, "-m", "flows.services.deploy")
    return quick


@pytest.mark.slow
def test_the_server_refuses_nonsense_and_the_flow_what_cannot_succeed(project):
    deployments = {one["name"]: one for one in ask(project.env, "deployments/filter", {})}
    pools = {name: one["work_pool_name"] for name, one in deployments.items()}
    assert pools == {"train": "gpu", "sweep": "control"}
    assert [one["active"] for one in deployments["train"]["schedules"]] == [False]
    create = f"deployments/{deployments['train']['id']}/create_flow_run"
    for wrong in ({"corrupt": {"sigma": -1}}, {"corrupt": {"sgima": 0.3}}, {"seed": "one"}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(project.env, create, {"parameters": {"overrides": wrong}})
        assert refused.value.code in (409, 422)

    def message(command, *options, code):
        done = project.run(sys.executable, "-m", f"flows.{command}", *options, code=code)
        (line,) = [one for one in done.stderr.splitlines() if one.startswith("error: ")]
        return line  # Prefect may log after it

    assert "did you mean corrupt.sigma" in message("train", "--set", "corrupt.sgima=1", code=2)
    assert "no default DVC remote" in message("train", "--push", code=1)
    assert "data.path = 'nothing'" in message("train", "--set", "data.path=nothing", code=3)
    several = ["--set", "corrupt.sigma=0.2,0.6", "--set", "distill.noise.sigma_max=0.5,80"]
    combination = "combination corrupt.sigma=0.6, distill.noise.sigma_max=0.5 is not valid"
    assert combination in message("sweep", *several, code=2)
    assert "no worker of the pool 'gpu' is online" in message("sweep", *several[:2], code=1)
    assert ask(project.env, "task_runs/count", {}) == 0
    assert executed(project) == []

    project.set({"pretrain.kimg": 666.0})
    printed = project.run(sys.executable, "-m", "flows.train", code=1).stderr
    _, _, message = printed.partition("\nerror: stage 'pretrain' failed with exit code 1:")
    assert "the loss is NaN" in message
    assert "Traceback" not in printed
    project.run("git", "checkout", "-q", "params.yaml")
    names = {one["name"]: one["state_name"] for one in ask(project.env, "task_runs/filter", {})}
    assert names == {"prepare": "Ran", "pretrain": "Failed"}
    assert executed(project) == ["prepare 0.5 sid", "pretrain 0.5 sid"]
    (progress,) = [
        one["data"]
        for one in ask(project.env, "artifacts/filter", {})
        if one["key"] == "progress-prepare"
    ]
    assert progress == 100


@pytest.mark.slow
def test_a_sweep_by_workers_computes_what_one_without_a_server_has_left(project, prefect_home):
    alone = Workspace(project.root)
    alone.env["PREFECT_HOME"] = str(prefect_home())
    before = looks(project)
    sweep = [sys.executable, "-m", "flows.sweep", "--set", "corrupt.sigma=0.2"]
    done = alone.run(*sweep, "--set", "distill.divergence=sid,dmd")
    assert "all 2 runs completed" in done.stderr
    made = ["prepare 0.2 sid", "pretrain 0.2 sid", "evaluate 0.2 sid", "evaluate 0.2 dmd"]
    # An earlier test may have prepared the images.
    assert [line for line in executed(project) if "prepare" not in line] == made[1:]

    page = project.root / "reports/sweeps/sigma-divergence/comparison.html"
    assert "reports/experiments/sigma-0.2-divergence-dmd" in check(page, COMPARISON_SCRIPT).text
    assert len(page.with_suffix(".csv").read_text().splitlines()) == 3

    # Two workers at the same time; one run fails, and the other does not care.
    workers = [
        project.start(sys.executable, "-m", "prefect", "worker", "start", "-p", "gpu", "-n", name)
        for name in ("one", "two")
    ]
    try:
        pool = "work_pools/gpu/workers/filter"
        wait_until(lambda: len(ask(project.env, pool, {})) == 2, 120, "two workers")
        failed = project.run(*sweep, "--set", "pretrain.kimg=256.0,666.0", code=1)
    finally:
        for worker in workers:
            end(worker, signal.SIGTERM)
            worker.communicate(timeout=60)
    assert "\n1 of 2 runs failed: sigma-0.2-kimg-666" in failed.stderr
    # The values of params.yaml, written out, are no other computation.
    assert executed(project) == ["pretrain 0.2 sid"]
    assert looks(project) == before
    assert sorted(name[:20] for name in experiments(project)) == [
        "sigma-0.2-divergence",
        "sigma-0.2-divergence",
        "sigma-0.2-kimg-256.0",
    ]

    shown: dict[str, list[str]] = {}
    for one in ask(project.env, "artifacts/filter", {}):
        shown.setdefault(one["key"], []).append(one["data"])
    (table,) = map(json.loads, shown["sweep"])
    assert [row["state"] for row in table] == ["Completed", "Failed"]
    assert table[0]["one-step generator: Frechet"] == 2.0
    stages = [[row["state"] for row in json.loads(rows)] for rows in shown["stages"]]
    assert ["Restored", "Restored", "Restored"] in stages
    assert ["Restored", "Failed"] in stages
    assert "1 run" in shown["comparison"][0]


@pytest.mark.slow
def test_unchanged_stages_are_shown_as_cached_and_a_stopped_experiment_leaves_nothing(project):
    project.run("dvc", "repro")
    executed(project)
    known = {one["id"] for one in ask(project.env, "task_runs/filter", {})}
    printed = project.run(sys.executable, "-m", "flows.train").stderr
    assert printed.count("Finished in state Cached('unchanged") == 3
    tasks = [one for one in ask(project.env, "task_runs/filter", {}) if one["id"] not in known]
    stages = ("prepare", "pretrain", "evaluate")
    assert {one["name"]: one["state_name"] for one in tasks} == dict.fromkeys(stages, "Cached")
    assert executed(project) == []

    before, shown = looks(project), experiments(project)
    hold, log = project.root / "hold-pretrain", project.root / "executed"
    hold.touch()
    options = ["--set", "corrupt.sigma=0.9", "--name", "long"]
    process = project.start(sys.executable, "-m", "flows.train", *options)
    copy = project.root / ".dvc/tmp/exps/flows/long"
    try:
        begun = "pretrain 0.9 sid\n"
        wait_until(lambda: log.is_file() and begun in log.read_text(), 300, "a stage", process)
        (stage,) = [
            one
            for one in psutil.Process(process.pid).children(recursive=True)
            if [*one.cmdline()[-2:]] == ["work.py", "pretrain"] and one.name() != "sh"
        ]
        process.terminate()
        printed, _ = process.communicate(timeout=300)
    finally:
        end(process)
        hold.unlink()
        executed(project)
    assert process.returncode == 128 + signal.SIGTERM, printed
    assert "stopped; the same command continues" in printed
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE
    assert not copy.exists()
    assert (looks(project), experiments(project)) == (before, shown)
