"""Experiments in copies of a workspace, with real git and DVC: the workspace stays as it is."""

import json
import shutil
import subprocess
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from dvc.repo import Repo

from dsd.utils.errors import DataError, ParamsError
from flows.dvc.experiment import default_name, keep_report, save_experiment, workspace_copy
from flows.dvc.repository import tell_dvc
from flows.dvc.runner import DvcError, planned_stages, run_stage
from flows.dvc.stage_lock import stage_lock
from pipeline.execution.locks import BusyError
from pipeline.params.reader import load_params, preview_params
from pipeline.stage_io.paths import home_of
from pipeline.tracking.provenance import commit_of, is_dirty
from sandbox.quick_project import executed, experiments, looks, quick_project
from sandbox.workspace import Workspace, wait_until

SIGMA = {"corrupt.sigma": 0.3}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A quick project in a folder of any name; tests leave it as they find it."""
    name = "a %41 b#c?\N{LATIN SMALL LETTER U WITH DIAERESIS}"
    return quick_project(tmp_path_factory.mktemp("project") / name)


@pytest.fixture
def unchanged(project):
    """The project, looked at before and after the test."""
    before = looks(project)
    yield project
    assert looks(project) == before
    assert not [*project.root.glob(".dvc/tmp/exps/flows/*")]
    executed(project)


def quiet(_line):
    pass


def make(home, name, values):
    """An experiment from beginning to end; what DVC did about each stage."""
    with workspace_copy(home, name, values, quiet) as root:
        assert home_of(root) == home.resolve()
        found = [run_stage(root, one.name, quiet).outcome for one in planned_stages(root)]
        save_experiment(home, root, name, quiet)
        keep_report(home, root, name)
    return found


@pytest.mark.slow
def test_an_experiment_has_the_users_changes_and_leaves_the_workspace_alone(tmp_path):
    home = quick_project(tmp_path / "home")
    (tmp_path / "home/images/inner").mkdir(parents=True)
    (tmp_path / "home/images/inner/one").write_text("an image")
    home.run("dvc", "remote", "add", "--local", "--default", "near", "../near")
    home.run("git", "mv", "data/source", "data/moved")
    home.set({"data.path": "data/moved", "data.max_images": 7})
    (home.root / "work.py").open("a").write("# changed\n")
    (home.root / "new.py").write_text("new = 1\n")
    home.run("git", "add", "new.py")
    before = looks(home)

    with workspace_copy(home.root, "one", SIGMA, quiet) as root:
        assert load_params(root).data.max_images == 7
        assert (root / "work.py").read_text().endswith("# changed\n")
        assert (root / "new.py").exists()
        assert not (root / "data/source").exists()
        with Repo(str(root)) as repo:
            assert repo.config["core"]["remote"] == "near"
            assert repo.config["remote"]["near"]["url"] == str(tmp_path / "near")

    assert make(home.root, "one", SIGMA) == ["ran"] * 3
    assert executed(home) == [f"{stage} 0.3 sid" for stage in ("prepare", "pretrain", "evaluate")]
    assert make(home.root, "one", SIGMA) == ["restored"] * 3
    # The data may be where git does not look.
    other = {**SIGMA, "data.path": "images"}
    assert make(home.root, "two", other) == ["ran", "restored", "restored"]
    with pytest.raises(ParamsError, match="dvc exp remove one"):
        make(home.root, "one", {"corrupt.sigma": 0.4})
    assert looks(home) == before

    shown = experiments(home)
    assert {*shown} == {"one", "two"}
    assert shown["one"]["params"]["params.yaml"]["data"]["corrupt"]["sigma"] == 0.3
    metrics = shown["one"]["metrics"]["reports/summary.json"]["data"]
    assert metrics["generator"]["frechet"] == 3.0
    kept = home.root / "reports/experiments/one"
    assert json.loads((kept / "summary.json").read_text())["protocol"]["sigma"] == 0.3
    assert load_params(kept).corrupt.sigma == 0.3
    home.run("git", "commit", "-aqm", "clean")
    home.run("git", "reset", "-q", "--soft", "HEAD~1")
    home.run("dvc", "exp", "apply", "one")
    assert load_params(home.root).corrupt.sigma == 0.3
    assert home.read("reports/summary.json")["generator"]["frechet"] == 3.0


@pytest.mark.slow
def test_two_experiments_and_a_hand_run_repro_at_the_same_time(tmp_path):
    home = quick_project(tmp_path)
    for stage in ("prepare", "evaluate"):
        (home.root / f"hold-{stage}").touch()
    done = {}
    threads = [
        threading.Thread(target=lambda v=v: done.update({v: make(home.root, f"s{v}", sigma(v))}))
        for v in (0.2, 0.4)
    ]
    for thread in threads:
        thread.start()
    hand = home.start("dvc", "repro")
    copies = home.root / ".dvc/tmp/exps/flows"
    wait_until(lambda: len([*copies.glob("s0*/params.yaml")]) == 2, 120, "two copies")
    for stage in ("prepare", "evaluate"):
        (home.root / f"hold-{stage}").unlink()
    for thread in threads:
        thread.join(300)
    printed, _ = hand.communicate(timeout=300)
    assert hand.returncode == 0, printed
    assert {value: outcomes[1:] for value, outcomes in done.items()} == {
        0.2: ["ran", "ran"],
        0.4: ["ran", "ran"],
    }
    assert home.read("reports/summary.json")["generator"]["frechet"] == 5.0
    distances = {
        name: one["metrics"]["reports/summary.json"]["data"]["generator"]["frechet"]
        for name, one in experiments(home).items()
    }
    assert distances == {"s0.2": 2.0, "s0.4": 4.0}
    assert home.run("git", "stash", "list").stdout == ""


def sigma(value):
    return {"corrupt.sigma": value}


def begin(home, name="one", values=SIGMA):
    with workspace_copy(home, name, values, quiet):
        pytest.fail("it was begun")


def test_what_cannot_be_run_is_refused_before_anything_is(unchanged, tmp_path):
    home = unchanged.root
    for name in ("", "a/b", "-x", "..", "a..b", "x.lock", "a b", "x" * 101):
        with pytest.raises(ParamsError, match="cannot be an experiment's name"):
            begin(home, name=name)
    with pytest.raises(ParamsError, match=r"corrupt\.sigma = -1"):
        begin(home, values=sigma(-1))
    with pytest.raises(DataError, match=r"data\.path = 'nothing' does not exist"):
        begin(home, values={"data.path": "nothing"})
    with pytest.raises(DataError, match="write the absolute path"):
        begin(home, values={"data.path": "../elsewhere"})
    with workspace_copy(home, "one", {"data.path": str(tmp_path)}, quiet) as root:
        assert load_params(root).data.path == str(tmp_path)


def without_git(project, target):
    """A copy of the project as an archive of it would be."""
    shutil.copytree(project.root, target, ignore=shutil.ignore_patterns(".git", "tmp"))
    return target


def in_git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def test_what_git_lacks_is_said_with_a_remedy_that_is_right_for_it(project, tmp_path, monkeypatch):
    home = without_git(project, tmp_path / "other" / "copy")

    def refused(match):
        with pytest.raises(DvcError, match=match) as caught:
            begin(home)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    refused("is in no git repository: `git init && git add -A && git commit")
    # Unpacked in the work tree of something else: another repository inside would be wrong.
    in_git(home.parent, "init", "-q")
    in_git(home.parent, "commit", "-q", "--allow-empty", "-m", "other")
    assert "git init" not in refused("does not know dvc.yaml .*: `git add -A . && git commit")
    assert commit_of(home) is None  # that of the other repository says nothing about this project
    assert is_dirty(home) is None
    (home.parent / ".gitignore").write_text("/copy/\n")
    refused("'.*.gitignore:1:/copy/' ignores it; change that rule")
    in_git(home, "init", "-q")
    refused("there is none yet: `git add -A && git commit")
    in_git(home, "add", "-A")
    in_git(home, "commit", "-q", "-m", "start")
    assert len(commit_of(home)) == 40
    assert is_dirty(home) is False
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own means to try this
    assert "git init" not in refused("git refuses .*dubious ownership.*--add safe.directory")
    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
    (home / ".git/HEAD").unlink()
    refused("no git repository|does not know")
    monkeypatch.setenv("PATH", str(tmp_path))
    refused("git is not installed")


def test_dvc_works_without_git_and_hears_of_a_repository_that_comes_later(project, tmp_path):
    home = without_git(project, tmp_path / "copy")
    (home / ".gitignore").open("a").write("/data/p*\n/reports/*\n")  # as the real project has
    settings = home / ".dvc" / "config.local"
    tell_dvc(home)
    assert run_stage(home, "prepare", quiet).outcome == "ran"
    assert "no_scm = true" in settings.read_text()
    in_git(home, "init", "-q")
    in_git(home, "add", "-A")
    in_git(home, "commit", "-q", "-m", "start")
    tell_dvc(home)
    assert "no_scm" not in settings.read_text()
    assert make(home, "one", SIGMA) == ["restored", "ran", "ran"]


@pytest.mark.slow
def test_a_project_in_a_folder_of_a_larger_repository_has_experiments(project, tmp_path):
    top = tmp_path / "a top"
    home = without_git(project, top / "inner" / "project")
    (top / "else").write_text("else\n")
    in_git(top, "init", "-q")
    in_git(top, "add", "-A")
    in_git(top, "commit", "-q", "-m", "start")
    in_git(top, "checkout", "-q", "--detach")
    (top / "else").write_text("changed\n")
    (home / "work.py").open("a").write("# changed\n")
    with workspace_copy(home, "two", SIGMA, quiet) as root:
        assert (root / "work.py").read_text().endswith("# changed\n")
    values = {**SIGMA, "distill.divergence": "dmd"}
    name = default_name(home, values, preview_params(home, values))
    assert make(home, name, values) == ["ran"] * 3
    with pytest.raises(ParamsError, match=f"dvc exp remove {name}"):
        make(home, name, {"corrupt.sigma": 0.4})
    assert not [*home.glob(".dvc/tmp/exps/flows/*")]
    inner = Workspace(home)
    assert experiments(inner)[name]["params"]["params.yaml"]["data"]["corrupt"]["sigma"] == 0.3
    inner.run("git", "commit", "-aqm", "changes")
    inner.run("git", "reset", "-q", "--soft", "HEAD~1")
    inner.run("dvc", "exp", "apply", name)
    assert load_params(home).corrupt.sigma == 0.3
    assert (top / "else").read_text() == "changed\n"


def test_a_copy_goes_whatever_ends_its_run_and_those_of_the_dead_go_later(unchanged):
    home = unchanged.root
    dead = home / ".dvc/tmp/exps/flows/dead"
    dead.mkdir(parents=True)
    (dead / "file").touch()
    with suppress(KeyboardInterrupt), workspace_copy(home, "one", SIGMA, quiet) as root:
        assert not dead.exists()
        with pytest.raises(BusyError, match="experiment one is already running"):
            begin(home)
        with workspace_copy(home, "two", SIGMA, quiet), Repo(str(root)) as repo:
            assert load_params(root).corrupt.sigma == 0.3
            assert Path(repo.cache.local_cache_dir) == home / ".dvc" / "cache"
        raise KeyboardInterrupt
    assert not root.exists()


def test_files_that_git_does_not_know_are_seen_in_the_copy(unchanged):
    home = unchanged.root
    files = ["data/downloads/set.bin", "own_features.py", "weights.ts"]
    with ExitStack() as stack:
        (home / "data/downloads").mkdir()
        stack.callback((home / "data/downloads").rmdir)
        for name in files:
            (home / name).write_text(name)
            stack.callback((home / name).unlink)
        values = {
            "data.path": "data/downloads",
            "evaluate.features": ["own_features:embed"],
            "evaluate.inception_weights": "weights.ts",
        }
        with workspace_copy(home, "one", values, quiet) as root:
            assert [(root / name).read_text() for name in files] == files
        # A folder that git knows in part: what it lacks is added.
        with workspace_copy(home, "one", {"data.path": "data"}, quiet) as root:
            assert (root / "data/source").is_file()
            assert not (root / "data/source").is_symlink()
            assert (root / "data/downloads/set.bin").read_text() == files[0]


def test_a_name_tells_the_values_and_is_the_same_for_the_same_run(unchanged):
    home = unchanged.root

    def name(**values):
        dotted = {key.replace("__", "."): value for key, value in values.items()}
        return default_name(home, dotted, preview_params(home, dotted))

    one = name(corrupt__sigma=0.3, distill__divergence="dmd", network__channel_mult=[1, 2])
    assert one.startswith("sigma-0.3-divergence-dmd-channel_mult-1-2-")
    assert one == name(corrupt__sigma=0.3, distill__divergence="dmd", network__channel_mult=[1, 2])
    assert name(corrupt__sigma=0.3)[:-6] == name(corrupt__sigma=0.3, seed=0)[: len("sigma-0.3-")]
    code = home / "work.py"
    text = code.read_text()
    before = name(corrupt__sigma=0.3)
    code.write_text(text + "# other code\n")
    assert name(corrupt__sigma=0.3) != before
    code.write_text(text)
    assert name(corrupt__sigma=0.3) == before
    data = name(data__path=str(Path("/somewhere/with a space")))
    assert data.startswith("path-somewhere-with-a-space-")


@pytest.mark.timeout(60)
def test_only_runs_that_need_the_same_result_wait_for_each_other(unchanged, tmp_path):
    home, told = unchanged.root, []
    stages = {stage.name: stage for stage in planned_stages(home)}
    assert "corrupt" not in stages["prepare"].params
    assert {"data", "corrupt", "pretrain"} <= stages["pretrain"].params
    at = {value: preview_params(home, sigma(value)) for value in (0.2, 0.4)}
    dmd = preview_params(home, {**sigma(0.2), "distill.divergence": "dmd"})
    entered = threading.Event()

    def second():
        with stage_lock(tmp_path, stages["pretrain"], dmd, told.append):
            entered.set()

    with stage_lock(tmp_path, stages["pretrain"], at[0.2], told.append):
        with stage_lock(tmp_path, stages["pretrain"], at[0.4], told.append):
            assert not told
        with stage_lock(tmp_path, stages["evaluate"], dmd, told.append):
            assert not told
        thread = threading.Thread(target=second)
        thread.start()
        wait_until(lambda: told, 20, "a word about the wait")
        assert not entered.is_set()
    thread.join(20)
    assert entered.is_set()
    assert len(told) == 1
    assert "stage pretrain with these parameters is already running" in told[0]
