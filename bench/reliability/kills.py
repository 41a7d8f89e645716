"""Kill every stage at random moments: does the same command end with the same bytes?

``python -m bench.reliability.kills [--trials N] [--seed S] [--write]`` runs the five stages in a
clone of this project with a small problem, once without interruption. Then, trial by trial, it
takes a stage, kills its process once or several times at random moments, runs the same command
until it ends, and compares every file of the artifact and the report, and every number in MLflow,
with those of the uninterrupted run. At last it runs all five once more with other numbers of
workers and threads. ``--write`` makes a page of it, ``docs/results/kills/``. About 15 minutes for
20 trials.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.common import RESULTS, markdown, origin
from pipeline.stages import STAGES
from pipeline.tracking.journal import SYSTEM
from sandbox.tiny_params import TINY
from sandbox.workspace import Workspace, clone

PAGE = Path(__file__).with_suffix(".md")
"""Template of the page."""

DIFFERS = {
    "run.json": "names the run in MLflow, whose id is new each time, and the seconds it took",
    "report.html": "shows the same",
}
"""Files that are not the same bytes after a kill, by name, and why; all others are."""

SPEEDS = "_per_second"
"""Ends the names of numbers in MLflow that are times: there once, but never the same again."""

PARAMS = {
    **TINY,
    "corrupt.workers": 2,
    "network.dropout": 0.1,
    "pretrain.kimg": 6.4,
    "pretrain.ema_halflife_kimg": 1.0,
    "pretrain.sample_every_kimg": 1.6,
    "distill.kimg": 3.2,
    "distill.ema_halflife_kimg": 0.5,
    "distill.selection.every_kimg": 0.64,
    "distill.selection.save_top_k": 2,
    "run.checkpoint_minutes": 0.004,
}
"""Long enough that most kills hit a training between two states, with dropout."""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KILLS = (3, 5)
"""Least and most of one trial."""

MAX_STOP_SECONDS = 30.0
"""From a signal to the process' end: what the README promises."""


@dataclass(frozen=True)
class Plan:
    """When and how to kill one process."""

    signal: int
    at_work: bool
    """Whether the moment counts from the first file that the process writes, not its start."""

    fraction: float
    """The moment, as a fraction of what the uninterrupted run took."""

    as_dvc: bool
    """Whether the stage's outputs are deleted before the next start, as DVC does."""


@dataclass(frozen=True)
class Kill:
    """What became of one process."""

    plan: Plan
    after: float
    """Seconds from its start to the signal."""

    seconds: float
    """From the signal to its end."""

    code: int
    """Exit code; 0 if it was done before the signal came."""


@dataclass
class Trial:
    """One stage that was killed and run again until it ended."""

    stage: str
    kills: list[Kill] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    """All that is not as it was promised."""


class Number(NamedTuple):
    """A number in MLflow; one that is a speed has no value."""

    name: str
    step: int
    value: float | None


class Whole(NamedTuple):
    """What an uninterrupted run of a stage left."""

    seconds: tuple[float, float]
    """How long it took, and how long after its first written file."""

    files: dict[str, str]
    """SHA-256 by path."""

    numbers: list[Number]


