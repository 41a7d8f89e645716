"""Run for an hour and see what grows: ``python -m bench.reliability.soak [--minutes M]``.

Two copies of this project with a small problem, turn by turn, each turn with a new seed: in one,
a single Python process runs all five stages; in the other the services of ``make up`` run the
flow ``train``, every second time as an experiment. After each turn, when nothing runs, the
memory, file descriptors, threads and processes of all that lives on are read, and the files that
are left in temporary folders. The exit code is 1 if one of them grows in the second half.
``--write`` puts the turns into ``docs/results/soak/``.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from scipy.stats import theilslopes

from bench.common import RESULTS, markdown, origin
from pipeline.stages import STAGES
from sandbox.ports import free_port
from sandbox.tiny_params import set_params
from sandbox.tiny_project import PATTERNS, Project, until
from sandbox.workspace import clone

TURN_ENDED = "turn ended with "
MIB = 2**20

SERVICES = {
    "`make up`": PATTERNS["services"],
    "Prefect's server": PATTERNS["server"],
    "MLflow's server": r"-m mlflow server",
    "worker of `train`": PATTERNS["worker"],
    "worker of `sweep`": r"worker start .*--pool control",
    "reconcile": r"-m flows\.reconcile",
}
"""Command lines of what ``make up`` runs."""

ALLOWED = {"MiB": 0.02, "descriptors": 0, "threads": 0, "processes": 0, "files": 0}
"""How much each kind may grow over the second half of the turns: of memory this fraction of its
level, of what is counted none (less than one)."""

MIN_TURNS = 8
"""Below this a slope says nothing."""


@dataclass(frozen=True)
class Verdict:
    """How one measure went over the turns."""

    name: str
    first: float
    middle: float
    last: float
    growth: float
    """What the second half adds, by the median of all slopes between two turns (Theil-Sen), which
    single jumps do not move."""

    allowed: float | None
    """What it may add; None for what holds results and is to grow."""

    @property
    def flat(self) -> bool:
        """Whether it stays within what is allowed."""
        return self.allowed is None or self.growth <= self.allowed


class StageLoop:
    """One process that runs all stages again and again in a copy of this project."""

    def __init__(self, root: Path, env: Mapping[str, str]) -> None:
        self.root = root
        with (root.parent / "loop.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "bench/reliability/soak.py", "--loop"],
                cwd=root,
                env=env,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def run(self, seed: int) -> None:
        """Run all stages once and wait for their end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(seed, file=self._process.stdin, flush=True)
        ended = (line for line in self._process.stdout if line.startswith(TURN_ENDED))
        codes = next(ended, "no answer").strip()
        if codes != f"{TURN_ENDED}{[0] * len(STAGES)}":
            log = (self.root.parent / "loop.log").read_text()
            raise RuntimeError(f"the stages of seed {seed}: {codes}\n{log[-3000:]}")

    def process(self) -> psutil.Process:
        """The process."""
        return psutil.Process(self._process.pid)

    def close(self) -> None:
        """End it."""
        self._process.communicate("", timeout=60)


class Flows:
    """The services of ``make up`` in a copy of this project, and runs of the flow ``train``."""

    def __init__(self, root: Path, env: Mapping[str, str]) -> None:
        self.project = Project(root, free_port())
        self.project.env.update(env)
        self._services = self.project.start_services("--gpus", "0")

    def run(self, seed: int) -> None:
        """Run all stages in the workspace or, for an odd seed, as an experiment; wait."""
        if seed % 2:
            run = self.project.submit(overrides={"seed": seed})
        else:
            set_params(self.project.root, {"seed": seed})
            run = self.project.submit()
        state = self.project.wait_for(run, "Completed", "Failed", "Crashed", seconds=900)
        if state != "Completed":
            raise RuntimeError(f"the flow run of seed {seed}: {state}\n{self.project.log(run)}")
        until(lambda: not self.project.processes(PATTERNS["engine"]), 60, "the run's end")

    def processes(self) -> Iterator[tuple[str, list[psutil.Process]]]:
        """The processes of each service."""
        for name, pattern in SERVICES.items():
            found = {*self.project.processes(pattern)}
            if pattern != PATTERNS["services"]:  # all others descend from it
                found |= {child for p in found for child in p.children(recursive=True)}
            yield name, [*found]

    def close(self) -> None:
        """Stop the services."""
        self._services.send_signal(signal.SIGTERM)
        self._services.wait(60)


