"""Locks between processes, on one host or on several that share a folder.

What trains or writes a stage holds a lease (:func:`exclusive`): a file that names its holder, who
renews it every few seconds. It needs nothing of the file system but that two hosts cannot both
create one file. Short turns hold a lock of the kernel (:func:`blocking_lock`). Some file systems
of clusters have none (Lustre mounted without ``flock``, NFS without ``lockd``); there turns are
not taken, with one warning.
"""

import errno
import fcntl
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TextIO, final

from filelock import LeaseCompromise, SoftFileLease, Timeout

from dsd.utils.errors import DsdError

__all__ = [
    "BusyError",
    "blocking_lock",
    "can_lock",
    "exclusive",
    "is_held",
    "lease",
    "locks_work_in",
    "this_host",
    "try_lock",
    "unlock",
]

_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""Errors of file systems that have no locks."""

_LEASE_SECONDS = 20.0
"""A holder on another host that has not renewed its lease for this time is dead."""

_RENEWAL_SECONDS = 2.0

_unlockable: set[int] = set()
"""Devices of such file systems that this process has met."""


@final
class BusyError(DsdError):
    """Another process does the same in the same place."""

    exit_code = 6


@contextmanager
def exclusive(lock: Path, purpose: str) -> Iterator[None]:
    """Hold the file ``lock`` during the block, on all hosts that share its folder.

    The lease of a process of this host that has died is free; that of one on another host is when
    it was not renewed for 20 s. A process whose lease was taken from it, because it did not run
    for so long, gets SIGTERM.

    Raises:
        BusyError: Another process holds it; the message says which.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = lease(lock)
    _acquire(held, lock, purpose)
    try:
        yield
    finally:
        held.release()


def lease(lock: Path) -> SoftFileLease:
    """A lease on ``lock``, to be acquired for as long as this process lives."""
    return SoftFileLease(
        lock,
        lease_duration=_LEASE_SECONDS,
        heartbeat_interval=_RENEWAL_SECONDS,
        on_compromise=_stop_this_process,
        poll_interval=0.1,
        thread_local=False,
    )


def is_held(lock: Path) -> bool:
    """Whether a living process holds the lease ``lock``, without waiting.

    A process on another host lives if it has renewed the lease within 20 s, by the clock of the
    file system.
    """
    probe = lease(lock)
    try:
        probe.acquire(blocking=False)
    except Timeout:
        holder = _holder(lock)
    else:
        probe.release()
        return False
    if holder is None or holder.host == this_host():
        return holder is not None
    with TemporaryFile(dir=lock.parent) as now:
        age_ns = os.fstat(now.fileno()).st_mtime_ns - holder.renewed_ns
    return age_ns < _LEASE_SECONDS * 1e9


def _acquire(held: SoftFileLease, lock: Path, purpose: str) -> None:
    """Take the lease if its holder is dead; tell living holders by their renewals."""
    seconds, first = 0.0, None
    while True:
        try:
            held.acquire(timeout=seconds)
        except Timeout:
            holder = _holder(lock)
        else:
            return
        first, seconds = first or holder, 1.0
        if holder is not None and (holder.host == this_host() or holder != first):
            here = holder.host == this_host()
            where = "here" if here else f"on host {holder.host.partition('?')[0]}"
            stop = f"stop it {'' if here else 'there '}with `kill {holder.pid}`"
            msg = (
                f"{purpose} is already running {where} in process {holder.pid}; wait until it "
                f"ends or {stop}, then run the same command again"
            )
            raise BusyError(msg)


@dataclass(frozen=True)
class _Holder:
    """What the file of a lease says."""

    pid: str
    host: str
    renewed_ns: int


def _holder(lock: Path) -> _Holder | None:
    """Read who holds a lease; None for nobody, or where it is being written."""
    try:
        renewed_ns = lock.stat().st_mtime_ns
        text = lock.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return None
    known = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if not {"pid", "host"} <= known.keys():
        return None
    return _Holder(known["pid"], known["host"], renewed_ns)


@cache
def this_host() -> str:
    """This host, and its space of process ids, as leases name it."""
    with TemporaryDirectory() as folder:
        lock = Path(folder) / "lock"
        with SoftFileLease(lock):
            holder = _holder(lock)
    return "" if holder is None else holder.host


def _stop_this_process(lost: LeaseCompromise) -> None:
    """Leave what the lease protects to the process that has it by now."""
    logging.getLogger(__name__).error(
        "error: %s was deleted, or taken by another process (%s); stopping this one",
        lost.lock_file,
        lost.reason,
    )
    os.kill(os.getpid(), signal.SIGTERM)


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
