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
from torch.utils.flop_counter import FlopCounterMode

from bench.speed.work import MakeWork, Work
from pipeline.gauge import peak_memory, typical_seconds

__all__ = ["main"]


def main() -> None:
    """Serve until the input ends."""
    answers = _answers()
    make: MakeWork = pkgutil.resolve_name(sys.argv[1])
    wanted = json.loads(sys.stdin.readline())
    at_start = psutil.Process().memory_info().rss
    device = torch.device(wanted["device"])
    work = make(device, wanted["options"])
    _tell(answers, _description(work, device))
    for line in sys.stdin:
        _tell(answers, _seconds(work.do, int(line), device))
    # Memory first: counting needs some of its own.
    memory = {**_memory(device), "at_start": float(at_start)}
    _tell(answers, {"memory": memory, "flops": _operations(work)})


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
    described = {"items": work.items, "moved": work.moved, "facts": dict(work.facts)}
    return {**described, "each": each, "threads": torch.get_num_threads()}


def _seconds(do: Callable[[], object], times: int, device: torch.device) -> float:
    started = time.perf_counter()
    for _ in range(times):
        do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _memory(device: torch.device) -> dict[str, float]:
    """Peaks in bytes, of this process and of what its tensors take on a GPU."""
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {"host": peak_memory(torch.device("cpu")).host, "gpu": float(gpu)}


def _operations(work: Work) -> float | None:
    """Floating-point operations of doing it once, as torch's operators count them."""
    if not work.counted:
        return None
    with FlopCounterMode(display=False) as counter:
        work.do()
    return float(counter.get_total_flops())


if __name__ == "__main__":
    main()
