"""Clones of this project on the shared folder of a small SLURM, and what their jobs printed."""

import hashlib
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from sandbox.tiny_params import TINY
from sandbox.workspace import Workspace, clone, until

__all__ = ["PARAMS", "Clone", "Stop", "copy", "fresh", "prepared"]

PARAMS: Mapping[str, Any] = {
    **TINY,
    "network.model_channels": 16,
    "pretrain.batch_size": 256,
    "pretrain.kimg": 15.36,
    "pretrain.lr_warmup_kimg": 0.512,
    "pretrain.sample_every_kimg": 7.68,
    "distill.batch_size": 128,
    "distill.kimg": 5.12,
    "distill.selection.every_kimg": 2.56,
    "run.checkpoint_minutes": 60,
}
"""Steps of about a second on a busy machine, and no state but that of a stop."""

_PROGRESS = re.compile(r"^(\w+) \d+% ([\d,]+)/[\d,]+ images, ([\d,.]+) img/s", re.M)
_STOPPED = re.compile(r"stopped after ([\d,]+) images")
_RESUMED = re.compile(r"resumed after ([\d,]+) images")
_EXEMPT = {"run.json"}
"""Names the run in MLflow, another one each time."""


@dataclass(frozen=True)
class Stop:
    """How a training heard a signal, saved and went on."""

    before: int
    """Images of the last line before the signal."""

    stopped: int
    seconds: float
    """From the signal's arrival to the saved state."""

    step_seconds: float

    def findings(self, resumed: int, batch: int) -> list[str]:
        """What is not as promised: work lost, more than a step after the signal, not resumed."""
        found = []
        if not self.stopped >= self.before > 0:
            found.append(f"{self.before} images were done, but {self.stopped} saved")
        if self.stopped % batch:
            found.append(f"{self.stopped} is not a whole number of steps")
        # A second for the state and for this process, which looks ten times a second.
        if self.seconds > self.step_seconds + 1:
            found.append(f"saved {self.seconds:.1f} s after the signal, not within a step")
        if resumed != self.stopped:
            found.append(f"stopped after {self.stopped} images, resumed after {resumed}")
        return found


@final
class Clone(Workspace):
    """A clone that hosts share, with the commands of this Python as its ``.venv``."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.env |= {
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
            "DVC_SITE_CACHE_DIR": str(root / ".dvc" / "tmp" / "site"),
        }
        for name in ("VIRTUAL_ENV", "DSD_PYTHON", "CUDA_VISIBLE_DEVICES", "PREFECT_API_URL"):
            self.env.pop(name, None)

    def link_environment(self) -> None:
        """Do what ``make setup`` does, with the packages that are there."""
        (self.root / ".venv").mkdir(exist_ok=True)
        for part in ("bin", "lib", "pyvenv.cfg"):
            (self.root / ".venv" / part).symlink_to(Path(sys.prefix) / part)

    def log(self, job: str) -> str:
        """What a job has printed so far."""
        file = self.root / f"dsd-{job}.out"
        return file.read_text(errors="replace") if file.is_file() else ""

    def wait_for(self, job: str, text: str, seconds: float, *, after: int = 0) -> re.Match[str]:
        """Wait until a job prints something that matches ``text``, ``after`` these characters."""
        pattern = re.compile(text, re.M)
        try:
            until(lambda: pattern.search(self.log(job), after), seconds, f"{text!r}")
        except AssertionError as error:
            raise TimeoutError(f"{error}; the job said:\n{self.log(job)[-3000:]}") from error
        found = pattern.search(self.log(job), after)
        assert found is not None
        return found

    def watch_stop(self, job: str, stage: str, after: int, seconds: float = 120) -> Stop:
        """Watch a training hear a signal that has been sent, and save its state."""
        signalled = self.wait_for(job, "stopping: saving", seconds, after=after)
        heard = time.monotonic()
        stopped = self.wait_for(job, _STOPPED.pattern, 60, after=after)
        saved = time.monotonic()
        before = [
            m for m in _PROGRESS.finditer(self.log(job)[: signalled.start()]) if m[1] == stage
        ]
        done, rate = _number(before[-1][2]), float(before[-1][3].replace(",", ""))
        batch = PARAMS[f"{stage}.batch_size"]
        return Stop(done, _number(stopped[1]), saved - heard, batch / rate)

    def resumed(self, job: str, after: int, seconds: float = 300) -> int:
        """Wait until a job continues a training; after how many images."""
        return _number(self.wait_for(job, _RESUMED.pattern, seconds, after=after)[1])

    def files(self, stages: tuple[str, ...] = ("pretrain", "distill")) -> dict[str, str]:
        """SHA-256 of all that stages left, by path."""
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self._outputs(stages)
        }

    def differences(self, whole: Mapping[str, str], stages: tuple[str, ...]) -> list[str]:
        """Files that are not those of the uninterrupted run ``whole``."""
        mine = self.files(stages)
        wanted = {name: hash_ for name, hash_ in whole.items() if name.split("/")[1] in stages}
        return [
            name
            for name in sorted(mine.keys() | wanted.keys())
            if mine.get(name) != wanted.get(name)
        ]

    def _outputs(self, stages: tuple[str, ...]) -> Iterator[Path]:
        for stage in stages:
            for kind in ("data", "reports"):
                for path in sorted((self.root / kind / stage).rglob("*")):
                    if path.is_file() and path.name not in _EXEMPT:
                        yield path


def fresh(root: Path, **changes: object) -> Clone:
    """A clone in which nothing is computed."""
    clone(root, **{**PARAMS, **changes})
    made = Clone(root)
    made.link_environment()
    return made


def prepared(root: Path) -> Clone:
    """A clone with the first two stages done."""
    made = fresh(root)
    made.run("dvc", "repro", "corrupt")
    return made


def copy(base: Clone, root: Path) -> Clone:
    """Another clone like ``base``, in which nothing is computed yet that is not there."""
    shutil.copytree(base.root, root, symlinks=True, copy_function=shutil.copy2)
    shutil.rmtree(root / ".dvc" / "tmp", ignore_errors=True)
    (root / ".dvc" / "tmp").mkdir()
    return Clone(root)


def _number(text: str) -> int:
    return int(text.replace(",", ""))
