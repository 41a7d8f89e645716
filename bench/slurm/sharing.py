"""Two hosts on one clone, file systems without locks, shells, and an array of a sweep."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import final

from bench.slurm.clones import Clone
from bench.slurm.lab import Lab
from sandbox.workspace import until

__all__ = ["Row", "array", "build_noflock", "locks", "one_clone", "shells"]

WORKS = r"^pretrain \d+% [1-9][\d,]*/"
SUPERVISE = (".venv/bin/python", "-m", "pipeline.execution.supervise")
REPRO = (*SUPERVISE, "--alone", ".venv/bin/dvc", "repro", "pretrain")


@final
@dataclass
class Row:
    """One thing that was tried."""

    tried: str
    seen: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    """What is not as promised."""

    def expect(self, right: object, text: str) -> None:
        """Note what was seen, as a finding unless it is right."""
        (self.seen if right else self.findings).append(text)


def one_clone(lab: Lab, clone: Clone) -> Iterator[Row]:
    """While a job of one node runs, start the same on the other node."""
    job = lab.submit(clone.root, "--nodelist=node1", "slurm/run.sbatch", "pretrain", env=clone.env)
    clone.wait_for(job, WORKS, 300)
    for name, command in {
        "slurm/run.sbatch": ("bash", "slurm/run.sbatch"),
        "python -m pipeline pretrain": (".venv/bin/python", "-m", "pipeline", "pretrain"),
    }.items():
        row = Row(f"`{name}` on node2 while a job of node1 runs in the same clone")
        before = _contents(clone.root)
        printed = lab.run("node2", *command, cwd=clone.root, env=clone.env, code=6)
        row.expect("on host node1 in process" in printed, f"exit code 6: {printed.strip()}")
        changed = [name for name, text in before.items() if _contents(clone.root)[name] != text]
        row.expect(not changed, f"changed: {changed or 'nothing'}")
        yield row
    row = Row("the first job, cancelled after that")
    lab.run("login", "scancel", job)
    row.expect(True, clone.wait_for(job, "stopped after.*", 90)[0])
    yield row


def build_noflock(lab: Lab) -> Path:
    """The library that takes flock() away."""
    library = lab.folder / "noflock.so"
    source = str(Path(__file__).with_name("noflock.c"))
    lab.run("login", "cc", "-shared", "-fPIC", "-o", str(library), source)
    return library


def locks(lab: Lab, clone: Clone) -> Iterator[Row]:
    """Start a run on each node where flock() is missing, or holds within one host only."""
    kinds = {"38": "missing (ENOSYS)", "37": "missing (ENOLCK)", "0": "local to each host"}
    preload = str(build_noflock(lab))
    for number, kind in kinds.items():
        row = Row(f"locks {kind}: a run on each node")
        env = {**clone.env, "LD_PRELOAD": preload, "FLOCK_ERROR": number}
        if number != "0":
            printed = lab.run("node1", *REPRO, cwd=clone.root, env=env, code=None)
            row.expect("acquire lock" in printed, f"DVC: {printed.strip().splitlines()[-1]}")
            clone.run("dvc", "config", "--local", "core.hardlink_lock", "true")  # as documented
            for name in ("lock", "rwlock.lock"):
                (clone.root / ".dvc" / "tmp" / name).unlink(missing_ok=True)
        with lab.start("node1", *REPRO, cwd=clone.root, env=env) as first:
            printed = _read_until_works(first)
            second = lab.run("node2", *REPRO, cwd=clone.root, env=env, code=6)
            row.expect("on host node1" in second, f"the second: {second.strip().splitlines()[-1]}")
            _kill(lab, "node1", "pipeline.execution.supervise")
            printed += first.communicate(timeout=60)[0]
        row.expect("stopped after" in printed, f"the first: {_line(printed, 'stopped after')}")
        clone.run("dvc", "config", "--local", "--unset", "core.hardlink_lock", code=None)
        yield row


def shells(lab: Lab, clone: Clone) -> Iterator[Row]:
    """End DVC alone, whatever shell starts the stage."""
    for shell in (None, "/bin/sh", "/bin/bash"):
        row = Row(f"SHELL {shell or 'unset'}: SIGTERM to `dvc repro` alone")
        env = {name: text for name, text in clone.env.items() if name != "SHELL"}
        given = ["env", f"SHELL={shell}"] if shell else ["env", "-u", "SHELL"]
        command = (*given, ".venv/bin/dvc", "repro", "pretrain")
        with lab.start("node1", *command, cwd=clone.root, env=env) as dvc:
            _read_until_works(dvc)
            _kill(lab, "node1", "bin/dvc repro")
            printed = dvc.communicate(timeout=60)[0]
        row.expect("stopped after" in printed, _line(printed, "stopped after"))
        processes = lab.run("node1", "ps", "-eo", "args")
        row.expect("-m pipeline" not in processes, "no process is left")
        yield row


def array(lab: Lab, clone: Clone) -> Iterator[Row]:
    """A sweep of four in a clone that has computed nothing."""
    row = Row("`slurm/sweep.sbatch` as an array of 4 in a fresh clone")
    values = ("0.1", "0.2", "0.3", "0.4")
    env = {**clone.env, "VALUES": " ".join(values), "KEY": "corrupt.sigma"}
    # The networks' steps are of no interest here.
    job = lab.submit(clone.root, "--array=0-3", "slurm/sweep.sbatch", env=env)
    until(lambda: not lab.jobs(), 1500, "the end of the array")
    logs = [(clone.root / f"dsd-{job}-{task}.out").read_text() for task in range(4)]
    states = lab.run("login", "scontrol", "show", "job", job).count("JobState=COMPLETED")
    row.expect(states == 4, f"{states} of 4 tasks completed")
    traces = sum("Traceback" in log for log in logs)
    row.expect(not traces, f"{traces} of 4 logs have a traceback")
    found = clone.run("dvc", "exp", "list", "--name-only").stdout.split()
    row.expect({f"sigma-{v}" for v in values} <= set(found), f"experiments: {', '.join(found)}")
    yield row


def _contents(root: Path) -> dict[str, str]:
    """What a second run must not change: DVC's files, and which outputs there are."""
    outputs = sorted(str(path) for path in (root / "data").rglob("*"))
    lock = (root / "dvc.lock").read_text()
    running = (root / ".dvc" / "tmp" / "rwlock").read_text()
    return {"data": "\n".join(outputs), "dvc.lock": lock, ".dvc/tmp/rwlock": running}


def _read_until_works(process: "Popen[str]") -> str:
    """What a run prints until its training works."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if line.startswith("pretrain ") and "% 0/" not in line:
            return printed
    msg = f"it ended before it trained:\n{printed}"
    raise RuntimeError(msg)


def _kill(lab: Lab, host: str, pattern: str) -> None:
    """SIGTERM to the first process of a host with such a command line."""
    lab.run(host, "sh", "-c", f"kill -TERM $(pgrep -o -f '^[^ ]*python.*{pattern}')")


def _line(printed: str, text: str) -> str:
    return next((line for line in printed.splitlines() if text in line), f"not {text!r}")
