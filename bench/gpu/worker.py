"""Work in a process that may die, hang or ruin its GPU context, without harm to later work."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeAlias, final

__all__ = ["Figures", "Worker"]

Figures: TypeAlias = dict[str, Any]
"""Numbers and words by name, as JSON can hold them."""

_MOST_CHARACTERS = 300
_spawn = multiprocessing.get_context("spawn")  # a forked process could not use CUDA


@final
class Worker:
    """A process that does one piece of work after another; a new one follows one that ended."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._answers: Connection

    def do(self, work: Callable[[], Figures], *, seconds: float) -> Figures:
        """Return the figures of ``work``, or ``problem``: why there are none.

        Args:
            work: A function that can be pickled; it is ended after ``seconds``.
            seconds: Time for it, the start of a process included.
        """
        if self._process is None or not self._process.is_alive():
            self._answers, theirs = _spawn.Pipe()
            self._process = _spawn.Process(target=_serve, args=[theirs])
            self._process.start()
            theirs.close()
        try:
            self._answers.send(work)
            if self._answers.poll(max(0.0, seconds)):
                found: Figures = self._answers.recv()
                return found
            problem = f"it took longer than {seconds:.0f} s"
        except (EOFError, OSError):
            self._process.join()
            problem = f"its process ended with code {self._process.exitcode}"
        self.end()
        return {"problem": problem}

    def end(self) -> None:
        """End the process; the next work begins in a new one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(requests: Connection) -> None:
    """Do what is asked for, one after another, until nobody asks."""
    while True:
        try:
            work = requests.recv()
        except EOFError:
            return
        try:
            figures = work()
        except Exception as error:  # whatever it is, it must not cost the other figures
            traceback.print_exc()
            text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            figures = {"problem": text[:_MOST_CHARACTERS]}
        requests.send(figures)
