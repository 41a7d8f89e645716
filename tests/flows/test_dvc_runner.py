"""The runner against real DVC, in workspaces of one-line stages."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.dvc import runner as dvc_runner
from flows.dvc.runner import (
    DvcError,
    StageFailedError,
    WorkspaceBusyError,
    has_remote,
    push,
    run_stage,
    stages_in_order,
)
from sandbox import ROOT

PIPELINE = ROOT / "pipeline"

DVC_YAML = """
stages:
  last:
    cmd: python work.py last
    deps: [work.py, middle.out]
    outs: [last.out]
  first:
    cmd: python work.py first
    deps: [work.py]
    params: [first]
    outs: [first.out]
  middle:
    cmd: python work.py middle
    deps: [work.py, first.out]
    outs: [middle.out]
"""

WORK = """
import pathlib, sys
name = sys.argv[1]
values = dict(line.split(": ") for line in pathlib.Path("params.yaml").read_text().splitlines())
print("working on", name)
if name == "first":
    {body}
pathlib.Path(name + ".out").write_text(name + values["first"])
"""

SLEEP = """
    import os, time
    pathlib.Path("pids").write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(60)
"""

SAVE_ON_TERM = """
    import os, signal, time
    def save(*_):
        time.sleep(0.3)
        print("state saved", flush=True)
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    pathlib.Path("pids").write_text(str(os.getpid()))
    time.sleep(60)
"""

IGNORE_TERM = """
    import os, signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path("pids").write_text(str(os.getpid()))
    time.sleep(60)
"""

REFUSE = """
    print("error: params.yaml: first = 7 is too large", file=sys.stderr)
    sys.exit(2)
"""

DIE = """
    import os
    os.kill(os.getpid(), 9)
"""


def workspace(folder: Path, body: str = "pass") -> Path:
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text("first: 1\nsecond: 2\n")
    (folder / "work.py").write_text(WORK.replace("{body}", body.strip()))
    return folder


def quiet(_line: str) -> None:
    pass


def wait_for(path: Path, seconds: float = 120) -> str:
    deadline = time.monotonic() + seconds
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)
    return path.read_text()


def gone(pids: str) -> bool:
    """Whether all processes have ended, within a second; a zombie that nobody reaped has."""
    deadline = time.monotonic() + 1
    while any(alive(int(pid)) for pid in pids.split()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process group and reap its leader: DVC takes a zombie for a living owner."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def interrupt_main_thread_once_running(root: Path) -> threading.Thread:
    """Ctrl-C for the test's own thread as soon as the stage works."""

    def later() -> None:
        wait_for(root / "pids")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=later)
    thread.start()
    return thread


def test_the_order_comes_from_dvc_and_the_three_outcomes_are_told_apart(tmp_path):
    root = workspace(tmp_path)
    assert stages_in_order(root) == ["first", "middle", "last"]

    lines: list[str] = []
    assert [run_stage(root, s, lines.append).outcome for s in stages_in_order(root)] == ["ran"] * 3
    assert "working on middle" in lines

    assert run_stage(root, "middle", quiet).outcome == "cached"
    (root / "params.yaml").write_text("first: 5\nsecond: 2\n")
    assert run_stage(root, "first", quiet).outcome == "ran"
    (root / "params.yaml").write_text("first: 1\nsecond: 2\n")
    assert run_stage(root, "first", quiet).outcome == "restored"
    assert (root / "first.out").read_text() == "first1"
    assert run_stage(root, "first", quiet, force=True).outcome == "ran"


def test_a_failing_stage_speaks_for_itself(tmp_path):
    root = workspace(tmp_path, REFUSE)
    with pytest.raises(StageFailedError) as caught:
        run_stage(root, "first", quiet)
    assert caught.value.exit_code == 2
    assert not caught.value.was_killed
    assert caught.value.tail[-1] == "error: params.yaml: first = 7 is too large"
    assert "failed to reproduce" not in str(caught.value)


