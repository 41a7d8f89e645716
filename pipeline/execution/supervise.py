"""Runs a command whose stages save their state before all ends: for schedulers and containers.

``python -m pipeline.execution.supervise dvc repro`` ends when the command has ended. After
SIGTERM, SIGINT, SIGHUP or SIGUSR1 it ends when every stage has saved its state, and not before:
SLURM sends SIGTERM to all processes of a job and kills what is left once the first has ended,
which DVC does within a moment. As the first process of a container it also waits for orphans, as
one must.

In a job of SLURM, SIGUSR1 says that the time limit is near (``--signal=B:USR1@120``): the job is
put into the queue again, where the same command continues.

With ``--alone`` before the command it starts nothing, and ends with code 6, while a stage or
another such command runs in this folder, on this host or another one: DVC knows processes of its
own host only, and deletes the outputs of a stage that another host computes.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

import psutil

from dsd.utils.errors import DsdError
from pipeline.execution.locks import exclusive
from pipeline.runtime.hosts import refuse_tasks, requeue
from pipeline.stage_io.paths import Paths
from pipeline.stages import STAGES

__all__ = ["main"]

_PR_SET_CHILD_SUBREAPER = 36

_END_WITHIN_S = 25.0
"""A stage ends 20 s after a signal, whatever it does (pipeline/runtime/signals.py)."""

_END_BEFORE_LIMIT_S = 90.0
"""After SIGUSR1, which the batch scripts ask for 120 s before the time limit."""

_USAGE = "error: name a command: python -m pipeline.execution.supervise [--alone] dvc repro"


def main(command: Sequence[str]) -> int:
    """Run ``command``; stop it after a signal when its stages have saved.

    Returns:
        The command's exit code, or 128 plus the number of the signal; 6 if another run is here, 2
        as one of several tasks of ``srun``.
    """
    alone = command[:1] == ["--alone"]
    command = command[1:] if alone else command
    if not command:
        print(_USAGE, file=sys.stderr)
        return 2
    try:
        refuse_tasks()
        with ExitStack() as held:
            if alone:
                _require_no_other_run(held)
            return _supervise(command)
    except DsdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _require_no_other_run(held: ExitStack) -> None:
    """Hold this folder until ``held`` is closed; raise if a stage or another command has it."""
    paths = Paths(Path.cwd())
    held.enter_context(exclusive(paths.lock("run"), "a run of this pipeline"))
    for stage in STAGES:
        with exclusive(paths.lock(stage), f"stage {stage}"):
            pass


def _supervise(command: Sequence[str]) -> int:
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, hear)
    _adopt_orphans()
    try:
        process = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror}; check its name and PATH", file=sys.stderr)
        return 127
    while (code := _reap(process)) is None and not heard:
        time.sleep(0.1)
    if code is not None and not heard:
        return code if code >= 0 else 128 - code
    print(f"{signal.Signals(heard[0]).name}: waiting until stages have saved", file=sys.stderr)
    # The whole group: a shell would end and leave DVC at work. A flow stops its stage itself.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    _end(process, _END_BEFORE_LIMIT_S if heard[0] == signal.SIGUSR1 else _END_WITHIN_S)
    if heard[0] == signal.SIGUSR1:
        requeue()
    return 128 + heard[0]


def _adopt_orphans() -> None:
    """Become the parent of processes below this one whose own parent ends (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap(process: "subprocess.Popen[bytes]") -> int | None:
    """Take note of children that have ended; the exit code of ``process`` if it has."""
    code = process.poll()
    for child in psutil.Process().children():
        if child.pid != process.pid:
            with suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)
    return code


def _end(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Wait until the command and all stages have ended; kill what has not in time."""
    deadline = time.monotonic() + seconds
    while (_reap(process) is None or any(_stages())) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = psutil.Process().children(recursive=True)
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=5)
    _reap(process)


def _stages() -> Iterator[psutil.Process]:
    """Living processes of stages below this one."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and "DVC_STAGE" in child.environ():
                yield child


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
