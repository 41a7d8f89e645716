"""This project's flows over two one-line stages, with real servers and workers, in seconds."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from sandbox.workspace import Workspace, copy_project, until

__all__ = ["PATTERNS", "Project", "lives", "until"]

DVC_YAML = """
stages:
  first:
    cmd: python work.py first 0.2
    deps: [work.py]
    params: [seed]
    outs: [first.out]
  second:
    cmd: python work.py second ${pretrain.kimg}
    deps: [work.py, first.out]
    outs: [second.out]
"""

WORK = '''
"""A stage that saves its state when it is asked to stop, and goes on from there."""
import sys, time
from pathlib import Path
from pipeline.execution.locks import exclusive
from pipeline.runtime.signals import StopSignal, die_with_parent

name, seconds = sys.argv[1], float(sys.argv[2])
stop = StopSignal()
stop.install()
stop.graceful = True
die_with_parent()
with exclusive(Path(".dsd/locks") / name, name):
    state = Path(".dsd") / f"{name}.state"
    done = int(state.read_text()) if state.is_file() else 0
    print(f"{name} goes on from {done}", flush=True)
    while done < 10 * seconds:
        time.sleep(0.1)
        done += 1
        state.write_text(str(done))
        if stop.number:
            print(f"{name} saved at {done}", flush=True)
            sys.exit(128 + stop.number)
    state.unlink()
seed = next(x for x in Path("params.yaml").read_text().splitlines() if x.startswith("seed:"))
Path(f"{name}.out").write_text(seed)
'''

IGNORED = (".dsd/", ".prefect/", "mlflow.db*", "mlartifacts/", "__pycache__/")


class Project(Workspace):
    """A clone of this project whose pipeline is ``first`` and ``second``."""

    def __init__(self, root: Path, port: int) -> None:
        super().__init__(root)
        self.port = port
        self.api = f"http://127.0.0.1:{port}/api"
        self.mlflow = f"http://127.0.0.1:{port + 1}"
        self.env |= {
            "PREFECT_API_URL": self.api,
            "MLFLOW_TRACKING_URI": self.mlflow,
            "PREFECT_HOME": str(root / ".prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        }
        for inherited in ("CUDA_VISIBLE_DEVICES", "DVC_SITE_CACHE_DIR"):
            self.env.pop(inherited, None)

    def make(self) -> None:
        """Write and commit the project."""
        self.root.mkdir(parents=True, exist_ok=True)
        packages, files = ("flows", "pipeline", "dsd"), ("prefect.yaml", "params.yaml")
        copy_project(self.root, packages, files)
        (self.root / "dvc.yaml").write_text(DVC_YAML)
        (self.root / "work.py").write_text(WORK)
        (self.root / ".gitignore").write_text("\n".join(IGNORED) + "\n")
        self.choose(seed=0, seconds=60)
        self.start_git()

    def choose(self, *, seed: int, seconds: float) -> None:
        """Choose how long the second stage works; another seed makes both stages out of date."""
        self.set({"seed": seed})
        self.set_seconds(seconds)
        # Clean slate: no state of an earlier run with other parameters.
        for state in (self.root / ".dsd").glob("*.state"):
            state.unlink()

    def set_seconds(self, seconds: float) -> None:
        """Choose how long the second stage works; a state that it has saved stays of use."""
        self.set({"pretrain.kimg": float(seconds), "pretrain.lr_warmup_kimg": 0.0})

    def start_services(
        self, *arguments: str, log: str = "services.out"
    ) -> "subprocess.Popen[str]":
        """``python -m flows.services``, waited for until it says how to stop it."""
        ports = ["--port-prefect", str(self.port), "--port-mlflow", str(self.port + 1)]
        printed = self.root / ".dsd" / log
        printed.parent.mkdir(exist_ok=True)
        with printed.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.services", *ports, *arguments],
                cwd=self.root,
                env=self.env,
                text=True,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        until(
            lambda: "Ctrl-C" in printed.read_text() or process.poll() is not None,
            300,
            "the services",
        )
        assert process.poll() is None, printed.read_text()
        return process

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Prefect's answer to a GET, or to a POST with ``body``."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.api}/{path}", data=data, headers={"Content-Type": "application/json"}
        )
        for pause in (1, 2, 4, 8, 16):  # as Prefect's own clients do: busy, or away
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.URLError as error:
                if getattr(error, "code", 503) != 503:
                    raise
                time.sleep(pause)
        raise AssertionError(f"{self.api} does not answer")

    def submit(self, deployment: str = "train/train", **parameters: object) -> str:
        """Ask for a run of a deployment with these parameters; its id."""
        found = self.ask(f"deployments/name/{deployment}")
        body = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
        run = self.ask(f"deployments/{found['id']}/create_flow_run", body)
        return str(run["id"])

    def state(self, run_id: str) -> str:
        """Name of a run's state: Running, Crashed, ..."""
        return str(self.ask(f"flow_runs/{run_id}")["state_name"])

    def cancel(self, run_id: str) -> None:
        """What the button in the UI does."""
        self.ask(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})

    def wait_for(self, run_id: str, *states: str, seconds: float = 300) -> str:
        """Wait until a run is in one of these states; which one."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.state(run_id)
            if found in states:
                return found
            assert time.monotonic() < deadline, f"{found}, not {states}\n{self.log(run_id)}"
            time.sleep(0.2)

    def wait_until_second_works(self, run_id: str, seconds: float = 300) -> None:
        """Wait until the second stage has worked for this run."""
        state, begun = self.root / ".dsd" / "second.state", time.time()

        def working() -> bool:
            assert self.state(run_id) not in {"Failed", "Crashed", "Cancelled"}, self.log(run_id)
            return (
                state.is_file()
                and state.stat().st_mtime > begun
                and int(state.read_text() or 0) >= 10
            )

        until(working, seconds, "the second stage")

    def log(self, run_id: str) -> str:
        """What a run and its stages printed."""
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}
        return "\n".join(line["message"] for line in self.ask("logs/filter", body))

    def processes(self, pattern: str) -> list[psutil.Process]:
        """Living processes of this project whose command line matches."""
        marks = (str(self.root), self.api)
        return [p for p in psutil.process_iter() if _is_ours(p, marks, pattern)]

    def kill(self, pattern: str, number: int = signal.SIGKILL) -> None:
        """Signal the processes whose command line matches; there must be some."""
        found = self.processes(pattern)
        assert found, f"no process {pattern}"
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        if number == signal.SIGKILL:
            until(lambda: not any(map(lives, found)), 30, "the end of what was killed")


PATTERNS = {
    "stage": r"work\.py second",
    "dvc": r"-m dvc .*repro",
    "engine": r"-m prefect\.(flow_)?engine",
    "worker": r"worker start .*--pool gpu",
    "server": r"prefect server start",
    "services": r"-m flows\.services",
    "all": r".",
}
"""Command lines of what can be killed."""


def lives(process: psutil.Process) -> bool:
    """Whether it runs and is no zombie."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _is_ours(process: psutil.Process, marks: tuple[str, str], pattern: str) -> bool:
    if process.pid == os.getpid() or not lives(process):
        return False
    root, api = marks
    with suppress(psutil.Error):
        mine = process.cwd().startswith(root) or process.environ().get("PREFECT_API_URL") == api
        return mine and re.search(pattern, " ".join(process.cmdline())) is not None
    return False
