"""Locks between processes: files that the kernel frees when their holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, final

from dsd.errors import DsdError

__all__ = ["BusyError", "exclusive", "in_turn", "try_lock", "unlock"]


@final
class BusyError(DsdError):
    """Another process does the same thing in the same place."""

    exit_code = 6


@contextmanager
def exclusive(lock: Path, purpose: str) -> Iterator[None]:
    """Hold the file ``lock`` for the length of the block; it frees itself if the process dies.

    Raises:
        BusyError: Another process holds it; the message says which.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle, ours = _claimed(lock)
    with handle:
        if not ours:
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
            lock.unlink(missing_ok=True)
            unlock(handle)


def _claimed(lock: Path) -> tuple[TextIO, bool]:
    """The open file, and whether this process has its lock now."""
    while True:
        handle = lock.open("a+", encoding="ascii")
        if not try_lock(handle):
            return handle, False
        # The last holder may have removed it between opening and locking.
        with suppress(FileNotFoundError):
            if os.path.samestat(lock.stat(), os.fstat(handle.fileno())):
                return handle, True
        handle.close()


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
