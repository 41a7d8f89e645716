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
    default_remote,
    planned_stages,
    push,
    run_stage,
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

SAVE_ON_TERM = """
    import os, signal, time
    def save(*_):
        time.sleep(0.3)
        print("state saved", flush=True)
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    pathlib.Path("pids").write_text(f"{os.getpid()} {os.getppid()}")
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
    (folder / ".dvc" / "tmp").mkdir(parents=True)  # as by `dvc init --no-scm`
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = True\n")
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
    assert [stage.name for stage in planned_stages(root)] == ["first", "middle", "last"]
    lines: list[str] = []
    assert run_stage(root, "first", lines.append).outcome == "ran"
    assert "working on first" in lines
    assert run_stage(root, "first", quiet).outcome == "cached"
    (root / "params.yaml").write_text("first: 5\nsecond: 2\n")
    assert run_stage(root, "first", quiet).outcome == "ran"
    (root / "params.yaml").write_text("first: 1\nsecond: 2\n")
    assert run_stage(root, "first", quiet).outcome == "restored"
    assert (root / "first.out").read_text() == "first1"
    assert run_stage(root, "first", quiet, force=True).outcome == "ran"


@pytest.mark.parametrize(
    ("body", "killed"), [(REFUSE, False), (DIE, True)], ids=["refuses", "dies"]
)
def test_a_failing_stage_speaks_for_itself_and_a_killed_one_is_told_from_it(
    body, killed, tmp_path
):
    with pytest.raises(StageFailedError) as caught:
        run_stage(workspace(tmp_path, body), "first", quiet)
    assert caught.value.was_killed == killed
    assert "failed to reproduce" not in str(caught.value)
    if not killed:
        assert caught.value.exit_code == 2
        assert caught.value.tail[-1] == "error: params.yaml: first = 7 is too large"


def test_dvc_errors_keep_dvc_words(tmp_path):
    with pytest.raises(DvcError, match="middle"):
        run_stage(workspace(tmp_path), "middle", quiet)  # first.out does not exist


@pytest.mark.parametrize("saves", [True, False])
def test_an_interrupted_stage_may_save_its_state_and_ends_with_all_its_processes(
    saves, tmp_path, monkeypatch
):
    root = workspace(tmp_path, SAVE_ON_TERM if saves else IGNORE_TERM)
    if not saves:
        monkeypatch.setattr(dvc_runner, "STOP_GRACE_S", 0.5)
    lines: list[str] = []
    thread = interrupt_main_thread_once_running(root)
    with pytest.raises(KeyboardInterrupt):
        run_stage(root, "first", lines.append)
    thread.join()
    assert ("state saved" in lines) == saves
    assert gone((root / "pids").read_text())
    # The next run is not hindered by what the killed DVC left behind.
    (root / "work.py").write_text(WORK.replace("{body}", "pass"))
    assert run_stage(root, "first", quiet).outcome == "ran"


def test_a_busy_workspace_is_waited_for_and_its_owner_is_named(tmp_path):
    root = workspace(tmp_path, SAVE_ON_TERM)
    notes = root / ".dvc" / "tmp" / "rwlock"
    command = [sys.executable, "-m", "dvc", "repro", "-s", "first"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    owner = subprocess.Popen(
        command, cwd=root, start_new_session=True, env={**os.environ, "PATH": path}
    )
    lines: list[str] = []
    try:
        wait_for(root / "pids")
        with pytest.raises(DvcError, match=rf"PID {owner.pid}.*stop it"):
            run_stage(root, "first", lines.append, busy_limit_s=0.5)
        assert any(f"PID {owner.pid}" in line and "trying again" in line for line in lines)

        whole = notes.read_bytes()
        notes.write_bytes(b"")
        with pytest.raises(DvcError, match=rf"PID {owner.pid}\): let it finish"):
            run_stage(root, "first", quiet)
        notes.write_bytes(whole)

        (root / "work.py").write_text(WORK.replace("{body}", "pass"))
        threading.Timer(1.0, end, (owner,)).start()
        assert run_stage(root, "first", quiet, busy_limit_s=300).outcome == "ran"
    finally:
        end(owner)


def test_what_a_killed_dvc_left_half_written_hinders_no_run(tmp_path):
    root = workspace(tmp_path)
    notes = root / ".dvc" / "tmp" / "rwlock"
    run_stage(root, "first", quiet)
    for content in (b"", b'{"write": {"', b"\xff", b'{"write": 3}'):
        notes.write_bytes(content)
        lines: list[str] = []
        dvc_runner._remove_broken_notes(root, lines.append)
        assert f"removed {notes}" in lines[0]
        dvc_runner._remove_broken_notes(root, lines.append)
        assert len(lines) == 1
    notes.write_bytes(b"{")
    assert run_stage(root, "first", quiet).outcome == "cached"


def test_results_are_pushed_to_a_remote_that_takes_them_or_is_named_with_the_reason(tmp_path):
    root = tmp_path / "work"
    root.mkdir()
    workspace(root)
    assert default_remote(root) is None
    run_stage(root, "first", quiet)
    with pytest.raises(DvcError, match="no remote"):
        push(root, quiet)
    (tmp_path / "file").touch()
    config = "[core]\n    remote = store\n['remote \"store\"']\n    url = {}/store\n"
    (root / ".dvc" / "config.local").write_text(config.format(tmp_path / "file"))
    with pytest.raises(DvcError) as caught:
        push(root, quiet)
    message = str(caught.value)
    assert message.startswith(f"the DVC remote 'store' ({tmp_path}/file/store) did not take")
    assert "Not a directory" in message
    assert "computes nothing again" in message
    (root / ".dvc" / "config.local").write_text(config.format(tmp_path))
    push(root, quiet)
    assert any((tmp_path / "store").rglob("*"))


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
