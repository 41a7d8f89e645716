"""What schedulers do to a job: its command ends at once, and its stage gets the time to save."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from pipeline.execution.locks import exclusive
from pipeline.stage_io.paths import Paths
from sandbox import ROOT
from sandbox.tiny_project import lives
from sandbox.workspace import until

SUPERVISE = [sys.executable, "-m", "pipeline.execution.supervise"]

# Ends at the first signal, as DVC does; its stage takes half a second to save.
COMMAND = """
import subprocess, sys
from pipeline.runtime.parent_death import tether
subprocess.run(tether([sys.executable, "-c", sys.argv[1]]), env={"DVC_STAGE": "pretrain"})
"""
STAGE = """
import signal, time
from pathlib import Path

def save(number, frame):
    for other in (signal.SIGTERM, number):
        signal.signal(other, signal.SIG_IGN)
    time.sleep(0.5)
    Path("saved").touch()
    raise SystemExit(128 + number)

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, save)
Path("works").touch()
time.sleep(60)
"""


@pytest.fixture
def job(tmp_path):
    """A supervised command whose stage works."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "$@" > requeued\n')
    scontrol.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "7"}
    command = [*SUPERVISE, sys.executable, "-c", COMMAND, STAGE]
    process = subprocess.Popen(command, cwd=tmp_path, env=env)
    until((tmp_path / "works").exists, 60, "the stage's work")
    yield process
    process.kill()


@pytest.mark.parametrize("to_all", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_job_ends_when_its_stage_has_saved_and_not_before(number, to_all, job, tmp_path):
    processes = psutil.Process(job.pid).children(recursive=True)
    assert len(processes) == 2
    for process in processes if to_all else []:
        process.send_signal(number)
    job.send_signal(number)
    assert job.wait(30) == 128 + number
    assert (tmp_path / "saved").exists()
    assert not any(map(lives, processes))
    # SIGTERM may be a preemption, which SLURM itself requeues, or the user's scancel.
    assert (tmp_path / "requeued").exists() == (number == signal.SIGUSR1)


def test_without_a_signal_the_exit_code_is_the_commands():
    def code(*command):
        return subprocess.run([*SUPERVISE, *command], cwd=ROOT, capture_output=True).returncode

    assert code("sh", "-c", "exit 3") == 3
    assert code("sh", "-c", "kill -9 $$") == 128 + 9
    assert code("no-such-command") == 127
    assert code() == 2


@pytest.mark.parametrize("what", ["pretrain", "run"])
def test_a_run_that_must_be_alone_starts_nothing_beside_another(what, tmp_path):
    with exclusive(Paths(tmp_path).lock(what), f"this {what}"):
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [*SUPERVISE, "--alone", "touch", "begun"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 6
    assert f"is already running here in process {os.getpid()}" in done.stderr
    assert not (tmp_path / "begun").exists()
    assert subprocess.run(command, cwd=tmp_path, env=env).returncode == 0
