"""Running stages of dvc.yaml one at a time, through DVC's own command line.

DVC alone decides what is up to date and in which order stages depend on each other. A stage runs
in a process group of its own, because a signal that reaches only ``dvc`` leaves the stage behind,
writing.
"""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import psutil
from dvc.lock import make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK, SCHEMA
from voluptuous import Invalid

from dsd.utils.errors import DsdError
from flows.runtime.environment import stage_environment
from flows.runtime.stopping import signal_group
from pipeline.execution.locks import locks_work_in
from pipeline.runtime.parent_death import tether

__all__ = [
    "DvcError",
    "OnLine",
    "Outcome",
    "PlannedStage",
    "StageFailedError",
    "StageOutcome",
    "default_remote",
    "planned_stages",
    "push",
    "run_dvc",
    "run_stage",
]

Outcome: TypeAlias = Literal["ran", "cached", "restored"]
OnLine: TypeAlias = Callable[[str], None]

BUSY_LIMIT_S = 1800.0
"""How long to wait for another DVC process of this workspace."""

STOP_GRACE_S = 10.0
"""How long a stopped stage may take to save its state."""

_OUTCOMES: dict[str, Outcome] = {
    "didn't change, skipping": "cached",
    "is cached - skipping run, checking out outputs": "restored",
}
_EXITED = re.compile(r"failed to run: .*, exited with (-?\d+)")
_BUSY = re.compile(r"is busy, it is being blocked by")
_BLOCKER = re.compile(r"\(PID (\d+)\)")
_KILLED = frozenset({-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGKILL, 128 + signal.SIGTERM})


class DvcError(DsdError):
    """DVC itself refused or failed; the message is DVC's."""


class StageFailedError(DsdError):
    """A stage's command ended with an error.

    Args:
        stage: Name of the stage.
        exit_code: Exit code of the stage's command; negative for a signal.
        tail: Last lines that it printed.
    """

    def __init__(self, stage: str, exit_code: int, tail: Sequence[str]) -> None:
        # All arguments go to the base, so that the error survives being pickled.
        super().__init__(stage, exit_code, tuple(tail))
        self.stage = stage
        self.exit_code = exit_code
        self.tail = tuple(tail)

    def __str__(self) -> str:
        """The stage's own message after its name and exit code."""
        lines = [f"stage '{self.stage}' failed with exit code {self.exit_code}:", *self.tail]
        return "\n".join(lines)

    @property
    def was_killed(self) -> bool:
        """Whether a signal from outside ended it (memory, preemption): a retry may succeed."""
        return self.exit_code in _KILLED


@dataclass(frozen=True)
class StageOutcome:
    """What DVC did about a stage."""

    outcome: Outcome
    """``cached``: the workspace was right already; ``restored``: from DVC's run-cache."""
    seconds: float


@dataclass(frozen=True)
class PlannedStage:
    """A stage of dvc.yaml."""

    name: str
    params: frozenset[str]
    """Keys of params.yaml, or sections of it, that this stage or one before it depends on."""


def planned_stages(root: Path) -> list[PlannedStage]:
    """The stages in ``root``'s dvc.yaml, each after the ones it depends on.

    Raises:
        DvcError: DVC could never run one, because the file system has no locks.
    """
    with Repo(str(root)) as repo:
        _require_locks(repo)
        graph = repo.index.graph  # its edges point at dependencies
        depends = {stage: [*graph.successors(stage)] for stage in repo.index.stages}
        found: dict[Any, frozenset[str]] = {}
        for stage in TopologicalSorter(depends).static_order():
            own = {key for dep in stage.deps for key in getattr(dep, "params", ())}
            found[stage] = frozenset(own.union(*(found[before] for before in depends[stage])))
        return [
            PlannedStage(str(stage.name), keys)
            for stage, keys in found.items()
            if stage.path_in_repo == "dvc.yaml"
        ]


def _require_locks(repo: Repo) -> None:
    """Refuse a file system on which DVC would wait for ever for a lock that there cannot be."""
    if not repo.config["core"].get("hardlink_lock") and not locks_work_in(Path(repo.tmp_dir)):
        msg = (
            f"{repo.root_dir} is on a file system without locks, which DVC needs; "
            "`dvc config --local core.hardlink_lock true && rm -f .dvc/tmp/lock "
            ".dvc/tmp/rwlock.lock` makes DVC use hard links instead (docs/running.md)"
        )
        raise DvcError(msg)


def run_stage(
    root: Path,
    stage: str,
    on_line: OnLine,
    *,
    force: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
    busy_limit_s: float = BUSY_LIMIT_S,
) -> StageOutcome:
    """Bring one stage up to date with ``dvc repro`` and wait for it.

    Args:
        root: The workspace.
        stage: Name of one of :func:`planned_stages`.
        on_line: Called with each line that DVC and the stage print.
        force: Run the stage even when nothing changed.
        environment: Variables for the stage's process, on top of this process's.
        busy_limit_s: How long to wait for another DVC process, in seconds.

    Raises:
        StageFailedError: The stage's command ended with an error.
        DvcError: DVC failed before or after the command, or another DVC process held the workspace
            beyond ``busy_limit_s``.
    """
    start = time.monotonic()
    command = ["repro", "--single-item", *(["--force"] if force else []), stage]
    waited, pause = 0.0, 1.0
    while True:
        _remove_broken_notes(root, on_line)
        code, lines = _dvc(root, command, on_line, environment)
        if code == 0:
            return StageOutcome(_outcome(stage, lines), time.monotonic() - start)
        if not (blocker := _blocker(lines)):
            raise _failure(stage, code, lines)
        if waited > busy_limit_s:
            message = (
                f"stage '{stage}' waited {busy_limit_s:.0f} s for {blocker} to release the "
                "workspace; let it finish or stop it, then run again"
            )
            raise DvcError(message)
        on_line(f"the workspace is used by {blocker}; trying again in {pause:.0f} s")
        time.sleep(pause)
        waited, pause = waited + pause, min(2 * pause, 30.0)


