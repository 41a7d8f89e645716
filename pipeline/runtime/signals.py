"""The process of a stage: signals, its use of CPU and compiler, and its end with DVC."""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import final

from pipeline.runtime.limits import available_cpus, has_cpu_quota
from pipeline.runtime.parent_death import end_with_parent

__all__ = ["StopSignal", "die_with_parent", "set_up_compiler", "set_up_cpu"]

_SAME_KEYPRESS_SECONDS = 1.0
_STOP_SECONDS = 20.0
_LIMITED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals of schedulers, after which the time is limited; SLURM's users ask for SIGUSR1."""


@final
class StopSignal:
    """The signal that asked this process to stop.

    While ``graceful``, a signal is only stored in ``number``, for a stage that saves its state
    between steps; a second Ctrl-C then aborts. Otherwise every signal interrupts immediately.

    Schedulers usually kill half a minute after SIGTERM, SIGHUP or SIGUSR1. A process that has not
    ended ``seconds`` after one of them ends in the middle of its work, as if killed.
    """

    def __init__(self, seconds: float = _STOP_SECONDS) -> None:
        self.number: int | None = None
        self.graceful = False
        self._seconds = seconds
        self._first_at = 0.0
        self._writer: int | None = None

    def install(self) -> None:
        """Take over SIGINT, SIGTERM and, unless ignored (SIGHUP is under nohup), the others."""
        for number in (signal.SIGINT, *_LIMITED):
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=[reader], name="signals", daemon=True).start()

    def close(self) -> None:
        """Stop limiting the time after a signal; signals are stored as before."""
        if self._writer is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._writer)
            self._writer = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now, first = time.monotonic(), self.number is None
        if first:
            self.number, self._first_at = number, now
        # A terminal and a parent may both forward one Ctrl-C, so a second one counts only later.
        again = number == signal.SIGINT and now - self._first_at > _SAME_KEYPRESS_SECONDS
        if again or (first and not self.graceful):
            raise KeyboardInterrupt
        if first:
            # Not print: the signal may have interrupted the buffered stream.
            os.write(2, b"\nstopping: saving the state first (Ctrl-C again aborts at once)\n")

    def _watch(self, reader: int) -> None:
        """Thread: end the process some time after a scheduler's signal.

        The numbers come from the wake-up descriptor: Python calls handlers only between its own
        instructions, and one operation of torch, or a wait for another process, may be endless.
        """
        with os.fdopen(reader, "rb", buffering=0) as numbers:
            while heard := numbers.read(1):
                if heard[0] in _LIMITED:
                    time.sleep(self._seconds)
                    if self._writer is not None:
                        text = (
                            "error: stopped in the middle of a step that took longer than "
                            f"{self._seconds:g} s; the same command goes on from the last saved "
                            "state\n"
                        )
                        os.write(2, text.encode())
                        os._exit(128 + heard[0])


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when ``dvc`` dies; a stage started by hand may outlive its shell."""
    if "DVC_STAGE" in os.environ:
        end_with_parent(os.getppid())


def set_up_cpu() -> None:
    """Choose how torch uses the CPU; to be called before torch is imported.

    Variables that are set already stay as they are. Figures are in bench/README.md.
    """
    # Pages of 2 MB: each step frees and takes the memory of its activations.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Threads that wait for each other sleep after some microseconds: on a busy machine spinning
    # keeps the thread that they wait for from running.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if has_cpu_quota():  # as containers have; torch counts the processors of the affinity
        os.environ.setdefault("OMP_NUM_THREADS", str(available_cpus()))


def set_up_compiler(folder: Path) -> None:
    """Let torch keep compiled networks in ``folder``, also for later processes.

    Variables that are set already stay as they are.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
