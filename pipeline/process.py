"""The process around a stage: signals, exclusive use of its folders, and not outliving DVC."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO, final

from dsd.errors import DsdError
from pipeline.tether import end_with_parent

__all__ = [
    "BusyError",
    "StopSignal",
    "die_with_parent",
    "exclusive",
    "in_turn",
    "set_up_cpu",
    "try_lock",
    "unlock",
]

_SAME_KEYPRESS_SECONDS = 1.0


@final
class BusyError(DsdError):
    """Another process is running the same stage in the same workspace."""

    exit_code = 6


@final
class StopSignal:
    """Whether the user or the system asked this process to stop.

    While ``polite`` a signal is only remembered, for a stage that asks between its steps and saves
    its state; a second Ctrl-C then aborts at once. Otherwise every signal interrupts at once.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.polite = False
        self._first_at = 0.0

    def install(self) -> None:
        """Take over SIGINT, SIGTERM and, unless it is ignored as under nohup, SIGHUP."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now, first = time.monotonic(), self.number is None
        if first:
            self.number, self._first_at = number, now
        # A terminal and a parent may both forward one Ctrl-C, so a second one counts only later.
        again = number == signal.SIGINT and now - self._first_at > _SAME_KEYPRESS_SECONDS
        if again or (first and not self.polite):
            raise KeyboardInterrupt
        if first:
            # Not print: a handler must not enter a buffered stream that it may have interrupted.
            os.write(2, b"\nstopping: saving the state first (Ctrl-C again aborts at once)\n")


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent dies, so that a killed ``dvc`` leaves no orphan.

    Does nothing elsewhere, and nothing for a stage started by hand: that one may well outlive its
    shell.
    """
    if "DVC_STAGE" in os.environ:
        end_with_parent(os.getppid())


def set_up_cpu() -> None:
    """Choose how torch uses the CPU; to be called before torch is imported.

    Variables that are set already stay as they are. Figures are in docs/performance.md.
    """
    # Pages of 2 MB: each step frees and takes the memory of its activations anew.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Threads that wait for each other sleep after some microseconds instead of turning for ever,
    # which on a busy machine keeps the very thread that they wait for from running.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


@contextmanager
def exclusive(lock: Path, purpose: str) -> Iterator[None]:
    """Hold the file ``lock`` for the length of the block; it frees itself if the process dies.

    Raises:
        BusyError: Another process holds it; the message says which.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+", encoding="ascii") as handle:
        if not try_lock(handle):
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            msg = (
                f"{purpose} is already running here in process {holder}; wait until it ends or "
                f"stop it with `kill {holder}`, then run the same command again"
            )
            raise BusyError(msg)
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        try:
            yield
        finally:
            unlock(handle)


def try_lock(handle: TextIO) -> bool:
    """Take the lock of an open file unless another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(handle: TextIO) -> None:
    """Give the lock back, also for child processes that inherited the open file."""
    fcntl.flock(handle, fcntl.LOCK_UN)


@contextmanager
def in_turn(lock: Path) -> Iterator[None]:
    """Hold the file ``lock`` for the length of the block; wait for it if need be."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            unlock(handle)
