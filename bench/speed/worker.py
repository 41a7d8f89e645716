"""A process that makes one work and does it whenever it is told to.

``python -m bench.speed.worker MODULE:FUNCTION`` reads lines from its input: first device and
options, as JSON, then each time how often to do it. It answers each with a line of JSON, and with
a last one when its input ends. While it waits it takes no processor time, so that several such
processes can work in turn.
"""

import json
import os
import pkgutil
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import psutil
import torch

from bench.speed.operations import Ledger
from bench.speed.work import MakeWork, Work
from pipeline.planning.gauge import peak_memory, typical_seconds

__all__ = ["main"]

_LISTED_SECONDS = 1.0
"""For which operations are listed, about; doing it once is the least."""


def main() -> None:
    """Serve until the input ends."""
    answers = _answers()
    make: MakeWork = pkgutil.resolve_name(sys.argv[1])
    wanted = json.loads(sys.stdin.readline())
    at_start = psutil.Process().memory_info().rss
    device = torch.device(wanted["device"])
    work = make(device, wanted["options"])
    described = _description(work, device)
    _tell(answers, described)
    for line in sys.stdin:
        _tell(answers, _turn(work.do, int(line), device))
    # Memory first: counting needs some of its own.
    memory = {**_memory(device), "at_start": float(at_start)}
    _tell(answers, {"memory": memory, **_operations(work, device, described["each"])})


def _answers() -> TextIO:
    """The output, kept for answers alone: whatever else is printed goes to the errors."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _tell(answers: TextIO, what: object) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


def _description(work: Work, device: torch.device) -> dict[str, Any]:
    # What takes longer the first time, such as an optimiser's moments, is over after this.
    each = typical_seconds(work.do, device)
    limited = work.counted or work.moved is not None
    described = {"items": work.items, "moved": work.moved, "facts": dict(work.facts)}
    return {**described, "limited": limited, "each": each, "threads": torch.get_num_threads()}


def _turn(do: Callable[[], object], times: int, device: torch.device) -> dict[str, Any]:
    started = time.perf_counter()
    for _ in range(times):
        found = do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "found": found if isinstance(found, dict) else None}


def _memory(device: torch.device) -> dict[str, float]:
    """Peaks in bytes, of this process and of what its tensors take on a GPU."""
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {"host": peak_memory(torch.device("cpu")).host, "gpu": float(gpu)}


def _operations(work: Work, device: torch.device, each: float) -> dict[str, Any]:
    """What PyTorch does when it is done once, how often, and how long; if that is its limit."""
    if not work.counted:
        return {"operations": [], "took": {}}
    rounds = max(1, round(_LISTED_SECONDS / each))
    with Ledger(device) as ledger:
        for _ in range(rounds):
            work.do()
    done = [(operation, times / rounds) for operation, times in ledger.operations.items()]
    return {
        "operations": done,
        "took": {name: seconds / rounds for name, seconds in ledger.seconds.items()},
    }


if __name__ == "__main__":
    main()
