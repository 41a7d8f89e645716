"""Experiments in copies of a workspace, with real git and DVC: the workspace stays as it is."""

import json
import shutil
import subprocess
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from dvc.repo import Repo
from quick_project import executed, experiments, looks, quick_project
from workspace import wait_until

from dsd.errors import DataError, ParamsError
from flows.dvc_runner import DvcError, planned_stages, run_stage
from flows.experiment import default_name, keep_report, save_experiment, workspace_copy
from flows.turns import in_stage_turn
from pipeline.locks import BusyError, exclusive
from pipeline.params import load_params, preview_params
from pipeline.paths import home_of

SIGMA = {"corrupt.sigma": 0.3}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A quick project; tests leave it as they find it."""
    return quick_project(tmp_path_factory.mktemp("project"))


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
        remote = subprocess.run(
            ["dvc", "remote", "list"], cwd=root, env=home.env, text=True, capture_output=True
        )
        assert remote.stdout.split() == ["near", str(tmp_path / "near"), "(default)"]

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


def test_an_experiment_can_be_made_in_a_workspace_of_any_name(tmp_path):
    home = quick_project(tmp_path / "a %41 b#c?\N{LATIN SMALL LETTER U WITH DIAERESIS}")
    with workspace_copy(home.root, "one", SIGMA, quiet) as root, Repo(str(root)) as repo:
        assert load_params(root).corrupt.sigma == 0.3
        assert Path(repo.cache.local_cache_dir) == home.root / ".dvc" / "cache"


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


def test_without_a_commit_it_says_how_to_make_one(project, tmp_path):
    shutil.copytree(project.root, tmp_path / "copy", ignore=shutil.ignore_patterns(".git"))
    with pytest.raises(DvcError, match="not the root of a git repository: `git init"):
        begin(tmp_path / "copy")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "copy", check=True)
    with pytest.raises(DvcError, match="there is none yet: `git add -A && git commit"):
        begin(tmp_path / "copy")


def test_a_copy_goes_whatever_ends_its_run_and_those_of_the_dead_go_later(unchanged):
    home = unchanged.root
    dead = home / ".dvc/tmp/exps/flows/dead"
    dead.mkdir(parents=True)
    (dead / "file").touch()
    with suppress(KeyboardInterrupt), workspace_copy(home, "one", SIGMA, quiet) as root:
        assert not dead.exists()
        with pytest.raises(BusyError, match="experiment one is already running"):
            begin(home)
        with workspace_copy(home, "two", SIGMA, quiet):
            assert root.exists()
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
        with in_stage_turn(tmp_path, stages["pretrain"], dmd, told.append):
            entered.set()

    with in_stage_turn(tmp_path, stages["pretrain"], at[0.2], told.append):
        with in_stage_turn(tmp_path, stages["pretrain"], at[0.4], told.append):
            assert not told
        with in_stage_turn(tmp_path, stages["evaluate"], dmd, told.append):
            assert not told
        thread = threading.Thread(target=second)
        thread.start()
        wait_until(lambda: told, 20, "a word about the wait")
        assert not entered.is_set()
    thread.join(20)
    assert entered.is_set()
    assert len(told) == 1
    assert "stage pretrain with these parameters is already running" in told[0]


def test_the_lock_of_a_copy_is_outside_of_it(unchanged):
    with (
        exclusive(unchanged.root / ".dsd/locks/experiments/one", "another run"),
        pytest.raises(BusyError),
    ):
        begin(unchanged.root)