class Bench(Workspace):
    """A clone of this project with other parameters, in which stages are killed."""

    def __init__(self, root: Path, params: Mapping[str, Any] = PARAMS) -> None:
        super().__init__(clone(root).root)
        self.set(params)
        kept = {k: v for k, v in self.env.items() if not k.startswith("MLFLOW_")}
        self.env = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        self.whole: dict[str, Whole] = {}

    def run_whole(self) -> None:
        """Run all stages without interruption and remember what they left."""
        for stage in STAGES:
            started = time.monotonic()
            process = self._start(stage)
            first_work = self._wait_for_work(stage, process)
            printed, _ = process.communicate()
            if process.returncode:
                msg = f"{stage}: exit code {process.returncode}\n{printed}"
                raise RuntimeError(msg)
            ended = time.monotonic()
            seconds = ended - started, ended - first_work
            self.whole[stage] = Whole(seconds, self.files(stage), self.numbers(stage))

    def attempt(self, stage: str, plans: Sequence[Plan]) -> Trial:
        """Kill a stage as planned, run it to its end and compare.

        It begins anew, unless the last attempt came to no end.
        """
        trial = Trial(stage)
        self.delete_outputs(stage)
        shutil.rmtree(self.root / ".dsd" / "features", ignore_errors=True)
        self._forget_done(stage)
        for plan in plans:
            kill = self._kill(stage, plan, trial.findings)
            trial.kills.append(kill)
            if kill.code == 0:
                self._forget_done(stage)
            if plan.as_dvc:
                self.delete_outputs(stage)
        process = self._start(stage)
        printed, _ = process.communicate()
        if process.returncode:
            code = process.returncode
            trial.findings.append(f"the next run: exit code {code}: {self._end_of(printed)}")
        else:
            trial.findings += [*self._changes(stage), *self._left_behind(stage)]
        return trial

    def _forget_done(self, stage: str) -> None:
        """Forget a training that is done, as other stages do, so that the next one trains."""
        for note in self._states(stage).glob("*/done"):
            shutil.rmtree(note.parent)

    def files(self, stage: str) -> dict[str, str]:
        """SHA-256 of all that a stage leaves and that must not differ, by path."""
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self._outputs(stage)
            if path.name not in DIFFERS
        }

    def numbers(self, stage: str) -> list[Number]:
        """All numbers of the run that made a stage's outputs, sorted, but those of the machine."""
        run_file = self.root / "reports" / stage / "run.json"
        run_id = json.loads(run_file.read_text())["run_id"]
        query = "select key, step, value from metrics where run_uuid = ? and key not like ?"
        with closing(sqlite3.connect(self.root / "mlflow.db")) as store:
            found = store.execute(query, (run_id, f"{SYSTEM}%")).fetchall()
        return sorted(
            Number(name, step, None if name.endswith(SPEEDS) else value)
            for name, step, value in found
        )

    def unfinished_runs(self) -> list[str]:
        """Runs that MLflow shows as running, after what was missed has been sent; and records.

        Only that of a killed run may be left under the name that the same command looks for.
        """
        self.run(sys.executable, "-m", "pipeline", "sync")
        query = "select name from runs where status not in ('FINISHED', 'KILLED')"
        with closing(sqlite3.connect(self.root / "mlflow.db")) as store:
            found = [f"MLflow: {name} never ended" for (name,) in store.execute(query)]
        records = sorted((self.root / ".dsd" / "tracking").glob("*/*/record.json"))
        for record in records:
            status, name = json.loads(record.read_text())["status"], record.parent.name
            if status != "KILLED" or "-" in name:
                found.append(f"left behind: record {name} of a {status} run")
        return found

    def _start(self, stage: str) -> "subprocess.Popen[str]":
        return self.start(sys.executable, "-m", "pipeline", stage)

    def _kill(self, stage: str, plan: Plan, findings: list[str]) -> Kill:
        started = begun = time.monotonic()
        process = self._start(stage)
        if plan.at_work:
            begun = self._wait_for_work(stage, process)
        moment = begun + plan.fraction * self.whole[stage].seconds[plan.at_work]
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, moment - time.monotonic()))
        sent = time.monotonic()
        with suppress(ProcessLookupError):
            if plan.signal == signal.SIGINT:  # Ctrl-C goes to all processes of a terminal's job
                os.killpg(process.pid, plan.signal)
            else:
                process.send_signal(plan.signal)
        printed, _ = process.communicate()
        seconds = time.monotonic() - sent
        code = process.returncode
        # Python's own answers count where a signal comes before the command has begun.
        stopped = (0, 128 + plan.signal, -plan.signal)
        if code not in stopped:
            findings.append(f"signal {plan.signal}: exit code {code}: {self._end_of(printed)}")
        if seconds > MAX_STOP_SECONDS:
            findings.append(f"signal {plan.signal}: the process lived on for {seconds:.0f} s")
        findings += self._survivors(process.pid)
        return Kill(plan, sent - started, seconds, code)

    def _end_of(self, printed: str) -> str:
        return printed[-2000:].replace(str(self.root), ".")

    def _survivors(self, group: int) -> list[str]:
        """Processes of a stage that are there 5 s after it."""
        deadline = time.monotonic() + 5
        while (left := list(_members(group))) and time.monotonic() < deadline:
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        return [f"process left behind: {name}" for name in left]

    def _wait_for_work(self, stage: str, process: "subprocess.Popen[str]") -> float:
        """Wait until something changes in the stage's folders; when that was."""
        before = self._traces(stage)
        while self._traces(stage) == before and process.poll() is None:
            time.sleep(0.01)
        return time.monotonic()

    def _traces(self, stage: str) -> set[tuple[str, int]]:
        found = set[tuple[str, int]]()
        for path in (*self._outputs(stage), *_files(self._states(stage))):
            with suppress(FileNotFoundError):
                found.add((str(path), path.stat().st_mtime_ns))
        return found

    def _states(self, stage: str) -> Path:
        return self.root / ".dsd" / "state" / stage

    def _outputs(self, stage: str) -> list[Path]:
        found = [*_files(self.root / "data" / stage), *_files(self.root / "reports" / stage)]
        pages = [self.root / "reports" / name for name in ("summary.json", "report.html")]
        return found + [page for page in pages if stage == "evaluate" and page.is_file()]

    def delete_outputs(self, stage: str) -> None:
        """Delete what a stage leaves, as DVC does before it runs."""
        for path in self._outputs(stage):
            path.unlink()
        for kind in ("data", "reports"):
            shutil.rmtree(self.root / kind / stage, ignore_errors=True)

    def _changes(self, stage: str) -> list[str]:
        """Differences from the uninterrupted run."""
        whole, files = self.whole[stage], self.files(stage)
        found = [f"missing: {path}" for path in whole.files.keys() - files.keys()]
        found += [f"not expected: {path}" for path in files.keys() - whole.files.keys()]
        both = files.keys() & whole.files.keys()
        found += [f"differs: {path}" for path in both if files[path] != whole.files[path]]
        numbers = self.numbers(stage)
        if numbers != whole.numbers:
            changed = sorted(set(numbers) ^ set(whole.numbers))[:4]
            found.append(
                f"numbers in MLflow differ: {len(numbers)} of {len(whole.numbers)}, {changed}"
            )
        return sorted(found)

    def _left_behind(self, stage: str) -> list[str]:
        """States that will never be forgotten, and half-written files."""
        states = [run for run in self._states(stage).glob("*") if not (run / "done").is_file()]
        parts = [p for kind in ("data", "reports", ".dsd") for p in _files(self.root / kind)]
        left = [*states, *(path for path in parts if path.name.endswith(".part"))]
        return [f"left behind: {path.relative_to(self.root)}" for path in left]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.rglob("*") if path.is_file())
    except FileNotFoundError:  # between the two renamings that replace a folder
        return []