def loop() -> int:
    """Run all stages for each seed on standard input, all in this process."""
    from pipeline.__main__ import main as run

    for line in sys.stdin:
        set_params(Path.cwd(), {"seed": int(line)})
        codes = [run([stage]) for stage in STAGES]
        # Garbage, and what the C library keeps for the next allocation, count for nothing.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        print(f"{TURN_ENDED}{codes}", flush=True)
    return 0


def look(stages: StageLoop, flows: Flows, temporary: Path) -> dict[str, float]:
    """All that is measured between two turns, by name."""
    one, other = stages.root, flows.project.root
    found = dict(_of_processes("all stages in one process", [stages.process()]))
    for name, processes in flows.processes():
        found |= _of_processes(name, processes)
    found["temporary folder, files"] = _count(temporary)
    for name, root in {"stages": one, "flows": other}.items():
        # Logs and the cache of features, which has a bound of its own, are among the results.
        others = {"services", "features"}
        own = [path for path in _files(root / ".dsd") if path.parent.name not in others]
        found[f"`.dsd` of the {name}, files"] = len(own)
        found[f"`reports` and `data` of the {name}, files"] = sum(
            _count(root / kind) for kind in ("reports", "data")
        ) - _count(root / "reports" / "experiments")
    found["`.dvc/tmp`, files"] = _count(other / ".dvc" / "tmp")
    found["`.prefect`, files"] = _count(other / ".prefect")
    results = (".dvc/cache", ".dsd/features", "mlartifacts", "mlflow.db", ".git")
    results += ("reports/experiments",)
    found["DVC's and our caches, experiments, MLflow's store, results in MiB"] = sum(
        _mib(other / name) for name in results
    )
    found["Prefect's history, results in MiB"] = _mib(other / ".prefect")
    found["logs of `make up`, results in MiB"] = _mib(other / ".dsd" / "services")
    return found


def _of_processes(name: str, processes: Sequence[psutil.Process]) -> dict[str, float]:
    """Memory of their own, descriptors and threads, summed up."""
    return {
        f"{name}, MiB": sum(map(_anonymous, processes)) / MIB,
        f"{name}, descriptors": sum(p.num_fds() for p in processes),
        f"{name}, threads": sum(p.num_threads() for p in processes),
        f"{name}, processes": len(processes),
    }


def _anonymous(process: psutil.Process) -> int:
    """Bytes that a process has taken, those in the swap too; what it shares with a fork divided.

    Not the pages of files (USS would count those of libraries, as long as no other process maps
    the same ones): the system has them to spare.
    """
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    kilobytes = dict(re.findall(r"^(Pss_Anon|SwapPss): +(\d+) kB$", rollup, re.MULTILINE))
    return 1024 * (int(kilobytes["Pss_Anon"]) + int(kilobytes["SwapPss"]))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]


def _count(folder: Path) -> int:
    return len(_files(folder))


def _mib(path: Path) -> float:
    files = [path] if path.is_file() else _files(path)
    size = 0
    for file in files:
        with suppress(FileNotFoundError):
            size += file.lstat().st_size
    return size / MIB


def judge(turns: Sequence[Mapping[str, float]]) -> list[Verdict]:
    """How each measure went over the turns."""
    return [_judge(name, [turn[name] for turn in turns]) for name in turns[0]]