def push(root: Path, on_line: OnLine) -> None:
    """Send artifacts and run records to the default DVC remote; other machines then restore them.

    Raises:
        DvcError: The remote did not take them; the message says which, and why.
    """
    code, lines = _dvc(root, ["push", "--run-cache"], on_line)
    if code != 0:
        errors = [line for line in lines if line.startswith("ERROR: ")] or lines[-1:]
        reason = errors[-1].removeprefix("ERROR: ").removeprefix("unexpected error - ")
        msg = (
            f"the DVC remote {default_remote(root)} did not take the results: {reason}. They are "
            "kept here; the same run with push sends them once the remote answers, and computes "
            "nothing again"
        )
        raise DvcError(msg)


def run_dvc(root: Path, arguments: Sequence[str], on_line: OnLine) -> None:
    """Run a command of DVC that is short and starts no stage.

    Raises:
        DvcError: It failed; the message is DVC's.
    """
    code, lines = _dvc(root, arguments, on_line)
    if code != 0:
        raise DvcError(f"dvc {arguments[0]} failed:\n" + "\n".join(lines))


def default_remote(root: Path) -> str | None:
    """Name and address of the default DVC remote, if there is one."""
    with Repo(str(root)) as repo:
        name = repo.config["core"].get("remote")
        url = repo.config["remote"].get(name, {}).get("url", "no address") if name else None
    return f"{name!r} ({url})" if name else None


def _remove_broken_notes(root: Path, on_line: OnLine) -> None:
    """Remove DVC's list of who works on which files if a kill left it half written.

    DVC rewrites it in place, and then refuses it for ever. Nobody else reads or writes it while
    its guard is held.

    Raises:
        DvcError: A DVC process is at work here, of which a new list would not know.
    """
    folder = root / ".dvc" / "tmp"
    notes = folder / RWLOCK_FILE
    if not notes.exists():
        return
    with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder), wait=True):
        try:
            SCHEMA(json.loads(notes.read_bytes()))
        except (ValueError, Invalid):
            if pids := _dvc_at_work(root):
                msg = (
                    f"{notes} is broken, and DVC is at work here (PID {', '.join(pids)}): "
                    "let it finish or stop it, then run again"
                )
                raise DvcError(msg) from None
            notes.unlink()
            on_line(f"removed {notes}, which a killed DVC had left broken")


def _dvc_at_work(root: Path) -> list[str]:
    """Ids of processes of DVC in a workspace."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        # `dvc repro` is `python .../bin/dvc repro`, and `python -m dvc repro` is what it says.
        is_dvc = any(Path(word).name == "dvc" for word in words[:3])
        if is_dvc and process.info["cwd"] == str(root.resolve()):
            found.append(str(process.pid))
    return found


def _outcome(stage: str, lines: Sequence[str]) -> Outcome:
    """DVC's verdict from its line ``Stage 'x' ...``, which is missing when the stage ran."""
    said = (outcome for end, outcome in _OUTCOMES.items() if f"Stage '{stage}' {end}" in lines)
    return next(said, "ran")


def _blocker(lines: Sequence[str]) -> str | None:
    """The process that holds what the stage needs, if that is why DVC refused."""
    text = "\n".join(lines)
    if not _BUSY.search(text):
        return None
    pids = sorted(set(_BLOCKER.findall(text)))
    return "another DVC process" + (f" (PID {', '.join(pids)})" if pids else "")


def _failure(stage: str, code: int, lines: Sequence[str]) -> StageFailedError | DvcError:
    """What went wrong, in the stage's own words where it had any."""
    if code < 0:
        return StageFailedError(stage, code, lines[-5:])
    for number, line in enumerate(lines):
        if match := _EXITED.search(line):
            own = [text for text in lines[:number] if text.strip()]
            return StageFailedError(stage, int(match[1]), own[-8:])
    return DvcError(f"dvc could not bring stage '{stage}' up to date:\n" + "\n".join(lines[-8:]))


def _dvc(
    root: Path,
    arguments: Sequence[str],
    on_line: OnLine,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, list[str]]:
    """Run ``dvc`` to its end; its exit code and its last lines.

    It runs in a separate process group, which is killed if the call ends early.
    """
    # Wait for DVC's short global lock instead of failing; the flag must precede the subcommand.
    # Tethered: a flow that is killed must not leave DVC, and so the stage, at work.
    process = subprocess.Popen(
        tether([sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]),
        cwd=root,
        env={**stage_environment(), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=200)
    try:
        for line in _lines(process):
            last.append(line)
            on_line(line)
    except BaseException:
        _stop(process, on_line)
        raise
    return process.wait(), list(last)


def _lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    """The lines until every process of the group has closed its output."""
    assert process.stdout is not None
    for line in process.stdout:
        yield line.rstrip()


def _stop(process: "subprocess.Popen[str]", on_line: OnLine) -> None:
    """Ask the group to stop, pass on its last words, kill what is left after the grace period."""
    killer = threading.Timer(STOP_GRACE_S, signal_group, [process, signal.SIGKILL])
    killer.start()
    try:
        signal_group(process, signal.SIGTERM)
        for line in _lines(process):
            on_line(line)
    finally:  # also when the user is impatient and interrupts this
        killer.cancel()
        signal_group(process, signal.SIGKILL)
        process.wait()