def test_a_killed_stage_is_told_from_a_refusing_one(tmp_path):
    root = workspace(tmp_path, DIE)
    with pytest.raises(StageFailedError) as caught:
        run_stage(root, "first", quiet)
    assert caught.value.was_killed


def test_dvc_errors_keep_dvc_words(tmp_path):
    root = workspace(tmp_path)
    with pytest.raises(DvcError, match="middle"):
        run_stage(root, "middle", quiet)  # first.out does not exist
    with pytest.raises(DvcError, match="nonsense"):
        run_stage(root, "nonsense", quiet)


def test_an_interrupt_ends_every_process_of_the_stage(tmp_path):
    root = workspace(tmp_path, SLEEP)
    thread = interrupt_main_thread_once_running(root)
    with pytest.raises(KeyboardInterrupt):
        run_stage(root, "first", quiet)
    thread.join()
    assert gone((root / "pids").read_text())


def test_a_stopped_stage_may_save_its_state_and_is_heard(tmp_path):
    root = workspace(tmp_path, SAVE_ON_TERM)
    lines: list[str] = []
    thread = interrupt_main_thread_once_running(root)
    with pytest.raises(KeyboardInterrupt):
        run_stage(root, "first", lines.append)
    thread.join()
    assert "state saved" in lines
    # The next run is not hindered by what the killed DVC left behind.
    (root / "work.py").write_text(WORK.replace("{body}", "pass"))
    assert run_stage(root, "first", quiet).outcome == "ran"


def test_a_stage_that_will_not_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(dvc_runner, "STOP_GRACE_S", 0.5)
    root = workspace(tmp_path, IGNORE_TERM)
    thread = interrupt_main_thread_once_running(root)
    with pytest.raises(KeyboardInterrupt):
        run_stage(root, "first", quiet)
    thread.join()
    assert gone((root / "pids").read_text())


