"""MLflow: one run for each executed stage, whatever happens to the stage or to the store."""

import errno
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import grimp
import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image
from tiny_model import save_tiny_generator

from dsd.model.checkpoint import read_spec
from dsd.utils.errors import Interrupted, NonFiniteError
from pipeline.params.reader import flatten, load_params
from pipeline.runtime import addresses
from pipeline.stage_io.paths import Paths
from pipeline.tracking import champion, session
from pipeline.tracking import registry as model_registry
from pipeline.tracking import store as mlflow_store
from pipeline.tracking import tracker as tracking
from sandbox import ROOT
from sandbox.tiny_params import set_params


@pytest.fixture(scope="module")
def fresh_store(tmp_path_factory):
    """A store with tables and nothing in them; making one takes seconds."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def paths(tmp_path, fresh_store, monkeypatch):
    # Registering a model makes its store MLflow's own by a variable, which must go with the test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    # A busy machine may need more than the seconds of a stage that was stopped. A thread that is
    # left behind retries for 100 s to open a store that is gone, and no other can open one.
    for status in ("FAILED", "KILLED"):
        monkeypatch.setitem(tracking._CLOSE_SECONDS, status, 120.0)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, {"corrupt.sigma": 0.5})
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    return Paths(tmp_path)


@pytest.fixture
def down(monkeypatch):
    """Make the store refuse everything until told otherwise."""
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store, "quiet_client", _refuse)
        yield patch.undo


def _refuse(uri):
    raise ConnectionError("nobody answers")


def client_of(paths):
    uri = f"sqlite:///{paths.tracking_store}"
    return MlflowClient(uri, registry_uri=uri)


def runs_of(paths, role="stage"):
    """Runs of stages, or those of whole pipelines; the newest first."""
    client = client_of(paths)
    experiment = client.get_experiment_by_name("dsd")
    found = [] if experiment is None else client.search_runs([experiment.experiment_id])
    return [run for run in found if ("pipeline.role" in run.data.tags) == (role == "pipeline")]


def history(paths, run, name):
    found = client_of(paths).get_metric_history(run.info.run_id, name)
    return sorted((metric.step, metric.value) for metric in found)


def files_of(paths, run, folder=None):
    return [file.path for file in client_of(paths).list_artifacts(run.info.run_id, folder)]


def run_file(paths, stage):
    return json.loads((paths.report(stage) / "run.json").read_text())


def track(paths, stage, steps=(), error=None, scale=0.5):
    with tracking.run(stage, load_params(paths.root), paths) as log:
        for images in steps:
            log.metrics(images, {"loss": images * scale})
        if error is not None:
            raise error


def report(paths, stage):
    folder = paths.report(stage)
    (folder / "grids").mkdir(parents=True)
    (folder / "loss.csv").write_text("images,loss\n")
    (folder / "grids" / "last.png").write_bytes(b"picture")
    (folder / "secret.bin").write_bytes(b"not attached")


def test_a_finished_stage_is_one_run_with_everything(paths):
    report(paths, "pretrain")
    track(paths, "pretrain", steps=(128, 256))
    (run,) = runs_of(paths)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "pretrain: sigma 0.5, sid"
    assert history(paths, run, "loss") == [(128, 64.0), (256, 128.0)]
    flat = flatten(load_params(paths.root))
    assert run.data.params == {k: "null" if v is None else str(v) for k, v in flat.items()}
    assert run.data.tags["dvc.stage"] == "pretrain"
    assert run.data.tags["sigma"] == "0.5"
    assert run.data.tags["source"] == "data/embedded/fashion-mnist.parquet"
    assert files_of(paths, run) == ["grids", "loss.csv"]
    assert files_of(paths, run, "grids") == ["grids/last.png"]
    assert str(paths.tracking_artifacts) in run.info.artifact_uri
    assert run_file(paths, "pretrain") == {
        "run_id": run.info.run_id,
        "experiment": "dsd",
        "tracking_uri": "sqlite:///mlflow.db",
        "token": run_file(paths, "pretrain")["token"],
        "seconds": run_file(paths, "pretrain")["seconds"],
        "reason": None,
    }
    assert 0 < run_file(paths, "pretrain")["seconds"] < 60
    assert list(paths.tracking_state("pretrain").iterdir()) == []


ODD = ["a b", "\N{LATIN SMALL LETTER U WITH DIAERESIS}", "c#d", "e?f=1&g", "h%41i", "%20?#/j"]


@pytest.mark.parametrize("name", ODD)
def test_a_workspace_of_any_name_has_its_store_and_files_inside(
    name, paths, tmp_path, fresh_store, tmp_path_factory
):
    around = tmp_path_factory.mktemp("around")
    odd = Paths(around / name)
    odd.root.mkdir(parents=True)
    shutil.copy(tmp_path / "params.yaml", odd.root)
    shutil.copy(fresh_store, odd.tracking_store)
    report(odd, "pretrain")
    track(odd, "pretrain", steps=(128, 256))
    with sqlite3.connect(odd.tracking_store) as store:
        stages = "select run_uuid, status from runs join tags using (run_uuid)"
        ((run_id, status),) = store.execute(f"{stages} where key = 'dvc.stage'")
    assert status == "FINISHED"
    assert run_file(odd, "pretrain")["tracking_uri"] == "sqlite:///mlflow.db"
    kept = odd.tracking_artifacts / run_id / "artifacts" / "grids" / "last.png"
    assert kept.read_bytes() == b"picture"
    client = MlflowClient(addresses.tracking_address(odd))
    fetched = client.download_artifacts(run_id, "grids/last.png", str(tmp_path))
    assert Path(fetched).read_bytes() == b"picture"
    addresses.remove_stray_folder(addresses.tracking_address(odd))  # of this client
    assert [each.name for each in around.iterdir()] == [name.partition("/")[0]]


def test_a_new_store_and_a_model_are_made_in_a_workspace_of_any_name(tmp_path, paths):
    odd = Paths(tmp_path / "around" / "%41 b?#\N{LATIN SMALL LETTER U WITH DIAERESIS}")
    odd.root.mkdir(parents=True)
    shutil.copy(tmp_path / "params.yaml", odd.root)
    save_tiny_generator(odd.artifact("distill") / "generator")
    track(odd, "distill", steps=(128,))
    assert odd.tracking_store.is_file()
    assert [each.name for each in (tmp_path / "around").iterdir()] == [odd.root.name]
    mlflow.set_tracking_uri(addresses.tracking_address(odd))
    (tmp_path / "copy").mkdir()  # MLflow would misread the path of the model where it lies
    model = mlflow.pyfunc.load_model(
        "models:/one-step-generator/1", dst_path=str(tmp_path / "copy")
    )
    images = model.predict(pd.DataFrame({"seed": [3], "num_images": [2]}))
    assert images.shape == (2, 1, 8, 8)


def test_a_relative_address_is_the_home_s_and_outlives_an_experiment(paths, tmp_path, monkeypatch):
    copy = Paths(tmp_path / ".dvc/tmp/exps/flows/one")
    copy.root.mkdir(parents=True)
    shutil.copy(tmp_path / "params.yaml", copy.root)
    paths.summary.parent.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.chdir(copy.root)  # as a flow runs the stages of an experiment
    copy.summary.parent.mkdir()
    copy.summary.write_text(json.dumps({"generator": {"proximal_frechet": 2.5}, "protocol": {}}))
    track(copy, "evaluate")
    assert not [*copy.root.rglob("*.db")]
    (run,) = runs_of(paths)
    assert run.info.status == "FINISHED"
    shutil.rmtree(copy.root)
    monkeypatch.chdir(tmp_path)
    (found,) = tracking.evaluations(paths)
    assert found.run_id == run.info.run_id


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("sqlite:///mlflow.db", "sqlite:////h/mlflow.db"),
        ("sqlite:///../x/my.db?timeout=9", "sqlite:////h/../x/my.db?timeout=9"),
        ("sqlite+pysqlite:///a%3Fb.db", "sqlite+pysqlite:////h/a%3Fb.db"),
        ("sqlite:////abs/my.db", "sqlite:////abs/my.db"),
        ("sqlite://", "sqlite://"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("mlruns", "file:///h/mlruns"),
        ("./my runs", "file:///h/my%20runs"),
        ("file:mlruns", "file:///h/mlruns"),
        ("file:///abs/a%20b", "file:///abs/a%20b"),
        ("http://me:secret@host:5000/x", "http://me:secret@host:5000/x"),
        ("postgresql+psycopg2://me:p%40ss@host/db", "postgresql+psycopg2://me:p%40ss@host/db"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
    ],
)
@pytest.mark.parametrize("root", ["/h", "/h/.dvc/tmp/exps/flows/one"])
def test_addresses_are_seen_from_the_home(root, given, found):
    assert addresses.absolute_address(given, Path(root)) == found


def test_a_run_says_which_commit_and_experiment_it_is_from(paths, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "fizzy-owl")
    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=paths.root, check=True)
    track(paths, "prepare")
    (paths.root / "params.yaml").open("a").write("# edited\n")
    track(paths, "corrupt")
    corrupt, prepare = runs_of(paths)
    assert prepare.data.tags["dvc.exp"] == "fizzy-owl"
    assert len(prepare.data.tags["mlflow.source.git.commit"]) == 40
    assert prepare.data.tags["git.dirty"] == "false"
    assert corrupt.data.tags["git.dirty"] == "true"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("bug"), "FAILED"),
        (Interrupted("saved", 15), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_a_stage_that_does_not_finish_is_marked_so_and_writes_no_run_file(paths, error, status):
    with pytest.raises(type(error)):
        track(paths, "pretrain", steps=(128,), error=error)
    (run,) = runs_of(paths)
    assert run.info.status == status
    assert history(paths, run, "loss") == [(128, 64.0)]
    assert not (paths.report("pretrain") / "run.json").exists()


@pytest.mark.parametrize("first", [128, 256])
def test_a_resumed_stage_goes_on_in_its_run_and_repeats_no_number(first, paths):
    """Whether it records only what comes after its state, or also what the state says."""
    with pytest.raises(Interrupted):
        track(paths, "pretrain", steps=(128, 256, 384), error=Interrupted("saved", 2))
    track(paths, "pretrain", steps=range(first, 513, 128))
    (run,) = runs_of(paths)
    assert run.info.status == "FINISHED"
    assert history(paths, run, "loss") == [(n, n / 2) for n in (128, 256, 384, 512)]


@pytest.mark.parametrize(("first", "scale"), [(128, 0.25), (64, 0.5)])
def test_a_stage_that_starts_from_the_beginning_again_is_a_new_run(
    first, scale, paths, monkeypatch
):
    # The thread has looked for abandoned runs long before the first number, as a rule.
    monkeypatch.setattr(tracking.RunTracker, "_tidy", lambda self: True)
    with pytest.raises(Interrupted):
        track(paths, "pretrain", steps=(128, 256), error=Interrupted("saved", 2))
    track(paths, "pretrain", steps=(first, 256, 384), scale=scale)
    new, old = runs_of(paths)
    assert (old.info.status, new.info.status) == ("KILLED", "FINISHED")
    assert len(history(paths, old, "loss")) == 2
    assert len(history(paths, new, "loss")) == 3
    assert list(paths.tracking_state("pretrain").iterdir()) == []


def test_other_parameters_are_another_run(paths):
    with pytest.raises(Interrupted):
        track(paths, "pretrain", steps=(128,), error=Interrupted("saved", 2))
    set_params(paths.root, {"corrupt.sigma": 0.25})
    track(paths, "pretrain", steps=(256,))
    assert sorted(run.data.tags["sigma"] for run in runs_of(paths)) == ["0.25", "0.5"]


def test_a_run_whose_process_was_killed_is_closed_by_the_next_one(paths, monkeypatch):
    # As SIGKILL leaves it: running, numbers in the journal, nobody holding the lock.
    with monkeypatch.context() as dead:
        dead.setattr(tracking.RunTracker, "_work", lambda self: None)
        log = tracking.RunTracker(
            "pretrain", load_params(paths.root), paths, tracking.StopSignal()
        )
    log.metrics(128, {"loss": 64.0})
    log._send(last=False)
    log.metrics(256, {"loss": 128.0})
    log._session.release()
    set_params(paths.root, {"corrupt.sigma": 0.25})
    with tracking.run("pretrain", load_params(paths.root), paths):
        deadline = time.monotonic() + 20
        while runs_of(paths)[-1].info.status == "RUNNING" and time.monotonic() < deadline:
            time.sleep(0.2)
    assert sorted(run.info.status for run in runs_of(paths)) == ["FINISHED", "KILLED"]


def test_a_run_whose_process_was_killed_before_it_noted_its_id_is_found(paths, monkeypatch):
    params = load_params(paths.root)
    record = tracking._make_record("pretrain", params, paths, f"sqlite:///{paths.tracking_store}")
    killed = session.open_session(paths.tracking_state("pretrain"), record)
    killed.journal.append(128, {"loss": 64.0}, 1)

    def die(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(session.Session, "save", die)
    with pytest.raises(KeyboardInterrupt):
        mlflow_store.Store(record.uri, paths).flush(killed)
    monkeypatch.undo()
    killed.release()
    track(paths, "pretrain", steps=(256,))
    (run,) = runs_of(paths)
    assert history(paths, run, "loss") == [(128, 64.0), (256, 128.0)]


def test_a_dead_store_costs_one_warning_and_sync_sends_everything_once(paths, down, capsys):
    report(paths, "pretrain")
    track(paths, "pretrain", steps=range(128, 1281, 128))
    assert capsys.readouterr().err.count("warning: ") == 1
    assert run_file(paths, "pretrain")["run_id"] is None
    assert "nobody answers" in run_file(paths, "pretrain")["reason"]
    assert tracking.sync(paths) == (0, 1)
    down()
    assert tracking.sync(paths) == (1, 0)
    (run,) = runs_of(paths)
    assert run.info.status == "FINISHED"
    assert len(history(paths, run, "loss")) == 10
    assert files_of(paths, run) == ["grids", "loss.csv"]
    assert tracking.sync(paths) == (0, 0)
    assert len(runs_of(paths)) == 1


def test_files_of_a_later_run_are_not_attached_to_an_earlier_one(paths, down):
    report(paths, "pretrain")
    track(paths, "pretrain", steps=(128,))
    run_json = paths.report("pretrain") / "run.json"
    run_json.write_text(json.dumps(run_file(paths, "pretrain") | {"token": "another"}))
    down()
    tracking.sync(paths)
    (run,) = runs_of(paths)
    assert files_of(paths, run) == []


def test_numbers_sent_twice_are_kept_once(paths, monkeypatch):
    """The process may die after MLflow took a batch and before that is noted."""
    monkeypatch.setattr(mlflow_store, "_send", _send_without_noting)
    with pytest.raises(Interrupted):
        track(paths, "pretrain", steps=(128, 256), error=Interrupted("saved", 2))
    monkeypatch.undo()
    track(paths, "pretrain", steps=(384,))
    (run,) = runs_of(paths)
    assert [step for step, _ in history(paths, run, "loss")] == [128, 256, 384]


def _send_without_noting(client, run_id, session, batch, end):
    client.log_batch(run_id, metrics=batch)


def test_many_numbers_and_odd_ones_arrive(paths):
    with tracking.run("pretrain", load_params(paths.root), paths) as log:
        start = time.thread_time()
        for images in range(1500):
            log.metrics(images, {"gap": 1.0, "loss": 2.0})
        seconds = time.thread_time() - start
        log.metrics(1500, {"loss": float("nan"), "weird[0]=?": 3.0})
    assert seconds < 3
    (run,) = runs_of(paths)
    assert len(history(paths, run, "gap")) == 1500
    assert run.data.metrics["weird_0___"] == 3.0


def test_the_evaluation_s_run_has_the_headlines_of_the_summary(paths):
    row = {"frechet": None, "proximal_frechet": 2.5, "by_features": {"inception": {"recall": 0.5}}}
    teacher = {"proximal_frechet": 5.0, "by_features": {"inception": {"recall": 0.75}}}
    protocol = {"num_samples": 10, "features": "inception"}
    paths.summary.parent.mkdir()
    paths.summary.write_text(
        json.dumps({"generator": row, "teacher_full": teacher, "protocol": protocol})
    )
    paths.report_page.write_text("<html></html>")
    track(paths, "evaluate")
    (run,), (pipeline,) = runs_of(paths), runs_of(paths, "pipeline")
    assert run.data.metrics == {
        "proximal/generator": 2.5, "proximal/teacher_full": 5.0, "generator/recall": 0.5,
        "generator/gain_percent": 50.0,
    }  # fmt: skip
    assert pipeline.data.metrics == run.data.metrics
    assert files_of(paths, run) == ["report.html", "summary.json"]


def note(run):
    return run.data.tags["mlflow.note.content"]


def test_stages_of_one_run_of_the_pipeline_have_one_parent(paths):
    set_params(paths.root, {"corrupt.sigma": 0.25, "distill.divergence": "dmd"})
    for stage in ("corrupt", "pretrain"):
        track(paths, stage)
    with pytest.raises(Interrupted):
        track(paths, "distill", error=Interrupted("saved", 2))
    (parent,) = runs_of(paths, "pipeline")
    assert (parent.info.run_name, parent.info.status) == ("sigma 0.25, dmd", "KILLED")
    save_tiny_generator(paths.artifact("distill") / "generator")
    track(paths, "distill")
    (parent,) = runs_of(paths, "pipeline")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs_of(paths)} == {parent.info.run_id}
    assert parent.data.params == runs_of(paths)[0].data.params
    assert "| `corrupt.sigma` | 0.25 | 0.5 |" in note(parent)
    assert f"Stage `pretrain` of [sigma 0.25, dmd](#/experiments/1/runs/{parent.info.run_id})."\
        in map(note, runs_of(paths))  # fmt: skip


def test_a_pipeline_that_runs_once_more_is_another_run(paths):
    """The same parameters, other code: from a stage on, or from the first one."""
    track(paths, "corrupt")
    track(paths, "pretrain")
    track(paths, "pretrain")  # its code changed
    track(paths, "corrupt")
    track(paths, "pretrain")
    new, middle, old = runs_of(paths, "pipeline")
    of = {parent.info.run_id: [] for parent in (new, middle, old)}
    for run in runs_of(paths):
        of[run.data.tags["mlflow.parentRunId"]].append(run.data.tags["dvc.stage"])
    assert [*of.values()] == [["pretrain", "corrupt"], ["pretrain"], ["pretrain", "corrupt"]]


@pytest.mark.parametrize("change", [{"distill.alpha": 1.0}, {"run.eval_batch_size": 7}])
def test_only_parameters_that_decide_results_make_another_pipeline(change, paths, monkeypatch):
    track(paths, "corrupt")
    set_params(paths.root, change)
    track(paths, "pretrain")
    expected = 2 if "distill.alpha" in change else 1
    assert len(runs_of(paths, "pipeline")) == expected
    monkeypatch.setenv("DVC_EXP_NAME", "owl")
    track(paths, "distill")
    assert len(runs_of(paths, "pipeline")) == expected + 1


def test_a_stage_that_is_sent_late_joins_the_run_that_it_was_part_of(paths, down):
    track(paths, "corrupt")  # the store is away
    down()
    track(paths, "pretrain")
    assert tracking.sync(paths) == (1, 0)
    (parent,) = runs_of(paths, "pipeline")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs_of(paths)} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"


def test_a_deleted_parent_is_made_once_more(paths):
    with pytest.raises(Interrupted):
        track(paths, "pretrain", error=Interrupted("saved", 2))
    client_of(paths).delete_run(runs_of(paths, "pipeline")[0].info.run_id)
    track(paths, "pretrain")
    ((run,), (parent,)) = runs_of(paths), runs_of(paths, "pipeline")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_model_data_report_and_earlier_stages_are_a_click_away(paths):
    track(paths, "pretrain")
    earlier = run_file(paths, "pretrain")["run_id"]
    set_params(paths.root, {"distill.alpha": 1.0})
    folder = paths.artifact("distill") / "generator"
    save_tiny_generator(folder)
    track(paths, "distill")
    with tracking.run("evaluate", load_params(paths.root), paths) as log:
        log.reads("corrupt/train", digest="5" * 64, count=10, shape=(1, 8, 8))
        generator = {"proximal_frechet": 2.5, "weights_sha256": read_spec(folder).weights_sha256}
        protocol = {
            "features": "own",
            "extractors": {"own": "1"},
            "sigma": 0.5,
            "noisy_sha256": "",
        }
        paths.summary.write_text(json.dumps({"generator": generator, "protocol": protocol}))
    parent, _ = runs_of(paths, "pipeline")
    evaluation, distillation, _ = runs_of(paths)
    evaluation = client_of(paths).get_run(evaluation.info.run_id)  # with the models that it read
    experiment, run_id = evaluation.info.experiment_id, evaluation.info.run_id
    for target in (
        f"[Report](#/experiments/{experiment}/runs/{run_id}/artifacts/report.html)",
        "[model version 1](#/models/one-step-generator/versions/1)",
        f"[pretrain](#/experiments/{experiment}/runs/{earlier})",
        "| `proximal/generator` | 2.5 | smaller |",
    ):
        assert target in note(parent)
    assert distillation.info.run_id not in note(parent)
    (model,) = parent.outputs.model_outputs
    assert evaluation.inputs.model_inputs[0].model_id == model.model_id
    assert [each.dataset.name for each in parent.inputs.dataset_inputs] == ["corrupt/train"]


def test_a_server_that_never_answers_holds_up_neither_stage_nor_exit(paths, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://user:secret@127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setitem(tracking._CLOSE_SECONDS, "KILLED", 5.0)  # as it is
        start = time.perf_counter()
        with pytest.raises(Interrupted):
            track(paths, "pretrain", steps=range(1000), error=Interrupted("saved", 15))
        assert time.perf_counter() - start < 15
    err = capsys.readouterr().err
    assert "has not taken this run" in err
    assert "secret" not in err


def test_a_store_too_slow_for_the_end_of_a_stage_is_not_a_kill(paths, monkeypatch, capsys):
    """The stage is done, as DVC knows; another run with the same parameters is another run."""
    asked = threading.Event()
    monkeypatch.setitem(tracking._CLOSE_SECONDS, "FINISHED", 0.5)
    with monkeypatch.context() as slow:
        slow.setattr(mlflow_store.Store, "flush", lambda *_: asked.wait(60))
        track(paths, "pretrain", steps=(128,))
        assert "too slow" in capsys.readouterr().err
        (folder,) = paths.tracking_state("pretrain").iterdir()
        record = json.loads((folder / "record.json").read_text())
        assert (record["status"], record["handed_off"]) == ("FINISHED", True)
    asked.set()


def test_another_training_with_the_same_parameters_is_another_run(paths):
    """Its code or images are others, although its first number may be the same."""

    def train(name, losses, error=None):
        with tracking.run("pretrain", load_params(paths.root), paths) as log:
            log.trains(name)
            for images, loss in losses.items():
                log.metrics(images, {"loss": loss})
            if error is not None:
                raise error

    train_first = {0: 10.0, 128: 9.0, 256: 8.0}
    with pytest.raises(Interrupted):
        train("one", train_first, Interrupted("saved", 2))
    with pytest.raises(Interrupted):
        train("one", train_first, Interrupted("saved", 2))  # from the start: no state was there
    train("other", {0: 10.0, 128: 5.0, 256: 4.0, 384: 3.0})
    old, new = sorted(runs_of(paths), key=lambda run: run.info.start_time)
    assert (old.info.status, new.info.status) == ("KILLED", "FINISHED")
    assert [value for _, value in history(paths, old, "loss")] == [10.0, 9.0, 8.0]
    assert [value for _, value in history(paths, new, "loss")] == [10.0, 5.0, 4.0, 3.0]


def test_strikes_of_all_attempts_are_counted(paths):
    def diverge():
        with tracking.run("pretrain", load_params(paths.root), paths) as log:
            log.metrics(128, {"loss": 1.0})
            log.nonfinite_failures(1)
            log.nonfinite_failures(2)
            raise NonFiniteError("diverged")

    for _ in range(2):  # the second goes on where the first ended
        with pytest.raises(NonFiniteError):
            diverge()
    (run,) = runs_of(paths)
    assert history(paths, run, "nonfinite_failures") == [(0, 1.0), (1, 2.0), (2, 1.0), (3, 2.0)]


@pytest.mark.parametrize(("left", "status"), [(True, "FINISHED"), (False, "KILLED")])
def test_what_was_killed_while_it_was_sent_is_not_done(left, status, paths):
    record = session.Record(
        "pretrain", "name", "dsd", f"sqlite:///{paths.tracking_store}", {}, {}, 1
    )
    ended = session.open_session(paths.tracking_state("pretrain"), record)
    ended.end("FINISHED", 2)
    if left:
        ended.mark_handed_off()
    ended.release()
    assert tracking.sync(paths) == (1, 0)
    (run,) = runs_of(paths)
    assert run.info.status == status


def test_a_run_deleted_from_the_store_is_made_anew(paths):
    with pytest.raises(Interrupted):
        track(paths, "pretrain", steps=(128,), error=Interrupted("saved", 2))
    (run,) = runs_of(paths)
    client_of(paths).delete_run(run.info.run_id)
    track(paths, "pretrain", steps=(256,))
    (run,) = runs_of(paths)
    assert [step for step, _ in history(paths, run, "loss")] == [128, 256]


LOAD_ELSEWHERE = """
import sys, mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/one-step-generator/1")
rows = pd.DataFrame({"seed": [3, 4], "num_images": [2, 1]})
images, again = model.predict(rows), model.predict(rows)
assert (images == again).all() and not (images[0] == images[2]).all()
try:
    model.predict(pd.DataFrame({"seed": [0], "num_images": [0]}))
