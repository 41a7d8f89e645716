"""A clone of this project, small enough to be run for real, as a user would run it."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sandbox import ROOT as PROJECT
from sandbox.tiny_params import TINY, set_params

OUTCOMES = {
    "restored": re.compile(r"^Stage '(\w+)' is cached - skipping run", re.M),
    "cached": re.compile(r"^Stage '(\w+)' didn't change, skipping", re.M),
    "ran": re.compile(r"^Running stage '(\w+)':", re.M),
}


class Workspace:
    """A folder with git and DVC in which stages can run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}

    def run(self, *command: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command here; any exit code but ``code`` fails the test with all it printed."""
        done = subprocess.run(
            command, cwd=self.root, env=self.env, text=True, capture_output=True, timeout=900
        )
        if code is not None:
            assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def repro(self, *options: str, prefix: Sequence[str] = ()) -> dict[str, str]:
        """Run ``dvc repro``; what it did about each stage."""
        return outcomes(self.run(*prefix, "dvc", "repro", *options).stdout)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, output and errors in one stream."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def set(self, values: Mapping[str, Any]) -> None:
        """Change params.yaml."""
        set_params(self.root, values)

    def start_git(self) -> None:
        """Make a repository of git and DVC with one commit."""
        self.run("git", "init", "-q")
        self.run("dvc", "init", "-q")
        self.commit("start")

    def commit(self, message: str) -> None:
        """Commit what git does not ignore."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "--allow-empty", "-m", message)

    def read(self, path: str) -> Any:
        """A JSON file."""
        return json.loads((self.root / path).read_text())

    def run_id(self, stage: str) -> str:
        """The MLflow run that the stage's result names."""
        return self.read(f"reports/{stage}/run.json")["run_id"]

    def digest(self, folder: str) -> dict[str, str]:
        """DVC's hash of each of a tracked folder's files."""
        files = [p for p in sorted((self.root / folder).rglob("*")) if p.is_file()]
        return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def outcomes(printed: str) -> dict[str, str]:
    """Stage -> ran, cached or restored, from what ``dvc repro`` printed."""
    return {stage: name for name, line in OUTCOMES.items() for stage in line.findall(printed)}


def copy_project(root: Path, packages: Sequence[str], files: Sequence[str]) -> None:
    """Copy parts of this project, without weights."""
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for package in packages:
        shutil.copytree(PROJECT / package, root / package, ignore=ignored)
    for file in files:
        shutil.copy(PROJECT / file, root)


def copy_tracked(target: Path) -> None:
    """Copy what git knows or would add."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    files = subprocess.run(listing, cwd=PROJECT, check=True, text=True, capture_output=True).stdout
    for name in filter(None, files.split("\0")):
        source = PROJECT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / name)


def clone(target: Path, **changes: object) -> Workspace:
    """Copy this project and commit it: what a user gets from ``git clone``."""
    copy_tracked(target)
    workspace = Workspace(target)
    # The lock of the full-size run says nothing about this one.
    (target / "dvc.lock").unlink(missing_ok=True)
    workspace.set({**TINY, **changes})
    workspace.run("git", "init", "-q")
    workspace.commit("clone")
    return workspace


def can_cut_the_network() -> bool:
    """Whether this machine lets us start a process without a network."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0


def end(process: "subprocess.Popen[str]", number: int = signal.SIGKILL) -> None:
    """Signal a process group that may be gone already."""
    if process.poll() is None:
        os.killpg(process.pid, number)


def until(
    condition: Callable[[], object],
    seconds: float,
    what: str,
    process: "subprocess.Popen[str] | None" = None,
) -> float:
    """Wait for ``condition()``, and say for how many seconds.

    It fails if it takes too long or the process that works on it ends.
    """
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"{what} did not happen within {seconds} s"
        if process is not None and process.poll() is not None:
            pytest.fail(f"the process ended before {what}:\n{process.communicate()[0]}")
        time.sleep(0.05)
    return time.monotonic() - start


wait_until = until


class FirstRun(Workspace):
    """A workspace whose pipeline has run once."""

    def __init__(self, root: Path, *, offline: bool) -> None:
        super().__init__(root)
        self.offline = offline
        self.first = self.repro(prefix=["unshare", "-rn"] if offline else [])
        self._params = (root / "params.yaml").read_text()
        self._known = self._outputs()

    def back_to_the_first_run(self) -> None:
        """Undo a test's changes; DVC restores all results without running anything."""
        (self.root / "params.yaml").write_text(self._params)
        if self._outputs() != self._known:
            assert "ran" not in self.repro().values()
            self._known = self._outputs()

    def _outputs(self) -> dict[Path, tuple[int, int]]:
        """Size and time of what DVC restores."""
        files = [p for kind in ("data", "reports") for p in (self.root / kind).rglob("*")]
        stats = {p: p.stat() for p in (*files, self.root / "dvc.lock") if p.is_file()}
        return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}
