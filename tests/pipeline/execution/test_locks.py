"""File systems without locks, as some clusters have: runs go on, and are not taken for dead."""

import errno
import fcntl
import os
import subprocess
import sys
from uuid import uuid4

import pytest

from flows.dvc import experiment
from flows.dvc.runner import DvcError, planned_stages
from flows.runtime.run_records import active_runs, crashed_runs, create_locked_record
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
        with exclusive(tmp_path / "stage", "stage x"), blocking_lock(tmp_path / "turn"):
            pass
    (record,) = caplog.records
    assert "has no locks" in record.getMessage()
    assert os.strerror(no_locks) in record.getMessage()
    assert "two runs at once in this workspace are not noticed" in record.getMessage()


def test_another_error_of_a_lock_is_not_taken_for_a_missing_one(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(OSError, match="Input/output error"),
        exclusive(tmp_path / "stage", "stage x"),
    ):
        pass


def test_where_there_are_locks_the_second_run_is_refused(tmp_path):
    with (
        exclusive(tmp_path / "stage", "stage x"),
        pytest.raises(BusyError, match=f"in process {os.getpid()}"),
        exclusive(tmp_path / "stage", "stage x"),
    ):
        pass


def test_without_locks_a_living_session_is_not_taken_for_an_abandoned_one(no_locks, tmp_path):
    session = open_session(tmp_path, Record("pretrain", "name", "dsd", "uri", {}, {}, 0))
    assert list(abandoned_sessions(tmp_path)) == []
    session.mark_handed_off()
    assert [found.record.token for found in abandoned_sessions(tmp_path)] == [session.record.token]


def test_without_locks_a_flow_run_lives_as_long_as_its_process(no_locks, tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    ended = uuid4()
    (tmp_path / str(ended)).write_text(f"{uuid4()} {dead.pid}\n")
    living = uuid4()
    create_locked_record(tmp_path, living, uuid4())
    assert [run.run_id for run in crashed_runs(tmp_path)] == [ended]
    assert [run.run_id for run in active_runs(tmp_path)] == [living]


def test_without_locks_no_copy_of_a_workspace_is_taken_for_that_of_a_killed_run(
    no_locks, tmp_path
):
    copy = tmp_path / experiment._COPIES / "of-a-living-run"
    copy.mkdir(parents=True)
    experiment._prune(tmp_path)
    assert copy.exists()


def test_a_lock_is_asked_of_a_file_that_can_be_written(tmp_path, monkeypatch):
    """As NFS has it, which refuses to lock others."""
    lock = fcntl.flock

    def nfs(file, operation):
        if not file.writable():
            raise OSError(errno.EBADF, "Bad file descriptor")
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", nfs)
    create_locked_record(tmp_path, uuid4(), uuid4())
    assert len(active_runs(tmp_path)) == 1


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