except ValueError as error:
    print(error)
from fastapi.testclient import TestClient
from mlflow.pyfunc.scoring_server import init
client = TestClient(init(model))
for count in (1, -4, 10**9, 1e30):
    rows = {"dataframe_records": [{"seed": 0, "num_images": count}]}
    answer = client.post("/invocations", json=rows)
    print(count, answer.status_code, "Traceback" in answer.text, answer.json().get("message"))
import dsd
print(images.shape, images.dtype, dsd.__file__)
"""


def test_the_generator_is_registered_without_pickle_and_works_anywhere(paths, tmp_path):
    save_tiny_generator(paths.artifact("distill") / "generator")
    track(paths, "distill", steps=(128,))
    (run,) = runs_of(paths)
    (version,) = client_of(paths).search_model_versions("name='one-step-generator'")
    assert version.run_id == run.info.run_id
    assert run.info.status == "FINISHED"
    files = [file for file in paths.tracking_artifacts.rglob("*") if file.is_file()]
    # Neither by name nor by content: pickle's second protocol and later begin with this byte.
    assert not {file.suffix for file in files} & {".pkl", ".pickle", ".pt", ".pth", ".joblib"}
    assert not [file for file in files if file.read_bytes()[:1] == b"\x80"]
    mlflow.set_tracking_uri(f"sqlite:///{paths.tracking_store}")
    model = mlflow.models.get_model_info("models:/one-step-generator/1")
    assert [column.name for column in model.signature.inputs] == ["seed", "num_images"]
    assert model.signature.outputs.inputs[0].shape == (-1, 1, 8, 8)
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, f"sqlite:///{paths.tracking_store}"],
        cwd=tmp_path.parent,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "seed must be >= 0 and num_images >= 1" in done.stdout
    assert "\n1 200 False None\n" in done.stdout
    for count in ("-4", "1000000000", "1e+30"):
        assert f"\n{count} 400 False Failed to predict data" in done.stdout
    assert "\nError: seed must be >= 0 and num_images >= 1, not 0 and -4\n" in done.stdout
    assert "(3, 1, 8, 8) uint8" in done.stdout


def test_a_version_holds_the_weights_that_its_tag_names(paths, tmp_path):
    client, model = client_of(paths), mlflow_store.MODEL_NAME
    run_id = client.create_run("0").info.run_id
    uri = f"sqlite:///{paths.tracking_store}"
    for seed in (0, 1, 1):
        save_tiny_generator(tmp_path / str(seed), seed)
        model_registry.register_generator(
            tmp_path / str(seed), run_id=run_id, name=model, tracking_uri=uri
        )
    versions = client.search_model_versions(f"name='{model}'")
    tags = {version.tags[champion.WEIGHTS_TAG] for version in versions}
    assert len(versions) == 2
    assert tags == {read_spec(tmp_path / seed).weights_sha256 for seed in "01"}


def test_what_the_served_model_imports_is_in_its_requirements():
    graph = grimp.build_graph("dsd", include_external_packages=True)
    imported = graph.find_upstream_modules("dsd.model.checkpoint")
    external = {name for name in imported if not name.startswith("dsd")}
    libraries = {name.lower() for name in external - sys.stdlib_module_names}
    libraries = {{"pil": "pillow"}.get(name, name) for name in libraries}
    assert libraries <= set(model_registry._REQUIREMENTS)


def test_secrets_of_an_address_are_not_shown(paths):
    shown = mlflow_store.shown_uri("postgresql://me:secret@host/db", paths)
    assert shown == "postgresql://host/db"


def evaluated(paths, weights, proximal, teacher=9.0, **protocol):
    """Track an evaluation of a generator, as the stage leaves it."""
    known = {
        "features": "inception",
        "extractors": {"inception": "v3", "other": "v1"},
        "sigma": 0.5,
        "seed": 0,
        "clean_sha256": "c",
        "noisy_sha256": "n",
    }
    summary = {
        "generator": {"proximal_frechet": proximal, "weights_sha256": weights},
        "teacher_full": {"proximal_frechet": teacher},
        "protocol": {**known, **protocol},
    }
    paths.summary.parent.mkdir(exist_ok=True)
    paths.summary.write_text(json.dumps(summary))
    track(paths, "evaluate")


@pytest.fixture
def versions(paths):
    """Three registered generators with weights a, b and c."""
    client = client_of(paths)
    client.create_registered_model(mlflow_store.MODEL_NAME)
    for weights in "abc":
        version = client.create_model_version(mlflow_store.MODEL_NAME, f"file:///{weights}")
        client.set_model_version_tag(
            mlflow_store.MODEL_NAME, version.version, champion.WEIGHTS_TAG, weights
        )


def champion_of(paths):
    found = client_of(paths).get_registered_model(mlflow_store.MODEL_NAME)
    return found.aliases.get(champion.CHAMPION)


def test_the_champion_is_the_version_with_the_smallest_proximal_distance(paths, versions):
    assert champion_of(paths) is None
    evaluated(paths, "b", 0.3)
    assert champion_of(paths) == 2
    evaluated(paths, "a", 0.4)
    assert champion_of(paths) == 2
    evaluated(paths, "c", 0.2, seed=1, noisy_sha256="another draw")
    assert champion_of(paths) == 3
    evaluated(paths, "unknown", 0.1)
    assert champion_of(paths) == 3
    version = client_of(paths).get_model_version(mlflow_store.MODEL_NAME, "3")
    assert version.tags["proximal_frechet"] == "0.2"
    newest = max(runs_of(paths), key=lambda run: run.data.metrics["proximal/generator"])
    assert version.tags["evaluation_run_id"] != newest.info.run_id


def test_a_generator_that_did_not_improve_on_its_teacher_is_no_champion(paths, versions):
    evaluated(paths, "a", 0.4)
    evaluated(paths, "b", 0.3, teacher=0.3)
    assert champion_of(paths) == 1
    version = client_of(paths).get_model_version(mlflow_store.MODEL_NAME, "2")
    assert version.tags["improved_on_teacher"] == "false"
    evaluated(paths, "c", 0.35, teacher=0.36)
    assert champion_of(paths) == 3


@pytest.mark.parametrize(
    "protocol",
    [
        {"sigma": 0.2},
        {"features": "other"},
        {"clean_sha256": "other images"},
        {"clean_sha256": None, "noisy_sha256": "other images"},
    ],
)
def test_what_was_measured_otherwise_does_not_compete(paths, versions, protocol):
    evaluated(paths, "a", 0.4)
    evaluated(paths, "b", 0.1, **protocol)
    assert champion_of(paths) == 1


def test_without_clean_images_the_noisy_ones_say_what_was_measured(paths, versions):
    evaluated(paths, "a", 0.4, clean_sha256=None)
    evaluated(paths, "b", 0.3, clean_sha256=None)
    assert champion_of(paths) == 2
    evaluated(paths, "c", 0.2, clean_sha256=None, noisy_sha256="others")
    assert champion_of(paths) == 2


def test_a_run_names_the_images_that_it_read_once(paths):
    def read(error=None):
        with tracking.run("pretrain", load_params(paths.root), paths) as log:
            log.reads("corrupt/train", digest="5" * 64, count=10, shape=(1, 8, 8))
            if error:
                raise error

    with pytest.raises(Interrupted):
        read(Interrupted("saved", 2))
    read()
    (run,) = runs_of(paths)
    (found,) = run.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("corrupt/train", "5" * 32)
    assert json.loads(found.dataset.profile) == {"num_images": 10}


def test_the_machine_s_load_is_journalled_like_any_number(paths, monkeypatch):
    monkeypatch.setattr(tracking, "_SEND_SECONDS", 0.05)

    def work(loss, error=None):
        with tracking.run("pretrain", load_params(paths.root), paths) as log:
            time.sleep(0.5)
            log.metrics(128, {"loss": loss})
            time.sleep(0.5)
            if error:
                raise error

    with pytest.raises(Interrupted):
        work(1.0, Interrupted("saved", 2))
    before = len(history(paths, runs_of(paths)[0], "system/cpu_utilization_percentage"))
    work(2.0)
    # Samples are no training steps: the stage that saw them and began again is a new run.
    _, second = sorted(runs_of(paths), key=lambda run: run.info.start_time)
    assert second.info.status == "FINISHED"
    steps = [step for step, _ in history(paths, second, "system/cpu_utilization_percentage")]
    assert before > 1
    assert steps == list(range(len(steps)))
    assert second.data.metrics["system/process_memory_megabytes"] > 10


def test_mlflow_shows_images_of_data_and_models_over_steps(paths):
    wanted = {("generator", 0), ("noisy_data", 0)}
    wanted |= {("teacher in training", 64), ("teacher in training", 128)}
    for stage, name in (("evaluate", "generator"), ("evaluate", "noisy_data"),
                        ("pretrain", "000000064"), ("pretrain", "000000128")):  # fmt: skip
        file = paths.report(stage) / "samples" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 128).save(file)
    track(paths, "pretrain")
    evaluated(paths, "a", 0.4)
    (run,) = runs_of(paths, "pipeline")
    shown = [Path(name).name.split("+") for name in files_of(paths, run, "images")]
    assert {(key, int(step)) for key, _, step, *_ in shown} == wanted
    assert run.data.tags["mlflow.loggedImages"] == "True"


def test_only_png_is_decoded_for_mlflow(paths, capsys):
    picture = paths.report("evaluate") / "samples" / "generator.png"
    picture.parent.mkdir(parents=True)
    Image.new("L", (8, 8), 128).save(picture, format="BMP")
    evaluated(paths, "a", 0.4)
    assert "cannot identify image file" in capsys.readouterr().err


def test_evaluations_that_end_at_once_agree_on_the_champion(paths, versions, monkeypatch):
    """Another one tags its version and crowns it between our two looks at the registry."""
    evaluated(paths, "a", 0.4)
    crown = champion._set_alias

    def after_another(client, model, protocol):
        monkeypatch.undo()
        for name, value in (("proximal_frechet", "0.1"), ("proximal_protocol", protocol)):
            client.set_model_version_tag(model, "3", name, value)
        crown(client, model, protocol)

    monkeypatch.setattr(champion, "_set_alias", after_another)
    evaluated(paths, "b", 0.3)
    assert champion_of(paths) == 3


def test_a_full_disk_at_the_start_is_told_as_such(paths, monkeypatch):
    """Not as a failed assertion: the command line has a remedy for this error."""
    opened = Path.open

    def full(self, *arguments, **options):
        if self.name == "lock" and "tracking" in self.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left on device"):
        track(paths, "pretrain")
