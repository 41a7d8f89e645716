"""Locks between processes: files that the kernel frees when their holder dies.

Some file systems of clusters have no such locks (Lustre mounted without ``flock``, NFS without
``lockd``). There no run is refused, with one warning: no run must fail for want of a lock.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO, final

from dsd.utils.errors import DsdError

__all__ = [
    "BusyError",
    "blocking_lock",
    "can_lock",
    "exclusive",
    "locks_work_in",
    "try_lock",
    "unlock",
]

_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""Errors of file systems that have no locks."""

_unlockable: set[int] = set()
"""Devices of such file systems that this process has met."""


@final
class BusyError(DsdError):
    """Another process does the same in the same place."""

    exit_code = 6


@contextmanager
def exclusive(lock: Path, purpose: str) -> Iterator[None]:
    """Hold the file ``lock`` during the block; the kernel frees it if the process dies.

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
    """Return the open file, and whether this process has its lock now."""
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
    """Take the lock of an open file unless another process has it.

    Always true where the file system has no locks; see :func:`can_lock`.
    """
    try:
        _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def can_lock(handle: TextIO) -> bool:
    """Whether the file can have a lock; call :func:`try_lock` before."""
    return os.fstat(handle.fileno()).st_dev not in _unlockable


def locks_work_in(folder: Path) -> bool:
    """Whether files in ``folder`` can have locks."""
    with TemporaryFile("w", dir=folder) as handle:
        return try_lock(handle) and can_lock(handle)


def unlock(handle: TextIO) -> None:
    """Release the lock, also for child processes that inherited the open file."""
    _lock(handle, fcntl.LOCK_UN)


def _lock(handle: TextIO, operation: int) -> None:
    """Ask the kernel; where it has no locks, warn once for each reason and go on."""
    try:
        fcntl.flock(handle, operation)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        _unlockable.add(os.fstat(handle.fileno()).st_dev)
        _say_that_there_are_no_locks(os.strerror(error.errno))


@cache
def _say_that_there_are_no_locks(reason: str) -> None:
    logging.getLogger(__name__).warning(
        "warning: this file system has no locks (%s), so that two runs at once in this workspace "
        "are not noticed; start one at a time (docs/running.md)",
        reason,
    )


@contextmanager
def blocking_lock(lock: Path) -> Iterator[None]:
    """Hold the file ``lock`` during the block; wait for it first."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a", encoding="ascii") as handle:
        _lock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            unlock(handle)
