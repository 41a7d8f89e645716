"""Several hosts of one job: what SLURM is asked for, and what ends when a host is lost."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from dsd.utils.errors import ParamsError
from pipeline.runtime import hosts
from pipeline.runtime.hosts import Meeting, joined_by, num_hosts, refuse_tasks
from sandbox import ROOT
from sandbox.workspace import until


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({}, 1),
        ({"SLURM_JOB_NUM_NODES": "2"}, 1),  # an allocation seen from the login host
        ({"SLURM_JOB_NUM_NODES": "2", "SLURMD_NODENAME": "a"}, 2),
        ({"SLURM_JOB_NUM_NODES": "2", "SLURM_STEP_NUM_NODES": "1", "SLURMD_NODENAME": "a"}, 1),
    ],
)
def test_the_hosts_of_a_job_are_those_of_its_batch_script(variables, count, monkeypatch):
    for name in ("SLURM_JOB_NUM_NODES", "SLURM_STEP_NUM_NODES", "SLURMD_NODENAME"):
        monkeypatch.delenv(name, raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert num_hosts() == count


def test_of_several_tasks_the_first_one_alone_says_why_none_runs(monkeypatch, capsys):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    refuse_tasks()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(ParamsError, match="srun started this command 2 times: start it once"):
        refuse_tasks()
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(SystemExit) as ended:
        refuse_tasks()
    assert ended.value.code == ParamsError.exit_code
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Sets what ``srun`` does; a ``scontrol`` that notes what it is asked for."""

    def program(name, text):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    program("scontrol", f'echo "$@" > {tmp_path}/asked')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(hosts, "_OWN_END_SECONDS", 0.5)
    return lambda text: program("srun", text)


def test_the_other_hosts_run_the_same_stage_and_meet_the_first(slurm, tmp_path):
    slurm(f'echo "$@" > {tmp_path}/ran')
    with joined_by(Meeting(3, address="a", port=5, name="x"), "distill", 4):
        pass
    asked = (tmp_path / "ran").read_text()
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1" in asked
    assert "--nnodes=3 --nproc-per-node=4 --rdzv-id=x --master-addr=a --master-port=5" in asked
    assert "--node-rank=$((SLURM_PROCID + 1)) -m pipeline distill" in asked
    assert not (tmp_path / "asked").exists()


def test_a_failure_of_other_hosts_ends_this_one(slurm):
    slurm("exit 9")
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *signalled: heard.append(1))
    try:
        with joined_by(Meeting(2), "pretrain", 1) as others:
            until(lambda: heard, 20, "SIGTERM")
            assert others.poll() == 9
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("obeys", "requeued"), [("", False), ("trap '' TERM; ", True)])
def test_a_job_whose_other_hosts_do_not_obey_slurm_is_queued_again(
    obeys, requeued, slurm, tmp_path
):
    slurm(f"{obeys}touch {tmp_path}/begun; while :; do sleep 0.1; done")
    begun = (tmp_path / "begun").exists
    with suppress(KeyError), joined_by(Meeting(2), "pretrain", 1) as others:
        until(begun, 20, "srun")
        raise KeyError
    assert others.wait(20)
    assert (tmp_path / "asked").exists() == requeued
    assert not requeued or (tmp_path / "asked").read_text() == "requeue 7\n"


MEMBER = """
import sys, time
from datetime import timedelta
from types import SimpleNamespace
from pipeline.execution import distributed
distributed._SILENCE = timedelta(seconds=3)
compute = SimpleNamespace(device="cpu", micro_batch_size="auto")
with distributed.init_distributed(compute, 8):
    print("met", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def member(rank, port, seconds):
    env = {
        **os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "x",
    }  # fmt: skip
    command = [sys.executable, "-c", MEMBER, str(seconds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP, None])
def test_a_process_ends_when_one_on_another_host_does_or_is_silent(fate):
    """SIGSTOP: as a host without power, it says nothing and closes nothing."""
    port = Meeting(2).port
    pair = [member(rank, port, 1 if fate is None else 300) for rank in (0, 1)]
    for process in pair:
        assert process.stdout.readline() == "met\n", process.stderr.read()
    try:
        if fate is None:  # all end well, the last one some time after the first
            assert [process.wait(60) for process in pair] == [0, 0]
            return
        begun = time.monotonic()
        pair[1].send_signal(fate)
        assert pair[0].wait(60) == 128 + signal.SIGKILL
        assert "on another host" in pair[0].stderr.read()
        assert time.monotonic() - begun < 20
    finally:
        for process in pair:
            process.kill()
