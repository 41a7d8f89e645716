"""Several works in turn: A B C, C B A, A B C, ..., each in a process of its own."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast, final

import torch

from bench.speed.operations import Operation
from bench.speed.roofline import Peaks, least
from bench.speed.timings import ratios, uncertainty
from bench.speed.work import MakeWork

__all__ = ["Contest", "Contestant", "Worker", "race"]

from sandbox import ROOT as _ROOT

T = TypeVar("T")

_TIDYING_S = 60
"""In which a process that has given its last answer removes its files."""

_LEAST_TURNS = 4
_SURE = 0.03
"""How well medians of ratios are to be known, if this takes no more than ..."""

_PATIENCE_S = 30
"""... seconds of turns, or as many turns as were asked for."""


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

    bare: bool = False
    """Whether to leave out what stages do first (``pipeline.runtime.signals.set_up_cpu``)."""


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
class Worker:
    """The process of one contestant, to be used as a context.

    Args:
        contestant: Who is to work in it.
        device: Where it works.
    """

    def __init__(self, contestant: Contestant, device: torch.device) -> None:
        made = contestant.make
        module = "bench.speed.worker" if contestant.bare else "bench.speed.stage_worker"
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, f"{made.__module__}:{made.__qualname__}"],
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

    def work(self, times: int) -> dict[str, Any]:
        """Do it so often; the ``seconds``, and what was ``found``."""
        self._say(str(times))
        return cast("dict[str, Any]", self._answer())

    def end(self) -> dict[str, Any]:
        """Memory, and operations if these are listed."""
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


def race(
    contest: Contest, device: torch.device, limits: Worker, *, pairs: int, seconds: float
) -> dict[str, Any]:
    """Measure a contest, and the machine's limits between its turns.

    Args:
        contest: Who takes part.
        device: Where they work.
        limits: The process that does ``machine.limits``.
        pairs: How many times each has its turn at most; less if ratios are known well before.
        seconds: How long a turn takes, about; doing it once is the least.

    Returns:
        What JSON can say: each contestant with every timing, or why it has none.
    """
    entries = [_entry(contestant) for contestant in contest.contestants]
    with ExitStack() as stack:
        # All at once, because they import for seconds; then one makes its work at a time.
        racing = [
            (entry, stack.enter_context(Worker(contestant, device)))
            for entry, contestant in zip(entries, contest.contestants, strict=True)
            if contestant.missing is None
        ]
        for entry, worker in racing:
            entry |= _hear(entry, worker.begin) or {}
        enough = partial(_enough, contest, entries, pairs=pairs)
        found = _take_turns(racing, limits, enough, seconds)
        for entry, worker in racing:
            entry |= _hear(entry, worker.end) or {}
    for entry in entries:
        entry |= _limits_of(entry, found)
    told = {name: getattr(contest, name) for name in ("group", "name", "unit", "note", "relation")}
    return {**told, "limits": found, "contestants": entries}


def _take_turns(
    racing: Sequence[tuple[dict[str, Any], Worker]],
    limits: Worker,
    enough: Callable[[int, float], bool],
    seconds: float,
) -> list[dict[str, Any]]:
    """Let all have their turns until after so many, and so many seconds, it is enough.

    Returns:
        The limits before each turn, if anything is limited by them.
    """
    limited = any(entry.get("limited") for entry, _ in racing)
    found: list[dict[str, Any]] = []
    began = time.monotonic()
    for turn in count(1):
        if limited:
            found.append(limits.work(1)["found"])
        for entry, worker in racing if turn % 2 else racing[::-1]:
            _take_turn(entry, worker, seconds)
        if enough(turn, time.monotonic() - began):
            break
    return found


def _enough(
    contest: Contest, entries: Sequence[dict[str, Any]], turns: int, taken: float, *, pairs: int
) -> bool:
    """Whether no more turns are needed, or none may be had."""
    if turns >= pairs:
        return True
    if turns < _LEAST_TURNS:
        return False
    measured = [entry for entry in entries if entry["missing"] is None]
    if contest.relation == "none" or taken > _PATIENCE_S:
        return True
    return all(uncertainty(ratios(measured[0], other)) < _SURE for other in measured[1:])


def _limits_of(entry: dict[str, Any], turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What it does, and the least time of that; its list of operations would be too long."""
    done = {Operation(*what): times for what, times in entry.pop("operations", [])}
    if not done:
        return {"flops": None, "least": None}
    flops = sum(times * operation.flops for operation, times in done.items())
    found = least(done, entry["took"], Peaks.among(turns), entry["precision"])
    return {"flops": flops, "least": found._asdict()}


def _entry(contestant: Contestant) -> dict[str, Any]:
    return {
        "label": contestant.label,
        "missing": contestant.missing,
        "options": dict(contestant.options),
        "precision": contestant.precision,
        "seconds": [],
    }


def _take_turn(entry: dict[str, Any], worker: Worker, seconds: float) -> None:
    if entry["missing"] is None:
        entry["times"] = max(1, round(seconds / entry["each"]))
    taken = _hear(entry, lambda: worker.work(entry["times"]))
    if taken is not None:
        entry["seconds"].append(taken["seconds"])


def _hear(entry: dict[str, Any], ask: Callable[[], T]) -> T | None:
    """An answer; if there is none, the entry says so from then on and None is returned."""
    if entry["missing"] is not None:
        return None
    try:
        return ask()
    except _LostWorkerError as error:
        entry["missing"] = f"failed: {error}"
        return None
