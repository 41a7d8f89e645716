"""Stages in several processes, started as a user or DVC would start them."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file
from stage_helpers import ROOT, Recorder, params_with, png, random_images, write_parquet

from dsd.utils.errors import ParamsError
from pipeline.__main__ import main
from pipeline.execution.run import run_stage
from pipeline.params.reader import load_params
from pipeline.runtime import launch
from pipeline.runtime.signals import StopSignal
from pipeline.stage_io.log import StageLog
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, prepare, pretrain
from sandbox.tiny_params import TINY, set_params
from sandbox.workspace import wait_until

SMALL = {
    **TINY,
    "data.path": "images.parquet",
    "data.pad": 0,
    "data.resolution": 8,
    "data.max_images": None,
    "compute.micro_batch_size": 10,
    "run.checkpoint_minutes": 0.001,
}


def visible(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("asked", "gpus", "device", "expected"),
    [
        (None, 0, "auto", 1),
        (None, 8, "auto", 8),
        (None, 8, "cpu", 1),
        (None, 500, "auto", 128),
        ("", 2, "auto", 2),
        ("1", 8, "auto", 1),
        ("4", 8, "cuda", 4),
        ("4", 0, "auto", 4),
        ("4", 2, "cpu", 4),
    ],
)
def test_processes_are_as_many_as_asked_for_or_gpus(asked, gpus, device, expected, monkeypatch):
    visible(monkeypatch, gpus)
    monkeypatch.delenv(launch.PROCESSES, raising=False)
    if asked is not None:
        monkeypatch.setenv(launch.PROCESSES, asked)
    params = params_with(compute={"device": device})
    assert params.pretrain.batch_size == params.distill.batch_size == 128
    for stage in ("pretrain", "distill"):
        assert launch.num_processes(stage, params) == expected
    assert launch.num_processes("evaluate", params) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("two", r"DSD_PROCESSES is 'two', but must be a whole number >= 1; unset it"),
        ("0", r"DSD_PROCESSES is '0', but must be"),
        ("-1", r"DSD_PROCESSES is '-1', but must be"),
        ("129", r"DSD_PROCESSES is 129, but pretrain\.batch_size is 128: lower it"),
        ("3", r"DSD_PROCESSES is 3, but torch sees 2 GPUs: lower it, or unset it"),
    ],
)
def test_a_wrong_number_of_processes_is_one_message(asked, message, monkeypatch):
    visible(monkeypatch, 2)
    monkeypatch.setenv(launch.PROCESSES, asked)
    with pytest.raises(ParamsError, match=message):
        launch.num_processes("pretrain", params_with())


def test_stages_for_one_process_refuse_to_be_one_of_several(monkeypatch, tmp_path):
    """Under torchrun, which is told by the file that it reads."""
    told = tmp_path / "error.json"
    hook = sys.excepthook
    for name, value in {"RUN_ID": "any", "ERROR_FILE": str(told)}.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(launch, "end_with_parent", lambda parent: True)
    monkeypatch.setattr(StopSignal, "install", lambda self: None)
    try:
        assert main(["evaluate"]) == ParamsError.exit_code
    finally:
        sys.excepthook = hook
    message = json.loads(told.read_text())["message"]
    assert message == (
        "evaluate runs in one process: start `python -m pipeline evaluate` without torchrun"
    )


def test_a_process_that_only_computes_is_silent_but_hears_signals(capfd):
    stop = StopSignal()
    log: StageLog = launch.NullLog(stop)
    with log.progress(10) as progress:
        progress.update(5, loss=1.0)
    log.metrics(5, {"loss": 1.0})
    log.reads("images", digest="0", count=1, shape=(1, 2, 2))
    log.say("something")
    assert log.stop_signal() is None
    stop.number = signal.SIGTERM
    assert log.stop_signal() == signal.SIGTERM
    assert capfd.readouterr() == ("", "")


class Folder:
    """A workspace with noisy images, in which the two trainings can run."""

    def __init__(self, root):
        self.paths = Paths(root)
        self.params = root / "params.yaml"
        self.params.write_text((ROOT / "params.yaml").read_text())
        set_params(root, SMALL)
        write_parquet(root / "images.parquet", [png(image) for image in random_images(150, 8, 8)])
        for stage in (prepare, corrupt, pretrain, distill):
            self.run_alone(stage)

    def run_alone(self, stage):
        """Run a stage in this process; what it said."""
        log = Recorder()
        self.paths.report(stage.__name__.split(".")[-1]).mkdir(parents=True, exist_ok=True)
        run_stage(stage, load_params(self.paths.root), self.paths, log)
        return log.lines

    def start(self, stage, processes, *launcher):
        command = [sys.executable, *launcher, "-m", "pipeline", stage]
        return subprocess.Popen(
            command,
            cwd=self.paths.root,
            env={**os.environ, "DSD_PROCESSES": str(processes)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def saved(self, stage):
        """When each state was saved."""
        files = self.paths.state(stage).glob("*/state")
        return {file: file.stat().st_mtime_ns for file in files}

    def forget(self, stage):
        """Let the next run of a stage that is done begin anew."""
        shutil.rmtree(self.paths.state(stage))

    def weights(self, stage, model=""):
        return load_file(self.paths.artifact(stage) / model / "weights.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Folder(tmp_path_factory.mktemp("launch"))


def children(pid):
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [int(word) for word in found.stdout.split()]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def end_early(folder, number, victim):
    """Let two processes train, signal one of the three; exit code, errors and all lines."""
    before = folder.saved("pretrain")
    process = folder.start("pretrain", 2)
    wait_until(lambda: folder.saved("pretrain") != before, 120, "a saved state", process)
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(process.pid if victim == "launcher" else max(workers), number)
    printed, _ = process.communicate(timeout=120)
    wait_until(lambda: not any(map(is_alive, workers)), 60, "the end of all processes")
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    return process.returncode, errors, printed


@pytest.mark.slow
def test_a_stage_of_several_processes_can_be_stopped_killed_and_continued(folder):
    """By another number of processes, and what comes out is what one process makes."""
    expected = folder.weights("pretrain")
    folder.forget("pretrain")
    code, (error,), _ = end_early(folder, signal.SIGTERM, "launcher")
    assert code == 128 + signal.SIGTERM
    assert error.startswith("error: stopped after ")
    assert error.endswith("images; the same command continues from there")
    code, (error,), printed = end_early(folder, signal.SIGKILL, "worker")
    assert code == 128 + signal.SIGKILL
    assert error.startswith("error: process 1 was ended by SIGKILL (is memory short?)")
    assert "resumed after " in printed
    assert "Traceback" not in printed
    assert any(line.startswith("resumed after ") for line in folder.run_alone(pretrain))
    close(folder.weights("pretrain"), expected)


@pytest.mark.slow
def test_torchrun_distils_what_one_process_does(folder):
    """And one of the processes speaks and writes, to MLflow too."""
    expected = folder.weights("distill", "generator")
    folder.forget("distill")
    process = folder.start(
        "distill", 1, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    )
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert printed.count("chose the generator after ") == 1
    close(folder.weights("distill", "generator"), expected)
    client = MlflowClient(f"sqlite:///{folder.paths.tracking_store}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "dsd"]
    runs = client.search_runs([experiment.experiment_id], "tags.`dvc.stage` = 'distill'")
    assert [run.info.status for run in runs] == ["FINISHED"]


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_pixel_that_only_the_leading_process_sees_stops_all(folder):
    """It alone measures; the others must not wait for it for ever, and the error is told once."""
    before = folder.params.read_text()
    diverging = {"distill.selection.every_kimg": 0.032, "distill.learning_rate": 1.0e6}
    set_params(folder.paths.root, diverging)
    process = folder.start("distill", 2)
    printed, _ = process.communicate(timeout=120)
    folder.params.write_text(before)
    assert process.returncode == 4, printed
    assert "images hold NaN" in printed
    assert printed.count("3 attempts ended so, at the same step") == 1
    assert printed.count("error: NaN or infinite after") == 1
    assert "Traceback" not in printed
