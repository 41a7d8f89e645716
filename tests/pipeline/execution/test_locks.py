"""File systems without locks, as some clusters have: runs go on, and are not taken for dead."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from uuid import uuid4

import pytest

from flows.dvc import experiment
from flows.dvc.runner import DvcError, planned_stages
from flows.runtime import run_records
from flows.runtime.run_records import active_runs, crashed_runs, create_record, forget_run
from pipeline.execution import locks
from pipeline.execution.locks import BusyError, blocking_lock, exclusive, try_lock
from pipeline.tracking.session import Record, abandoned_sessions, open_session


@pytest.fixture(params=[errno.ENOLCK])
def no_locks(request, monkeypatch):
    """The error by which the file system refuses all locks."""

    def refuse(file, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(locks, "_unlockable", set())
    monkeypatch.setattr(fcntl, "flock", refuse)
    locks._say_that_there_are_no_locks.cache_clear()
    return request.param


def test_a_file_system_without_locks_stops_nothing_and_is_told_once(no_locks, tmp_path, caplog):
    for _ in range(2):
        with blocking_lock(tmp_path / "turn"):
            pass
    (record,) = caplog.records
    assert "has no locks" in record.getMessage()
    assert os.strerror(no_locks) in record.getMessage()


def test_another_error_of_a_lock_is_not_taken_for_a_missing_one(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"), blocking_lock(tmp_path / "turn"):
        pass


def test_a_stage_is_run_once_at_a_time_with_or_without_locks_of_the_kernel(no_locks, tmp_path):
    with (
        exclusive(tmp_path / "stage", "stage x"),
        pytest.raises(
            BusyError, match=f"running here in process {os.getpid()};.*`kill {os.getpid()}`"
        ),
        exclusive(tmp_path / "stage", "stage x"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


HOLD = """
import os, sys
from pathlib import Path
from pipeline.execution.locks import exclusive
with exclusive(Path(sys.argv[1]), "stage x"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def killed(tmp_path):
    """What a process that held the lock left when it was killed."""
    lock = tmp_path / "stage"
    command = [sys.executable, "-c", HOLD, lock]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        process.kill()
    return lock


def test_what_a_killed_process_held_is_free(killed):
    assert killed.exists()
    start = time.monotonic()
    with exclusive(killed, "stage x"):
        assert time.monotonic() - start < 1


def of_another_host(lock, seconds):
    """Let a lease be one of another host, where a process of any number may live."""
    lines = lock.read_text().splitlines()
    changed = {
        "host": "node7?pidns-f0000001", "pid": "4", "duration": str(seconds), "token": 32 * "0"
    }  # fmt: skip
    lines = [
        f"{key}={changed[key]}" if (key := line.split("=")[0]) in changed else line
        for line in lines
    ]
    taken = lock.with_suffix(".new")
    taken.write_text("\n".join(lines) + "\n")
    taken.replace(lock)


def test_a_holder_on_another_host_is_dead_when_its_lease_was_not_renewed(killed, monkeypatch):
    monkeypatch.setattr(locks, "_LEASE_SECONDS", 3.0)
    of_another_host(killed, 3.0)
    start = time.monotonic()
    with exclusive(killed, "stage x"):
        assert 3 <= time.monotonic() - start < 10


def test_a_living_holder_on_another_host_is_named(killed, monkeypatch):
    of_another_host(killed, locks._LEASE_SECONDS)
    ended = threading.Event()

    def renew():
        while not ended.wait(0.2):
            os.utime(killed)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with (
            pytest.raises(
                BusyError, match=r"on host node7 in process 4;.*stop it there with `kill 4`"
            ),
            exclusive(killed, "stage x"),
        ):
            pass
    finally:
        ended.set()
        thread.join()
    assert "node7" in killed.read_text()


def test_a_process_whose_lease_was_taken_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_RENEWAL_SECONDS", 0.1)
    heard = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: heard.set())
    try:
        with exclusive(tmp_path / "stage", "stage x"):
            of_another_host(tmp_path / "stage", 20.0)
            assert heard.wait(10)
        assert "node7" in (tmp_path / "stage").read_text()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_locks_a_living_session_is_not_taken_for_an_abandoned_one(no_locks, tmp_path):
    session = open_session(tmp_path, Record("pretrain", "name", "dsd", "uri", {}, {}, 0))
    assert list(abandoned_sessions(tmp_path)) == []
    session.mark_handed_off()
    assert [found.record.token for found in abandoned_sessions(tmp_path)] == [session.record.token]


def test_a_flow_run_lives_as_long_as_its_process_on_whatever_host(no_locks, tmp_path, monkeypatch):
    monkeypatch.setattr(run_records, "RECORDS", tmp_path)
    living = uuid4()
    create_record(tmp_path, living, uuid4())
    assert [run.run_id for run in active_runs(tmp_path)] == [living]
    elsewhere, text = uuid4(), (tmp_path / str(living)).read_text()
    lease = tmp_path / f"{elsewhere}.lease"
    lease.write_text((tmp_path / f"{living}.lease").read_text())
    of_another_host(lease, locks._LEASE_SECONDS)
    (tmp_path / str(elsewhere)).write_text(text.replace(locks.this_host(), "node7"))
    assert {run.run_id for run in active_runs(tmp_path)} == {living, elsewhere}
    assert [run.is_of_this_host for run in active_runs(tmp_path)].count(True) == 1
    os.utime(lease, (0, time.time() - 30))
    (dead,) = crashed_runs(tmp_path)
    assert dead.run_id == elsewhere
    dead.forget()
    forget_run(None, SimpleNamespace(id=living), None)
    assert list(tmp_path.iterdir()) == []


def test_without_locks_no_copy_of_a_workspace_is_taken_for_that_of_a_killed_run(
    no_locks, tmp_path
):
    copy = tmp_path / experiment._COPIES / "of-a-living-run"
    copy.mkdir(parents=True)
    experiment._prune(tmp_path)
    assert copy.exists()


def test_flows_name_the_setting_that_dvc_needs_without_locks(no_locks, tmp_path):
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text("stages: {only: {cmd: 'true'}}\n")
    with pytest.raises(DvcError, match=r"without locks.*dvc config --local core.hardlink_lock"):
        planned_stages(tmp_path)
    setting = ["config", "--local", "core.hardlink_lock", "true"]
    subprocess.run([*dvc, *setting], cwd=tmp_path, check=True)
    assert [stage.name for stage in planned_stages(tmp_path)] == ["only"]


def test_a_lock_that_another_process_holds_is_not_taken(tmp_path):
    with (tmp_path / "lock").open("a") as ours, (tmp_path / "lock").open("a") as theirs:
        assert try_lock(ours)
        assert not try_lock(theirs)
