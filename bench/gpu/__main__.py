"""Measure everything that needs a GPU: ``python -m bench.gpu --minutes 8 [--edm DIR] ...``.

Parts: correctness (compiled against plain, bfloat16 against float32, resumed, repeated, NaN),
speed and memory beside EDM's and SiD's code, a profile, and a real run. Each row is written when
it is there. A row that fails, hangs or does not fit into memory says so and costs no other one.
"""

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

from pipeline.runtime.signals import set_up_cpu

set_up_cpu()  # before torch loads, as for the stages

import torch  # noqa: E402

from bench.common import RESULTS, origin  # noqa: E402
from bench.gpu.page import render  # noqa: E402
from bench.gpu.tasks import PARTS, Setup, Task, of_part  # noqa: E402
from bench.gpu.worker import Figures, Worker  # noqa: E402
from dsd.utils.files import published, write_json  # noqa: E402
from sandbox import ROOT  # noqa: E402

__all__ = ["main"]

_SHARES = {"correctness": 0.15, "speed": 0.65, "profile": 0.7, "run": 1.0}
"""How much of the time is over when a part must be done that is not the last one."""

_LEAST_SECONDS = 5.0
"""For a row, which needs a process."""


@final
class _Document:
    """The result so far, on disk as JSON and as a page."""

    def __init__(self, folder: Path, device: torch.device, arguments: Sequence[str]) -> None:
        found = origin(device)
        card = found["machine"]["gpu"] or "cpu"
        name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
        numbers = (f"-{number}" if number else "" for number in range(1000))
        self.file = next(
            file for end in numbers if not (file := folder / f"{name}{end}.json").exists()
        )
        command = shlex.join(["python", "-m", "bench.gpu", *arguments])
        self._content: dict[str, Any] = {**found, "command": command, "seed": 0, "parts": {}}
        self._started = time.monotonic()

    def add(self, part: str, row: str, figures: Figures) -> None:
        """Add a row, and write everything."""
        self._content["parts"].setdefault(part, {})[row] = figures
        self._content["seconds"] = time.monotonic() - self._started
        write_json(self.file, self._content)
        with published(self.file.with_suffix(".md")) as page:
            page.write(render(self._content).encode())
        shown = ", ".join(f"{name} {value}" for name, value in figures.items())
        print(f"{part}: {row}: {shown}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; the exit code is 1 if a comparison of the part correctness failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = _arguments(arguments)
    device = torch.device("cpu" if given.dry_run else "cuda")
    document = _Document(given.out, device, arguments)
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):  # cold, whatever ran before
            os.environ[name] = str(Path(scratch) / name.lower())
        wrong = 0
        files = document.file.with_suffix("")
        for part, task, figures in _done(given, device, files, Path(scratch)):
            document.add(part, task.name, figures)
            wrong += figures.get("ok") is False
    print(f"OK: {document.file.with_suffix('.md')}")
    return int(wrong > 0)


def _done(
    given: argparse.Namespace, device: torch.device, files: Path, scratch: Path
) -> Iterator[tuple[str, Task, Figures]]:
    """Do all tasks in time, the most important ones of each part first."""
    begun, seconds, worker = time.monotonic(), 60 * given.minutes, Worker()
    try:
        for part in given.parts:
            share = 1.0 if part == given.parts[-1] else _SHARES[part]
            end = begun + share * seconds
            setup = Setup(
                *(device, given.edm, given.sid, given.data, files, scratch),
                left=lambda end=end: end - time.monotonic(),
            )
            rows, figures = of_part(part, setup), None
            with suppress(StopIteration):
                while True:
                    task = rows.send(figures)
                    figures = _figures(task, worker, setup.left())
                    yield part, task, figures
    finally:
        worker.end()


def _figures(task: Task, worker: Worker, left: float) -> Figures:
    if left < _LEAST_SECONDS:
        return {"problem": "not measured: the time was over"}
    if task.fresh:
        worker.end()
    return worker.do(task.work, seconds=min(left, task.limit))


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART")
    parser.add_argument("--edm", type=Path, metavar="DIR", help="a checkout of NVlabs/edm")
    parser.add_argument("--sid", type=Path, metavar="DIR", help="a checkout of mingyuanzhou/SiD")
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="CIFAR-10 as Parquet; else torchvision's"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: docs/results/gpu")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    given = parser.parse_args(arguments)
    if not given.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no GPU: check the driver with `nvidia-smi`, or add --dry-run")
    given.out = given.out or (ROOT / ".dsd" / "dry-run" if given.dry_run else RESULTS / "gpu")
    given.parts = [part for part in PARTS if part in given.parts]
    for name in ("edm", "sid", "data", "out"):  # stages work in a folder of their own
        path = getattr(given, name)
        setattr(given, name, path and path.resolve())
    return given


if __name__ == "__main__":
    sys.exit(main())