def _members(group: int) -> Iterator[str]:
    """Living processes of a group."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and os.getpgid(process.pid) == group:
                yield " ".join(process.cmdline())[:200]


def draw(stage: str, chance: random.Random) -> list[Plan]:
    """Random kills for one trial; of a training most of them while it trains."""
    at_work = 0.75 if stage in ("pretrain", "distill") else 0.5
    return [
        Plan(
            chance.choice(SIGNALS),
            chance.random() < at_work,
            chance.random(),
            chance.random() < 0.5,
        )
        for _ in range(chance.randint(*KILLS))
    ]


def run_trials(bench: Bench, count: int, seed: int) -> Iterator[Trial]:
    """Kill the stages in turn."""
    chance = random.Random(seed)
    for number in range(count):
        stage = [*STAGES][number % len(STAGES)]
        yield bench.attempt(stage, draw(stage, chance))


def differences_of_other_workers(bench: Bench) -> list[str]:
    """What differs if all stages run again with another number of workers and threads.

    ``prepare`` and ``corrupt`` promise the same bytes for any; the others for one number of
    threads.
    """
    bench.set({"corrupt.workers": 1})
    found = []
    for stage in STAGES:
        bench.env["OMP_NUM_THREADS"] = "2" if stage in ("prepare", "corrupt") else "1"
        found += [f"{stage}: {finding}" for finding in bench.attempt(stage, []).findings]
    return found


def table(trials: Sequence[Trial]) -> str:
    """Kills by stage and signal, in Markdown."""
    head = ["stage", "trials", *(signal.Signals(number).name for number in SIGNALS)]
    head += ["while training or writing", "too late, it was done", "longest stop", "findings"]
    rows = []
    for stage in STAGES:
        of_stage = [trial for trial in trials if trial.stage == stage]
        kills = [kill for trial in of_stage for kill in trial.kills]
        hit = [kill for kill in kills if kill.code]
        row = [len(of_stage), *(sum(k.plan.signal == number for k in hit) for number in SIGNALS)]
        row += [sum(kill.plan.at_work for kill in hit), len(kills) - len(hit)]
        longest = f"{max((kill.seconds for kill in hit), default=0.0):.1f} s"
        findings = sum(len(trial.findings) for trial in of_stage)
        rows.append([stage, *map(str, row), longest, str(findings)])
    return markdown(head, rows)


def main(arguments: Sequence[str]) -> int:
    """Run all trials; the exit code is 1 if there is a finding."""
    # A runner in the background hands down ignored signals.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    parsed = parser.parse_args(arguments)
    command = f"python -m bench.reliability.kills --trials {parsed.trials} --seed {parsed.seed}"
    trials, begun = [], {"command": command, **origin()}
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        bench = Bench(Path(folder))
        bench.run_whole()
        for trial in run_trials(bench, parsed.trials, parsed.seed):
            trials.append(trial)
            codes = ", ".join(f"{kill.code} after {kill.after:.1f} s" for kill in trial.kills)
            print(f"{len(trials)} {trial.stage}: {codes}", *trial.findings, sep="\n  ", flush=True)
        general = bench.unfinished_runs() + differences_of_other_workers(bench)
    print(table(trials), *general, sep="\n")
    if parsed.write:
        results = RESULTS / "kills"
        results.mkdir(parents=True, exist_ok=True)
        result = {**begun, "trials": [asdict(trial) for trial in trials], "general": general}
        (results / "trials.json").write_text(json.dumps(result, indent=1) + "\n")
        (results / "README.md").write_text(page(begun, trials, general))
    return int(bool(general) or any(trial.findings for trial in trials))


def page(begun: Mapping[str, Any], trials: Sequence[Trial], general: Sequence[str]) -> str:
    """The whole result as Markdown; ``general`` are findings that belong to no trial."""
    where = begun["machine"]
    hits = sum(kill.code != 0 for trial in trials for kill in trial.kills)
    found = [f"trial {n}, {t.stage}: {f}" for n, t in enumerate(trials, 1) for f in t.findings]
    lines = [f"* {finding.splitlines()[0]}" for finding in (*found, *general)]
    text = PAGE.read_text().format(
        command=begun["command"],
        date=begun["date"],
        commit=(begun["commit"] or "none")[:12] + (", changed" if begun["dirty"] else ""),
        processor=where["processor"],
        instructions=where["instructions"],
        cores=where["cores"],
        python=where["python"],
        torch=where["versions"]["torch"],
        hits=hits,
        count=len(trials),
        table=table(trials),
        limit=MAX_STOP_SECONDS,
        number=len(lines),
        findings="\n".join(lines),
    )
    return f"{text.rstrip()}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