def test_a_busy_workspace_is_waited_for_and_its_owner_is_named(tmp_path):
    root = workspace(tmp_path, SLEEP)
    command = [sys.executable, "-m", "dvc", "repro", "-s", "first"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    owner = subprocess.Popen(
        command, cwd=root, start_new_session=True, env={**os.environ, "PATH": path}
    )
    lines: list[str] = []
    try:
        wait_for(root / "pids")
        with pytest.raises(WorkspaceBusyError, match=rf"PID {owner.pid}.*stop it"):
            run_stage(root, "first", lines.append, busy_limit_s=0.5)
        assert any(f"PID {owner.pid}" in line and "trying again" in line for line in lines)

        (root / "work.py").write_text(WORK.replace("{body}", "pass"))
        threading.Timer(1.0, end, (owner,)).start()
        assert run_stage(root, "first", quiet, busy_limit_s=300).outcome == "ran"
    finally:
        end(owner)


def test_what_a_killed_dvc_left_half_written_hinders_no_run(tmp_path):
    root = workspace(tmp_path)
    notes = root / ".dvc" / "tmp" / "rwlock"
    run_stage(root, "first", quiet)
    whole = notes.read_bytes()
    for content in (b"", b'{"write": {"', b"\xff", b'{"write": 3}'):
        notes.write_bytes(content)
        lines: list[str] = []
        assert run_stage(root, "first", lines.append).outcome == "cached"
        assert f"removed {notes}" in lines[0]
    assert notes.read_bytes() == whole
    assert run_stage(root, "first", lines.append).outcome == "cached"
    assert sum("removed" in line for line in lines) == 1

    (root / "work.py").write_text(WORK.replace("{body}", SLEEP.strip()))
    command = [sys.executable, "-m", "dvc", "repro", "-s", "first"]
    owner = subprocess.Popen(command, cwd=root, start_new_session=True)
    try:
        wait_for(root / "pids")
        notes.write_bytes(b"")
        with pytest.raises(DvcError, match=rf"PID {owner.pid}\): let it finish"):
            run_stage(root, "middle", quiet)
    finally:
        end(owner)


def test_results_are_pushed_to_a_remote_if_there_is_one(tmp_path):
    root = tmp_path / "work"
    root.mkdir()
    workspace(root)
    assert not has_remote(root)
    with pytest.raises(DvcError, match="no remote"):
        push(root, quiet)
    command = [
        sys.executable,
        "-m",
        "dvc",
        "remote",
        "add",
        "-d",
        "store",
        str(tmp_path / "store"),
    ]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    assert has_remote(root)
    run_stage(root, "first", quiet)
    push(root, quiet)
    assert any((tmp_path / "store").rglob("*"))


def test_a_remote_that_does_not_take_the_results_is_named_with_the_reason(tmp_path):
    root = tmp_path / "work"
    root.mkdir()
    workspace(root)
    run_stage(root, "first", quiet)
    (tmp_path / "file").touch()
    config = f"[core]\n    remote = store\n['remote \"store\"']\n    url = {tmp_path}/file/store\n"
    (root / ".dvc" / "config.local").write_text(config)
    with pytest.raises(DvcError) as caught:
        push(root, quiet)
    message = str(caught.value)
    assert message.startswith(f"the DVC remote 'store' ({tmp_path}/file/store) did not take")
    assert "Not a directory" in message
    assert "computes nothing again" in message


TELLS = """
import os, signal, sys
print(os.environ["WHO"], sys.argv[1:], flush=True)
os.kill(os.getpid(), signal.SIGTERM) if sys.argv[1] == "die" else sys.exit(7)
"""


def environment(folder: Path, packages: bool) -> Path:
    """An environment whose Python tells which one it is, or lacks what stages need."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    inner = f"WHO={folder.name} exec {sys.executable}" if packages else "exit 1 #"
    python.write_text(f'#!/bin/sh\n{inner} "$@"\n')
    python.chmod(0o755)
    return folder


def test_a_stage_finds_its_python_where_no_environment_is_active(tmp_path):
    home = tmp_path / "a home"
    copy = home / ".dvc/tmp/exps/flows/one/inner"
    for root in (home, copy):
        (root / "pipeline").mkdir(parents=True)
        (root / "pipeline" / "__init__.py").touch()
        (root / "pipeline" / "stage.sh").write_text((PIPELINE / "stage.sh").read_text())
        (root / "pipeline" / "__main__.py").write_text(TELLS)

    def said(root: Path, stage: str = "prepare", **variables: object) -> tuple[int, str, str]:
        done = subprocess.run(
            ["/bin/sh", "pipeline/stage.sh", stage],
            cwd=root,
            env={"PATH": "/nowhere"} | {name: str(value) for name, value in variables.items()},
            text=True,
            capture_output=True,
        )
        return done.returncode, done.stdout, done.stderr

    code, _, message = said(home)
    assert code == 1
    assert message.endswith("or activate the environment that has them\n")
    assert f"run `make setup` in {home}" in message

    broken = environment(tmp_path / "broken", packages=False)
    active = environment(tmp_path / "active", packages=True)
    on_path = environment(tmp_path / "on_path", packages=True) / "bin"
    assert said(home, PATH=on_path)[:2] == (7, "on_path ['prepare']\n")
    environment(home / ".venv", packages=True)
    for root in (home, copy):
        assert said(root, PATH=on_path)[:2] == (7, ".venv ['prepare']\n")
    assert said(home, VIRTUAL_ENV=broken, CONDA_PREFIX=active)[1] == "active ['prepare']\n"
    assert said(home, VIRTUAL_ENV=active, CONDA_PREFIX=broken)[1] == "active ['prepare']\n"
    assert said(home, DSD_PYTHON=active / "bin/python")[1] == "active ['prepare']\n"
    code, _, message = said(home, DSD_PYTHON="/none")
    assert (code, message.count("\n")) == (1, 1)
    assert message.startswith("error: DSD_PYTHON is /none, which is no program")
    assert said(home, "die")[0] == -signal.SIGTERM
