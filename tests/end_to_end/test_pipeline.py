"""The journeys of a user in a fresh clone, through the real commands, on a small problem."""

import json
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing, suppress

import pytest

from dsd import load_generator
from pipeline.__main__ import main
from pipeline.stages import STAGES
from sandbox import ROOT
from sandbox.pages import check
from sandbox.ports import free_port
from sandbox.workspace import Workspace, end, outcomes, wait_until

pytestmark = pytest.mark.slow


def runs(workspace):
    """Run id -> (stage, sigma, status) of all MLflow runs."""
    query = """
        select r.run_uuid, t.value, cast(p.value as real), r.status from runs r
        join tags t on t.run_uuid = r.run_uuid and t.key = 'dvc.stage'
        join params p on p.run_uuid = r.run_uuid and p.key = 'corrupt.sigma'
    """
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as store:
        return {run_id: tuple(rest) for run_id, *rest in store.execute(query)}


def registered_models(workspace):
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as store:
        return [name for (name,) in store.execute("select name from registered_models")]


def processor_seconds():
    """Time that this process's children have used so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_a_fresh_clone_needs_one_command_and_a_second_does_nothing(workspace):
    # Tests of the flow, which stop stages half-way, may have come before.
    workspace.back_to_the_first_run()
    assert workspace.first == dict.fromkeys(STAGES, "ran")
    for stage in STAGES:
        assert any((workspace.root / "reports" / stage).iterdir())
    summary = workspace.read("reports/summary.json")
    models = {"generator", "teacher_full", "teacher_truncated", "teacher_truncated_exact"}
    assert {*models, "protocol"} <= set(summary)
    for model in models:
        assert summary[model]["frechet"] > 0
        assert summary[model]["proximal_frechet"] > 0
    # Nothing but the lock is new to git: every output is ignored.
    assert workspace.run("git", "status", "--porcelain").stdout.split() == ["??", "dvc.lock"]
    known = runs(workspace)
    for stage in STAGES:
        assert known[workspace.run_id(stage)] == (stage, 0.5, "FINISHED")
    assert registered_models(workspace) == ["one-step-generator"]

    # Processor time: other work on the machine does not change it.
    start = processor_seconds()
    assert workspace.repro() == dict.fromkeys(STAGES, "cached")
    assert processor_seconds() - start < 4
    assert runs(workspace) == known


def test_the_first_run_had_no_network(workspace):
    if not workspace.offline:
        pytest.skip("this machine does not let a process give up its network (unshare -rn)")
    assert workspace.first == dict.fromkeys(STAGES, "ran")


def test_the_generator_answers_over_http(workspace):
    """What the README says: images from a seed, through MLflow's own server."""
    workspace.back_to_the_first_run()
    port = free_port()
    model = "models:/one-step-generator/1"  # too short a training for a champion
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model]
    server = Workspace(workspace.root)
    server.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{workspace.root / 'mlflow.db'}"
    process = server.start(*serve, "--env-manager", "local", "--port", str(port))

    def ask(path, document=None):
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/{path}", body, {"Content-Type": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=60).read()

    def answers():
        with suppress(OSError):
            return ask("ping") is not None
        return False

    try:
        wait_until(answers, 300, "the model's server", process)
        rows = [{"seed": 7, "num_images": 3}]
        images = json.loads(ask("invocations", {"dataframe_records": rows}))["predictions"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask("invocations", {"dataframe_records": [{"seed": 7, "num_images": 0}]})
        assert "num_images" in refused.value.read().decode()
    finally:
        end(process)
        process.communicate()
    generator = load_generator(workspace.root / "data" / "distill" / "generator")
    assert images == generator.sample(3, seed=7).tolist()


def test_a_changed_parameter_reruns_what_it_touches_and_comes_back_for_free(workspace):
    workspace.back_to_the_first_run()
    first = {stage: workspace.run_id(stage) for stage in STAGES}
    before = runs(workspace)
    workspace.commit("first result")

    workspace.set({"distill.alpha": 1.0})
    touched = {"distill": "ran", "evaluate": "ran"}
    assert workspace.repro() == {**dict.fromkeys(STAGES, "cached"), **touched}
    new = [run for run_id, run in runs(workspace).items() if run_id not in before]
    assert sorted(new) == [(stage, 0.5, "FINISHED") for stage in touched]

    changed = json.loads(workspace.run("dvc", "params", "diff", "--json").stdout)
    assert [*changed["params.yaml"]] == ["distill.alpha"]
    assert changed["params.yaml"]["distill.alpha"].items() >= {"old": 1.2, "new": 1.0}.items()
    metrics = json.loads(workspace.run("dvc", "metrics", "diff", "--json").stdout)
    # So short a training may move few of the digits that are shown.
    assert {*metrics["reports/metrics.json"]} & {"frechet", "proximal", "gain"}

    count = len(runs(workspace))
    workspace.back_to_the_first_run()
    assert {stage: workspace.run_id(stage) for stage in STAGES} == first
    assert len(runs(workspace)) == count


def test_results_are_shown_without_options(workspace, monkeypatch, capsys):
    workspace.back_to_the_first_run()
    html = workspace.run("dvc", "plots", "show").stdout.strip()
    assert html.endswith("index.html")
    plots = (workspace.root / "dvc_plots" / "index.html").read_text()
    assert plots.count("vegaEmbed(") > 3
    assert "cdn." not in plots
    # DVC takes no page for a plot, so its own page leads to ours.
    (link,) = re.findall(r'href="([^"]*report\.html)"', plots)
    report = check((workspace.root / "dvc_plots" / link).resolve())
    assert {"result", "images", "training", "choice", "noise"} <= set(report.ids)
    assert workspace.run_id("distill") in report.text
    # Of a commit without dvc.lock, DVC would say "!".
    workspace.commit("result")
    shown = workspace.run("dvc", "exp", "show", "--csv").stdout
    assert {"frechet", "proximal", "gain"} <= {*shown.splitlines()[0].split(",")}
    assert "!" not in shown

    monkeypatch.chdir(workspace.root)
    assert main(["compare"]) == 0
    assert re.match(r"\d+ runs?\b", capsys.readouterr().out)
    script = (ROOT / "pipeline/reports/templates/comparison.js").read_text()
    comparison = check(workspace.root / "reports" / "comparison.html", script)
    assert workspace.run_id("evaluate")[:8] in comparison.text
    assert main(["show"]) == 0
    assert "comparison.png" in capsys.readouterr().out


def test_bad_values_are_refused_before_anything_runs(workspace, monkeypatch, capsys):
    workspace.back_to_the_first_run()
    before = runs(workspace)
    monkeypatch.chdir(workspace.root)
    for change, code in (({"data.path": "data/nowhere"}, 3), ({"corrupt.sigma": -0.1}, 2)):
        workspace.set(change)
        assert main(["check"]) == code
        lines = capsys.readouterr().err.splitlines()
        (message,) = [line for line in lines if not line.endswith(" so far")]  # a busy machine
        assert next(iter(change)) in message
    assert workspace.run("dvc", "repro", code=None).returncode != 0
    assert runs(workspace) == before


def test_a_folder_anywhere_is_a_source(workspace, tmp_path):
    from PIL import Image

    workspace.back_to_the_first_run()
    for number in range(8):
        Image.new("L", (16, 16), 30 * number).save(tmp_path / f"{number}.png")
    source = {"data.source": "folder", "data.path": str(tmp_path), "data.pad": 0}
    workspace.set(source | {"corrupt.num_heldout": 2})
    assert workspace.repro("-s", "prepare") == {"prepare": "ran"}
    assert workspace.read("reports/prepare/summary.json")["count"] == 8
    Image.new("L", (16, 16), 255).save(tmp_path / "9.png")
    assert workspace.repro("-s", "prepare") == {"prepare": "ran"}, "a new image is a change"


def test_an_interrupted_training_goes_on_and_ends_with_the_same_bytes(workspace):
    workspace.back_to_the_first_run()
    whole = workspace.digest("data/pretrain")
    states = workspace.root / ".dsd" / "state" / "pretrain"
    shutil.rmtree(states, ignore_errors=True)
    process = workspace.start("dvc", "repro", "-f", "-s", "pretrain")
    try:
        wait_until(lambda: any(states.glob("*/state")), 600, "a saved state", process)
        end(process, signal.SIGINT)
        printed, _ = process.communicate(timeout=300)
    finally:
        end(process)
    assert process.returncode != 0
    assert re.search(r"stopped after [\d,]+ images; the same command continues", printed)

    again = workspace.run("dvc", "repro", "-f", "-s", "pretrain")
    assert outcomes(again.stdout) == {"pretrain": "ran"}
    assert re.search(r"resumed after [\d,]+ images", again.stdout + again.stderr)
    assert workspace.digest("data/pretrain") == whole


def test_the_command_lines_answer_soon_and_without_heavy_imports(workspace):
    for module in ("pipeline", "flows.train"):
        code = (
            f"import runpy, sys; sys.argv = ['x', '--help']\n"
            f"try: runpy.run_module('{module}', run_name='__main__')\n"
            f"except SystemExit: pass\n"
            f"print(sorted({{'torch', 'mlflow', 'prefect', 'dvc'}} & set(sys.modules)))"
        )
        assert workspace.run(sys.executable, "-c", code).stdout.splitlines()[-1] == "[]"


def test_make_names_every_target():
    done = subprocess.run(["make", "help"], cwd=ROOT, text=True, capture_output=True, check=True)
    targets = {line.split()[0] for line in done.stdout.splitlines()}
    assert {"setup", "run", "test", "lint", "types", "up"} <= targets


def test_another_clone_gets_a_finished_run_from_the_remote_and_computes_nothing(
    workspace, tmp_path
):
    workspace.back_to_the_first_run()
    add = ["dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store")]
    workspace.run(*add)
    workspace.run("dvc", "push", "--run-cache")
    workspace.run("dvc", "remote", "remove", "--local", "store")
    workspace.commit("result")
    workspace.run("git", "clone", "-q", str(workspace.root), str(tmp_path / "other"))
    other = Workspace(tmp_path / "other")
    other.run(*add)

    other.run("dvc", "pull", "--run-cache")
    pulled, made = (one.digest("data/distill") for one in (other, workspace))
    assert [*pulled.values()] == [*made.values()]
    assert other.read("reports/summary.json") == workspace.read("reports/summary.json")

    # A run that no commit holds comes back by what it was made from.
    (other.root / "dvc.lock").unlink()
    for stage in STAGES:
        shutil.rmtree(other.root / "data" / stage, ignore_errors=True)
    assert other.repro("--pull") == dict.fromkeys(STAGES, "restored")
    assert not (other.root / "mlflow.db").exists()
