"""The command line: clear refusals, exit codes, signals, and nothing heavy for --help."""

import errno
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rich.console import Console

from dsd.utils.errors import DataError, Interrupted, NonFiniteError
from pipeline.__main__ import main
from pipeline.reports.show import show_summary
from pipeline.runtime.launch import NullLog
from pipeline.runtime.progress import make_progress
from pipeline.stage_io.paths import Paths
from pipeline.stages import STAGES
from sandbox import ROOT


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace as the current folder, with handlers of signals restored afterwards."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "pipeline.runtime.progress.speaker.seconds", 1e9
    )  # silent on slow machines
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield Paths(tmp_path)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def stage(workspace, monkeypatch):
    """Replace a stage by a function, and the tracker by nothing; there are images."""
    (workspace.root / "data").symlink_to(ROOT / "data")

    def install(run):
        fake = types.ModuleType("pipeline.stages.prepare")
        fake.run = run
        monkeypatch.setitem(sys.modules, "pipeline.stages.prepare", fake)
        monkeypatch.setattr("pipeline.tracking.tracker.run", no_tracking)

    return install


@contextmanager
def no_tracking(stage, params, paths, *, stop):
    log = NullLog(stop)
    log.say = print
    yield log


def raising(error):
    def run(context):
        raise error

    return run


def pipeline(*arguments, cwd, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        **kwargs,
    )


def test_help_is_fast_and_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from pipeline.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'pydantic', 'ruamel.yaml', 'numpy', 'tqdm'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)))"
    )
    before = cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""
    assert "evaluate" in done.stdout
    # It waits for nothing, so this is its time on an idle machine, and holds on a busy one too.
    assert cpu_seconds() - before < 0.6


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_typo_in_the_parameters_runs_nothing(workspace, capsys):
    workspace.params.write_text(workspace.params.read_text().replace("sigma:", "sgma:", 1))
    assert main(["prepare"]) == 2
    err = capsys.readouterr().err
    assert err == (
        "error: params.yaml: corrupt.sgma is not a known key; did you mean corrupt.sigma?\n"
    )
    assert [file.name for file in workspace.root.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("broken.png cannot be read; remove it"), 3, "error: broken.png cannot be read"),
        (NonFiniteError("loss is NaN"), 4, "error: loss is NaN"),
        (Interrupted("saved after 5 images", 15), 143, "error: saved after 5 images"),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "free some space and run the same"),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), 5, "cannot read or write a/b:"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 5, "Permission denied"),
        (MemoryError(), 7, "prepare: out of memory; lower data.max_images"),
        (torch.OutOfMemoryError("CUDA out of memory.\nGPU 0 has"), 7, "CUDA out of memory; lower"),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_a_code(
    workspace, stage, capsys, error, code, message
):
    stage(raising(error))
    assert main(["prepare"]) == code
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        RuntimeError("shapes"),
    ],
)
def test_a_bug_leaves_its_traceback(workspace, stage, error):
    stage(raising(error))
    with pytest.raises(type(error)):
        main(["prepare"])


def test_more_than_the_machine_has_is_one_message_too(workspace, stage, capsys):
    stage(lambda context: torch.empty(2**60, dtype=torch.uint8))
    assert main(["prepare"]) == 7
    message = capsys.readouterr().err
    assert "you tried to allocate 1152921504606846976 bytes" in message
    assert len(message.splitlines()) == 1


def test_a_second_process_of_a_stage_is_refused_and_told_who_runs(workspace, stage, capsys):
    codes = []

    def run(context):
        assert (context.params.seed, context.paths.root) == (0, workspace.root)
        assert context.paths.report("prepare").is_dir()
        done = pipeline("prepare", cwd=workspace.root)
        codes.append((done.returncode, done.stderr))

    stage(run)
    assert main(["prepare"]) == 0
    assert codes[0][0] == 6
    assert f"stage prepare is already running here in process {os.getpid()};" in codes[0][1]
    stage(lambda context: None)
    assert main(["prepare"]) == 0