def _judge(name: str, values: Sequence[float]) -> Verdict:
    half = values[len(values) // 2 :]
    slope = float(theilslopes(half).slope) if len(half) > 1 else 0.0
    kind = name.rpartition(", ")[2]
    fraction = ALLOWED.get(kind)
    allowed = None if fraction is None else fraction * median(half) if fraction else 0.99
    growth = slope * (len(half) - 1)
    return Verdict(name, values[0], half[0], values[-1], growth, allowed)


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts in Markdown."""
    head = ["what", "first turn", "half time", "last turn", "second half adds", "may add"]
    rows = []
    for one in verdicts:
        digits = 1 if one.name.endswith("MiB") else 0
        shown = [f"{value:.{digits}f}" for value in (one.first, one.middle, one.last)]
        allowed = "results" if one.allowed is None else f"{one.allowed:.1f}"
        mark = "" if one.flat else " **grows**"
        rows.append([one.name, *shown, f"{one.growth:+.2f}{mark}", allowed])
    return markdown(head, rows, "---:")


@contextmanager
def running() -> Iterator[tuple[StageLoop, Flows, Path]]:
    """Both copies at work, and the folder where all their processes put temporary files."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name, ExitStack() as stack:
        folder = Path(name)
        one, other, temporary = folder / "stages", folder / "flows", folder / "tmp"
        temporary.mkdir()
        for root in (one, other):
            clone(root)
        env = {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
        stages = StageLoop(one, {**kept, **env, "PYTHONPATH": str(one)})
        stack.callback(stages.close)
        flows = Flows(other, {**env, "PYTHONPATH": str(other)})
        stack.callback(flows.close)
        yield stages, flows, temporary


def soak(minutes: float) -> list[dict[str, float]]:
    """Turn after turn until the time is over; what was measured after each."""
    turns: list[dict[str, float]] = []
    with running() as (stages, flows, temporary):
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            started = time.monotonic()
            stages.run(len(turns))
            flows.run(len(turns))
            turns.append(look(stages, flows, temporary))
            seconds = time.monotonic() - started
            memory = turns[-1]["all stages in one process, MiB"]
            print(f"turn {len(turns)}: {seconds:.0f} s, {memory:.1f} MiB", flush=True)
    return turns


PAGE = """# An hour of small runs: does anything grow?

Written by `python -m bench.reliability.soak --minutes {minutes:g} --write`;
[turns.json](turns.json) has all, and [notes.md](notes.md) says what was made of it.

{turns} turns. In each one Python process runs all five stages in one copy of the project (with the
`main` of `python -m pipeline STAGE`, tracked to a SQLite file), and the services of `make up` run
the flow `train` in another, every second time as an experiment in a copy of that workspace; each
time with a new seed, so that every stage is executed. When nothing runs, all that lives on is
measured.

* Memory is what the processes have taken (anonymous pages, and those in the swap), summed up over
  a service's processes. Pages of files do not count: how many a process has to itself depends on
  which others map the same libraries at that moment.
* *Second half adds* is the median slope between any two turns (Theil-Sen) of the second half,
  times its length. Memory may grow by {percent:g} % of its level there, what is counted by less
  than one.
* Rows of *results* grow because they hold what was computed.

{machine}; the machine was shared with other work.

{table}
{verdict}
"""


def write(turns: Sequence[Mapping[str, float]], minutes: float) -> None:
    """Put the turns and a page about them into ``docs/results/soak``."""
    verdicts, begun = judge(turns), origin()
    growing = [one.name for one in verdicts if not one.flat]
    where = begun["machine"]
    machine = f"{where['processor']}, {where['cores']} cores, Python {where['python']}, commit "
    machine += f"{(begun['commit'] or 'none')[:12]}{', changed' if begun['dirty'] else ''}"
    folder = RESULTS / "soak"
    document = {"minutes": minutes, "machine": machine, "turns": list(turns)}
    (folder / "turns.json").write_text(json.dumps(document, indent=0) + "\n")
    page = PAGE.format(
        minutes=minutes,
        turns=len(turns),
        percent=100 * ALLOWED["MiB"],
        machine=machine,
        table=table(verdicts),
        verdict=f"Growing: {'; '.join(growing)}."
        if growing
        else "Nothing grows by more than it may.",
    )
    (folder / "README.md").write_text(page)


def main(arguments: Sequence[str]) -> int:
    """Run, print the table; the exit code is 1 if something grows."""
    # A runner in the background hands down ignored signals.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--write", action="store_true", help="into docs/results/soak")
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.loop:
        return loop()
    turns = soak(options.minutes)
    verdicts: list[Any] = judge(turns)
    print(table(verdicts))
    if options.write:
        write(turns, options.minutes)
    if len(turns) < MIN_TURNS:
        print(f"{len(turns)} turns are too few for a verdict")
        return 0
    return int(not all(one.flat for one in verdicts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
