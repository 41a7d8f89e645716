"""The process around a stage: signals, how it uses the CPU, and not outliving DVC."""

import os
import signal
import threading
import time
from types import FrameType
from typing import final

from pipeline.runtime.parent_death import end_with_parent

__all__ = ["StopSignal", "die_with_parent", "set_up_cpu"]

_SAME_KEYPRESS_SECONDS = 1.0
_STOP_SECONDS = 20.0


@final
class StopSignal:
    """Whether the user or the system asked this process to stop.

    While ``polite`` a signal is only remembered, for a stage that asks between its steps and saves
    its state; a second Ctrl-C then aborts at once. Otherwise every signal interrupts at once.

    Who sends another signal than Ctrl-C, kills after half a minute as a rule. If the process has
    not ended by itself ``seconds`` after it, it ends in the middle of whatever it does, as if
    killed.
    """

    def __init__(self, seconds: float = _STOP_SECONDS) -> None:
        self.number: int | None = None
        self.polite = False
        self._seconds = seconds
        self._first_at = 0.0
        self._writer: int | None = None

    def install(self) -> None:
        """Take over SIGINT, SIGTERM and, unless it is ignored as under nohup, SIGHUP."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=[reader], name="signals", daemon=True).start()

    def close(self) -> None:
        """Let the process take its time from now on; signals are remembered as before."""
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
        if again or (first and not self.polite):
            raise KeyboardInterrupt
        if first:
            # Not print: a handler must not enter a buffered stream that it may have interrupted.
            os.write(2, b"\nstopping: saving the state first (Ctrl-C again aborts at once)\n")

    def _watch(self, reader: int) -> None:
        """Thread: end the process some time after a signal that is no Ctrl-C.

        It hears from the system itself. Python calls handlers only between its own instructions,
        and one of torch's operations, or waiting for another process, may take for ever.
        """
        with os.fdopen(reader, "rb", buffering=0) as numbers:
            while heard := numbers.read(1):
                if heard[0] in (signal.SIGTERM, signal.SIGHUP):
                    time.sleep(self._seconds)
                    if self._writer is not None:
                        self._give_up(heard[0])

    def _give_up(self, number: int) -> None:
        text = (
            f"error: stopped in the middle of a step that took longer than {self._seconds:g} s; "
            "the same command goes on from the last saved state\n"
        )
        os.write(2, text.encode())
        os._exit(128 + number)


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent dies, so that a killed ``dvc`` leaves no orphan.

    Does nothing elsewhere, and nothing for a stage started by hand: that one may well outlive its
    shell.
    """
    if "DVC_STAGE" in os.environ:
        end_with_parent(os.getppid())


def set_up_cpu() -> None:
    """Choose how torch uses the CPU; to be called before torch is imported.

    Variables that are set already stay as they are. Figures are in bench/README.md.
    """
    # Pages of 2 MB: each step frees and takes the memory of its activations anew.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Threads that wait for each other sleep after some microseconds instead of turning for ever,
    # which on a busy machine keeps the very thread that they wait for from running.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