def test_a_stage_begins_with_what_it_does_and_ends_with_how_long_it_took(workspace, stage, capsys):
    stage(lambda context: context.log.say("at work"))
    assert main(["prepare"]) == 0
    first, work, last = capsys.readouterr().out.splitlines()
    assert first.startswith("prepare, stage 1 of 5: bring the source's images to one layout")
    assert "forecast" in first  # nothing is known yet
    assert work == "at work"
    assert re.fullmatch(r"prepare: done in \d+ (s|min.*)", last)
    assert main(["prepare"]) == 0
    again = capsys.readouterr().out.splitlines()[0]
    assert re.search(r"; about \d+ (s|min.*) \(", again)


def test_only_a_large_part_of_a_training_says_how_long_a_whole_one_takes(
    workspace, stage, capsys, monkeypatch
):
    monkeypatch.setitem(STAGES, "prepare", STAGES["prepare"]._replace(trains=True))

    def resumed(first):
        def run(context):
            with make_progress("prepare", 1000) as progress:
                progress.update(first)
                progress.update(1000)

        return run

    for first, known in ((900, False), (500, True)):
        stage(resumed(first))
        assert main(["prepare"]) == 0
        assert workspace.times.exists() is known


STAGE_SCRIPT = """
import sys, time, types
from contextlib import contextmanager
from dsd.utils.errors import Interrupted
from pipeline.runtime.launch import NullLog

@contextmanager
def run_tracking(stage, params, paths, *, stop):
    yield NullLog(stop)

def run(context):
    print("running", flush=True)
    for _ in range(200):
        time.sleep(0.05)
        if {polls} and context.log.stop_signal():
            if {stuck}:
                continue
            raise Interrupted("state saved", context.log.stop_signal())

import pipeline.tracking
from pipeline.stages import STAGES
stage = types.ModuleType("pipeline.stages.pretrain")
tracker = types.ModuleType("pipeline.tracking.tracker")
stage.run, tracker.run = run, run_tracking
STAGES["pretrain"] = STAGES["pretrain"]._replace(trains={polls})
sys.modules |= {{stage.__name__: stage, tracker.__name__: tracker}}
pipeline.tracking.tracker = tracker
from pipeline.__main__ import main
sys.exit(main(["pretrain"]))
"""


@pytest.mark.parametrize(
    ("polls", "number", "code", "message"),
    [
        (True, signal.SIGTERM, 143, "error: state saved"),
        (False, signal.SIGINT, 130, "error: pretrain was stopped"),
        (True, signal.SIGHUP, 129, "error: state saved"),
    ],
)
def test_a_signal_lets_a_training_stage_save_and_stops_others(
    workspace, polls, number, code, message
):
    process = start_stage(workspace, polls=polls, stuck=False)
    process.send_signal(number)
    err = process.communicate(timeout=20)[1]
    assert process.returncode == code
    assert message in err
    assert "Traceback" not in err


def test_a_second_ctrl_c_aborts_a_stage_that_does_not_react(workspace):
    process = start_stage(workspace, polls=True, stuck=True)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)  # a parent that dies of the same Ctrl-C
    time.sleep(1.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "saving the state first" in err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_stage_that_dvc_started_does_not_outlive_it(workspace):
    code = STAGE_SCRIPT.format(polls=False, stuck=False)
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]])\n"
            "print(child.pid, flush=True); time.sleep(60)",
            code,
        ],
        cwd=workspace.root,
        env=os.environ | {"PYTHONPATH": str(ROOT), "DVC_STAGE": "pretrain"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    child = int(parent.stdout.readline())
    assert "running\n" in iter(parent.stdout.readline, "")
    parent.kill()
    parent.wait()
    # The lock is free once the orphan has gone; its pid may linger where nobody reaps it.
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and is_running(child):
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def start_stage(workspace, *, polls, stuck):
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE_SCRIPT.format(polls=polls, stuck=stuck)],
        cwd=workspace.root,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "running\n" in iter(process.stdout.readline, "")
    return process


