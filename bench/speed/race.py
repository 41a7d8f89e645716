"""Several works in turn: A B C, C B A, A B C, ..., each in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast, final

import torch

from bench.speed.work import MakeWork

__all__ = ["Contest", "Contestant", "race"]

_ROOT = Path(__file__).parents[2]
T = TypeVar("T")

_TIDYING_S = 60
"""In which a process that has given its last answer removes its files."""


@final
@dataclass(frozen=True)
class Contestant:
    """One way to do something."""

    label: str
    make: MakeWork
    options: Mapping[str, Any] = field(default_factory=dict)
    checkout: Path | None = None
    """Somebody else's code, where the work needs it; not told in results, as a path is private."""

    missing: str | None = None
    """Why it cannot take part."""

    precision: str = "float32"
    """Of the arithmetic whose peak is its limit."""


@final
@dataclass(frozen=True)
class Contest:
    """Works that take turns; the first is the one that ratios are about."""

    group: str
    name: str
    unit: str
    """``s``: seconds for one; or what is done in a second: ``images/s``, ``MB/s``, ..."""

    contestants: Sequence[Contestant]
    note: str = ""
    relation: Literal["rivals", "part", "none"] = "rivals"
    """What others are to the first: rivals of it, a part of it, or nothing to compare with."""


class _LostWorkerError(Exception):
    """A worker ended before it was done; the text is the last line that it printed."""


@final
class _Worker:
    """The process of one contestant."""

    def __init__(self, contestant: Contestant, device: torch.device) -> None:
        made = contestant.make
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.speed.worker", f"{made.__module__}:{made.__qualname__}"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        options = dict(contestant.options)
        if contestant.checkout is not None:
            options["checkout"] = str(contestant.checkout.resolve())
        self._wanted = {"options": options, "device": str(device)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._errors, self._process:
            self._process.kill()

    def begin(self) -> dict[str, Any]:
        """Make the work; its description.

        Raises:
            _LostWorkerError: It ended instead; so do the others.
        """
        self._say(json.dumps(self._wanted))
        return cast("dict[str, Any]", self._answer())

    def work(self, times: int) -> float:
        """Do it so often; the seconds."""
        self._say(str(times))
        return cast("float", self._answer())

    def end(self) -> dict[str, Any]:
        """Memory, and operations if these are counted."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        answer = cast("dict[str, Any]", self._answer())
        self._process.wait(_TIDYING_S)
        return answer

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise _LostWorkerError(self._last_words()) from error

    def _answer(self) -> object:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise _LostWorkerError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else f"ended with code {code}"


def race(contest: Contest, device: torch.device, *, pairs: int, seconds: float) -> dict[str, Any]:
    """Measure a contest.

    Args:
        contest: Who takes part.
        device: Where they work.
        pairs: How many times each has its turn.
        seconds: How long a turn takes, about; doing it once is the least.

    Returns:
        What JSON can say: each contestant with every timing, or why it has none.
    """
    entries = [_entry(contestant) for contestant in contest.contestants]
    with ExitStack() as stack:
        racing = []
        for entry, contestant in zip(entries, contest.contestants, strict=True):
            if contestant.missing is None:
                # All at once, because they import for seconds; then one makes its work at a time.
                racing.append((entry, stack.enter_context(_Worker(contestant, device))))
        for entry, worker in racing:
            entry |= _hear(entry, worker.begin) or {}
        for turn in range(pairs):
            for entry, worker in racing if turn % 2 == 0 else racing[::-1]:
                _take_turn(entry, worker, seconds)
        for entry, worker in racing:
            entry |= _hear(entry, worker.end) or {}
    told = {name: getattr(contest, name) for name in ("group", "name", "unit", "note", "relation")}
    return {**told, "contestants": entries}


def _entry(contestant: Contestant) -> dict[str, Any]:
    return {
        "label": contestant.label,
        "missing": contestant.missing,
        "options": dict(contestant.options),
        "precision": contestant.precision,
        "seconds": [],
    }


def _take_turn(entry: dict[str, Any], worker: _Worker, seconds: float) -> None:
    if entry["missing"] is None:
        entry["times"] = max(1, round(seconds / entry["each"]))
    taken = _hear(entry, lambda: worker.work(entry["times"]))
    if taken is not None:
        entry["seconds"].append(taken)


def _hear(entry: dict[str, Any], ask: Callable[[], T]) -> T | None:
    """An answer; if there is none, the entry says so from then on and None is returned."""
    if entry["missing"] is not None:
        return None
    try:
        return ask()
    except _LostWorkerError as error:
        entry["missing"] = f"failed: {error}"
        return None
