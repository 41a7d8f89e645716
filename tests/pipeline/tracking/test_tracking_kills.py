"""Tracking, wherever its process dies and however many there are: every number is there once."""

import errno
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import traceback
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image
from sqlalchemy import event
from sqlalchemy.engine import Engine
from tiny_model import save_tiny_generator

from dsd.model.checkpoint import read_spec
from dsd.utils.files import write_json
from pipeline.params.reader import load_params
from pipeline.stage_io.paths import Paths
from pipeline.tracking import session
from pipeline.tracking import tracker as tracking
from pipeline.tracking.journal import Journal
from pipeline.tracking.session import Record, open_session
from pipeline.tracking.store import make_database
from sandbox import ROOT
from sandbox.faults import Boundaries

STEPS = (64, 128, 192)
EIGHT, MANY = 8, 300
STAGES = "select run_uuid, status from runs join tags using (run_uuid) where key = 'dvc.stage'"
PIPELINES = "select status from runs join tags using (run_uuid) where key = 'pipeline.role'"
PICTURES = ("generator", "teacher_full")


HERE = Path(__file__).parent
HELPERS = ROOT / "tests" / "helpers"


@pytest.fixture
def paths(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return Paths(tmp_path)


def stored(paths):
    """Status of each run in the store, and its numbers that the stage recorded."""
    query = "select key, step, value from metrics where run_uuid = ? and key in ('loss', 'gap')"
    with closing(sqlite3.connect(paths.tracking_store)) as store:
        runs = store.execute(STAGES).fetchall()
        numbers = {run: sorted(store.execute(query, (run,)).fetchall()) for run, _ in runs}
    return dict(runs), numbers


def pipelines(paths):
    """Status of each run of a whole pipeline."""
    with closing(sqlite3.connect(paths.tracking_store)) as store:
        return [status for (status,) in store.execute(PIPELINES)]


def apart(function, *arguments):
    """Call a function of this file in a new process, which may fork; what it printed."""
    code = f"import sys, test_tracking_kills as here; here.{function}(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, HELPERS, HERE)))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "warning: " not in done.stderr
    return done.stdout


def forked(act, *arguments):
    """Begin something in a process of its own."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            act(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    return process


def ended(process):
    """Wait for a process; its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def work(paths):
    """A stage that records a number at each step, slowly enough for the thread to send some."""
    with tracking.run("pretrain", load_params(paths.root), paths) as log:
        log.metrics(STEPS[0], {"images_per_second": time.monotonic()})  # another one each time
        for images in STEPS:
            log.metrics(images, {"loss": images / 2})
            time.sleep(0.05)


def watched_work(paths, at, act):
    """Work, and act before tracking touches its files for the ``at``-th time."""
    with Boundaries(act, at, paths.root / ".dsd" / "tracking").watched() as seen:
        work(paths)
    return seen.names


def work_again(paths):
    """As the next process does; since one number is another now, it begins a new run."""
    work(paths)
    assert tracking.sync(paths)[1] == 0


def die_at_every_change(folder):
    """In workspaces below a folder, kill the stage at another moment each, and run it again."""
    tracking._SEND_SECONDS = 0.02
    root = Path(folder)

    def workspace(name):
        (root / name).mkdir()
        for source, target in ((ROOT / "params.yaml", "params.yaml"), (fresh, "mlflow.db")):
            shutil.copy(source, root / name / target)
        return Paths(root / name)

    def note_names():
        seen.write_text(json.dumps(watched_work(workspace("whole"), 0, lambda: None)))

    fresh, seen = root / "fresh.db", root / "seen.json"
    # This process must never connect, for it could not fork any more.
    assert ended(forked(lambda: MlflowClient(f"sqlite:///{fresh}").search_experiments())) == 0
    assert ended(forked(note_names)) == 0
    for at, name in enumerate(json.loads(seen.read_text()), 1):
        if name in ("replace", "rename", "unlink", "rmdir"):
            paths = workspace(str(at))
            code = ended(forked(watched_work, paths, at, _die))
            assert ended(forked(work_again, paths)) == 0
            print(paths.root, name, code)


def _die():
    os._exit(9)


@pytest.mark.slow
def test_a_kill_wherever_tracking_changes_its_files_loses_and_doubles_nothing(tmp_path):
    killed = [line.split() for line in apart("die_at_every_change", tmp_path).splitlines()]
    # How often a record is replaced depends on how often the thread sends.
    assert {name for _, name, _ in killed} >= {"replace", "unlink", "rmdir"}
    for root, name, code in killed:
        paths = Paths(Path(root))
        runs, numbers = stored(paths)
        made = json.loads((paths.report("pretrain") / "run.json").read_text())["run_id"]
        assert code == "9"
        assert numbers[made] == [("loss", step, step / 2) for step in STEPS], root
        assert runs.pop(made) == "FINISHED", root
        # Once the store has everything, and what was known here goes, the next run is another.
        over = ["FINISHED"] if name in ("unlink", "rmdir") else []
        assert list(runs.values()) in ([], ["KILLED"], over), root
        assert set(pipelines(paths)) == {"FINISHED"}, root
        assert list(paths.tracking_state("pretrain").iterdir()) == [], root


def generator_of(paths):
    """Save a small generator and the evaluation of it, as their stages leave them."""
    folder = paths.artifact("distill") / "generator"
    save_tiny_generator(folder)
    weights = read_spec(folder).weights_sha256
    protocol = {"features": "own", "extractors": {"own": "v1"}, "sigma": 0.5, "noisy_sha256": "n"}
    generator = {"proximal_frechet": 0.25, "weights_sha256": weights}
    write_json(paths.summary, {"generator": generator, "protocol": protocol})
    samples = paths.report("evaluate") / "samples"
    samples.mkdir(parents=True)
    for name in PICTURES:
        Image.new("L", (8, 8), 128).save(samples / f"{name}.png")


def distilled(paths):
    """Track the stage that registers a model."""
    with tracking.run("distill", load_params(paths.root), paths) as log:
        log.metrics(STEPS[0], {"loss": 1.0})


def evaluated(paths):
    """Track the stage that logs pictures, and crowns the model."""
    with tracking.run("evaluate", load_params(paths.root), paths):
        pass


def die_at_commit(at, act, *arguments):
    """Act, but die before the ``at``-th change of the store."""
    changes = itertools.count(1)
    event.listen(Engine, "commit", lambda _: _die() if next(changes) == at else None)
    act(*arguments)


def die_at_changes_of_the_store(folder):
    """In workspaces below a folder, die at another moment of two stages each, and run it again."""
    import pipeline.tracking.registry  # noqa: F401 - once for all that are forked
    from pipeline.tracking import pipeline_run

    pipeline_run.home_of = lambda _: folder  # a copy stands for the workspace itself

    def workspace(name):
        paths = Paths(Path(folder) / name)
        paths.root.mkdir(parents=True)
        shutil.copy(ROOT / "params.yaml", paths.root)
        generator_of(paths)
        return paths

    fresh, done = workspace("fresh"), workspace("done")
    assert ended(forked(make_database, f"sqlite:///{fresh.tracking_store}")) == 0
    assert ended(forked(distilled, done)) == 0
    for stage, before in ((distilled, fresh), (evaluated, done)):
        for at in itertools.count(1, 11):
            paths = Paths(Path(folder) / stage.__name__ / str(at))
            shutil.copytree(before.root, paths.root)
            if ended(forked(die_at_commit, at, stage, paths)) == 0:
                break  # it had ended before
            assert ended(forked(stage, paths)) == 0
            if stage is distilled:
                assert ended(forked(evaluated, paths)) == 0
            print(paths.root)


@pytest.mark.slow
def test_a_kill_wherever_the_store_changes_makes_no_second_model_or_picture(tmp_path):
    killed = apart("die_at_changes_of_the_store", tmp_path).splitlines()
    assert len(killed) > 5
    for paths in (Paths(Path(line)) for line in killed):
        runs, _ = stored(paths)
        assert list(runs.values()) == ["FINISHED"] * 2, paths.root  # one of each stage
        assert pipelines(paths) == ["FINISHED"], paths.root
        uri = f"sqlite:///{paths.tracking_store}"
        client = MlflowClient(uri, uri)
        (version,) = client.search_model_versions("name='one-step-generator'")
        assert client.get_registered_model(version.name).aliases == {"champion": version.version}
        experiments = [each.experiment_id for each in client.search_experiments()]
        (model,) = client.search_logged_models(experiments)
        assert version.source == f"models:/{model.model_id}", paths.root
        assert {(each.key, each.value) for each in model.metrics} == {("proximal/generator", 0.25)}
        (run,) = client.search_runs(experiments, "tags.`dvc.stage` = 'evaluate'")
        inputs = client.get_run(run.info.run_id).inputs.model_inputs
        assert [each.model_id for each in inputs] == [model.model_id]
        (whole,) = client.search_runs(experiments, "tags.`pipeline.role` = 'pipeline'")
        outputs = client.get_run(whole.info.run_id).outputs.model_outputs
        assert [each.model_id for each in outputs] == [model.model_id]
        shown = [file.path for file in client.list_artifacts(whole.info.run_id, "images")]
        keys = [Path(path).name.split("+")[0] for path in shown if "compressed" in path]
        assert sorted(keys) == sorted(PICTURES), paths.root


def die_while_the_store_is_made(file):
    """Die early, in the middle and late."""
    for at in (2, 30, 60):
        code = ended(forked(die_at_commit, at, make_database, f"sqlite:///{file}"))
        print(code, Path(file).exists())
    assert ended(forked(make_database, f"sqlite:///{file}")) == 0


@pytest.mark.slow
def test_a_kill_while_the_store_is_made_leaves_none_that_cannot_be_used(tmp_path):
    file = tmp_path / "mlflow.db"
    assert apart("die_while_the_store_is_made", file).split() == ["9", "False"] * 3
    assert {left.name for left in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.lock"}
    assert len(MlflowClient(f"sqlite:///{file}").search_experiments()) == 1


def track_at_once(root):
    """Eight processes that begin together, each in a workspace; each records many numbers."""
    tracking._SEND_SECONDS = 0.1
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{Paths(Path(root)).tracking_store}"

    def stage(number):
        paths = Paths(Path(root) / str(number))
        paths.root.mkdir()
        shutil.copy(ROOT / "params.yaml", paths.root)
        with tracking.run("prepare", load_params(paths.root), paths) as log:
            for images in range(1, MANY + 1):
                log.metrics(images, {"loss": images / 2, "gap": -1.0})
                time.sleep(0.005)

    processes = [forked(stage, number) for number in range(EIGHT)]
    assert [ended(process) for process in processes] == [0] * EIGHT


@pytest.mark.slow
def test_eight_processes_that_track_to_one_new_file_lose_nothing(paths):
    apart("track_at_once", paths.root)
    runs, numbers = stored(paths)
    assert list(runs.values()) == ["FINISHED"] * EIGHT
    steps = range(1, MANY + 1)
    every = [("gap", step, -1.0) for step in steps] + [("loss", step, step / 2) for step in steps]
    assert [numbers[run] == every for run in runs] == [True] * EIGHT
    assert list(paths.root.glob("*/.dsd/tracking/prepare/*")) == []


def test_a_record_with_the_field_names_of_before_is_continued(paths):
    record = Record("pretrain", "name", "dsd", "sqlite:///none.db", {}, {}, started_ms=0)
    record.run_id, record.handed_off = "an id", True
    kept = {**asdict(record), "done": ["model"], "left": True}
    for name in ("completed_steps", "handed_off"):
        del kept[name]
    folder = paths.tracking_state("pretrain") / record.key()
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(kept))
    (found,) = session.abandoned_sessions(folder.parent)
    assert found.record == replace(record, completed_steps=["model"])


def test_a_run_begins_anew_beside_the_one_that_is_being_sent(paths):
    """Nobody else may send the old one meanwhile, or MLflow would have two of it."""
    record = Record("pretrain", "name", "dsd", "sqlite:///none.db", {}, {}, started_ms=0)
    old = open_session(paths.tracking_state("pretrain"), record)
    old.archive()
    assert list(session.abandoned_sessions(paths.tracking_state("pretrain"))) == []
    new = open_session(paths.tracking_state("pretrain"), replace(record, token="another"))
    assert new.folder.name == record.key()
    old.end("KILLED", 1)
    new.save()
    statuses = [
        json.loads((each.folder / "record.json").read_text())["status"] for each in (old, new)
    ]
    assert statuses == ["KILLED", "RUNNING"]


def test_a_kill_while_a_run_is_forgotten_leaves_no_number_without_its_run(paths, monkeypatch):
    record = Record("pretrain", "name", "dsd", "sqlite:///none.db", {}, {}, started_ms=0)
    sent = open_session(paths.tracking_state("pretrain"), record)
    sent.journal.append(1, {"loss": 1.0}, 10)

    def die_half_way(folder, **_):
        (folder / "record.json").unlink()
        raise EOFError

    monkeypatch.setattr(shutil, "rmtree", die_half_way)
    with pytest.raises(EOFError):
        sent.remove()
    sent.release()
    following = open_session(paths.tracking_state("pretrain"), record)
    assert following.journal.first == {}


def test_two_processes_never_hold_one_folder(paths, monkeypatch):
    """Between opening a lock and taking it, its folder went and another process made a new one."""
    record = Record("pretrain", "name", "dsd", "sqlite:///none.db", {}, {}, started_ms=0)
    parent = paths.tracking_state("pretrain")
    first = open_session(parent, record)
    others = []

    def meanwhile(handle):
        monkeypatch.undo()
        first.remove()
        others.append(open_session(parent, record))
        return session.try_lock(handle)

    monkeypatch.setattr(session, "try_lock", meanwhile)
    ours = open_session(parent, record)
    assert others[0].folder.name == record.key()
    assert ours.folder != others[0].folder


@pytest.mark.parametrize("at", range(1, 7))  # open, write, half of it, flush, sync, close
def test_numbers_that_the_disk_refused_are_written_with_the_next(at, tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(1, {"loss": 1.0}, 10)

    def refuse():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"), Boundaries(refuse, at, tmp_path).watched():
        journal.append(2, {"loss": 2.0}, 20)
    # Not sent either, as long as a power cut could make it undone.
    assert [entry.images for entry in journal.entries()] == [1]
    journal.append(3, {"loss": 3.0}, 30)
    for read in (journal, Journal(tmp_path / "journal.jsonl")):
        assert [entry.values["loss"] for entry in read.entries()] == [1.0, 2.0, 3.0]


def test_a_line_that_a_kill_cut_short_is_overwritten(tmp_path):
    file = tmp_path / "journal.jsonl"
    Journal(file).append(1, {"loss": 1.0}, 10)
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:9])
    journal = Journal(file)
    journal.append(2, {"loss": 2.0}, 20)
    assert [entry.images for entry in journal.entries()] == [1, 2]
    assert file.read_bytes().startswith(whole)
    assert file.read_bytes().count(b"\n") == 2


def test_numbers_that_the_disk_refused_are_written_at_the_end_of_the_run(paths):
    record = Record("pretrain", "name", "dsd", "sqlite:///none.db", {}, {}, started_ms=0)
    run = open_session(paths.tracking_state("pretrain"), record)

    def refuse():
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output"), Boundaries(refuse, 1, paths.root).watched():
        run.journal.append(1, {"loss": 1.0}, 10)
    run.end("FINISHED", 20)
    assert [entry.values for entry in run.journal.entries()] == [{"loss": 1.0}]