def test_check_tells_what_prepare_will_find_and_refuses_what_it_will_not(workspace, capsys):
    assert main(["check"]) == 3
    err = capsys.readouterr().err
    assert "data/embedded/fashion-mnist.parquet does not exist: correct data.path" in err
    source = workspace.root / "data/embedded/fashion-mnist.parquet"
    source.mkdir(parents=True)
    assert main(["check"]) == 3
    assert "holds no Parquet files (.parquet .pq): correct data.path" in capsys.readouterr().err
    source.rmdir()
    source.touch()
    assert main(["check"]) == 3
    assert "is no readable Parquet file" in capsys.readouterr().err
    source.unlink()
    source.symlink_to(ROOT / "data/embedded/fashion-mnist.parquet")
    assert main(["check"]) == 0
    params_path = "data/embedded/fashion-mnist.parquet"
    assert capsys.readouterr().out.splitlines() == [
        f"{params_path}: 20,000 images of 28 x 28 grey; 8 of them were opened",
        "  prepare makes 16 x 16 grey of them",
        f"OK: params.yaml is valid, images come from {params_path}",
    ]
    assert {file.name for file in workspace.root.iterdir()} == {"params.yaml", "data"}


def test_check_needs_neither_torch_nor_git_nor_much_time():
    script = (
        "import sys\n"
        "from pipeline.__main__ import main\n"
        "code = main(['check'])\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'git', 'dvc'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or code)"
    )
    before = cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    # On a busy machine it says that it is still at work.
    assert [line for line in done.stderr.splitlines() if "so far" not in line] == []
    assert cpu_seconds() - before < 3


def summary(frechet=12.3):
    row = {
        "frechet": frechet,
        "proximal_frechet": 4.5,
        "by_features": {
            "fashion-classifier": {"frechet": frechet, "proximal_frechet": 4.5},
            "efficientnet-lite0": {"frechet": 1234.5, "proximal_frechet": 6.0},
        },
    }
    teachers = ["teacher_full", "teacher_truncated", "teacher_truncated_exact"]
    rows = dict.fromkeys(["noisy_data", *teachers, "generator"], row)
    protocol = {"features": "fashion-classifier", "extractors": {}, "num_samples": 5000}
    return rows | {"protocol": protocol | {"seed": 0, "sigma": 0.5, "sigma_hat": 0.5}}


def shown(workspace, content, width=160):
    workspace.summary.parent.mkdir(exist_ok=True)
    workspace.summary.write_text(json.dumps(content))
    console = Console(width=width, record=True, file=io.StringIO())
    show_summary(workspace, console)
    return console.export_text()


def test_the_table_names_rows_features_picture_and_next_steps(workspace):
    # Titles are wrapped to the width of their table.
    text = " ".join(shown(workspace, summary()).split())
    for expected in (
        "noisy data",
        "teacher, Full",
        "teacher, Truncated at sigma",
        "one-step generator",
        "Frechet to clean",
        "Distances in efficientnet-lite0 features",
        "12.30",
        "1,234.50",
        "5,000 images each",
        "reports/evaluate/comparison.png",
        "python -m flows.train",
        "edit corrupt.sigma in params.yaml",
    ):
        assert expected in text
    assert "FID" not in text
    narrow = shown(workspace, summary(), width=80)
    assert "…" not in narrow
    assert "Proximal Frechet" in narrow


def test_only_distances_in_inceptions_features_are_called_fid(workspace):
    content = summary()
    for name in content.keys() - {"protocol"}:
        content[name]["by_features"] = {
            "inception-edm": {"frechet": 12.3, "proximal_frechet": 4.5}
        }
    text = shown(workspace, content)
    assert "FID to clean" in text
    assert "Proximal FID" in text
    assert "Frechet" not in text


def test_distances_to_clean_images_that_do_not_exist_are_dashes(workspace):
    content = summary(frechet=None)
    content["protocol"]["without_frechet"] = "there are no clean images"
    text = shown(workspace, content)
    assert " - " in text
    assert "A dash: there are no clean images." in text
    assert "A dash" not in shown(workspace, summary())


@pytest.mark.parametrize("content", [{}, [], {"generator": 3}])
def test_show_without_results_says_how_to_make_them(workspace, capsys, content):
    assert main(["show"]) == 3
    assert "does not exist yet; run `dvc repro`" in capsys.readouterr().err
    workspace.summary.parent.mkdir()
    workspace.summary.write_text(json.dumps(content))
    assert main(["show"]) == 3
    assert "not a summary of results" in capsys.readouterr().err


def test_sync_without_anything_to_send_says_so(workspace, capsys):
    assert main(["sync"]) == 0
    assert "MLflow has everything" in capsys.readouterr().out
