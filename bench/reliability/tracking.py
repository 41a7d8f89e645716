"""What tracking costs a stage: ``python -m bench.reliability.tracking`` prints the table.

A stage of some seconds records numbers at a fixed pace, as training does, while MLflow is a local
file, a server, a server that takes two seconds for every answer, a server that is killed half-way,
or nothing at all. The columns: the time that one call took the stage (median, 99th percentile,
most), how long its end took, and how many numbers the store had then and after ``sync``.
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from pipeline.params.reader import load_params
from pipeline.stage_io.paths import Paths
from pipeline.tracking import tracker as tracking

# pipeline.tracking sets MLflow's defaults before it imports MLflow.
from mlflow import MlflowClient  # isort: skip

from sandbox import ROOT
from sandbox.ports import free_port

Server: TypeAlias = Callable[[], AbstractContextManager["subprocess.Popen[bytes]"]]
CALLS, PAUSE_S, SLOW_S = 1000, 0.02, 2.0


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A real server on a SQLite file."""
    uri = f"http://127.0.0.1:{port}"
    store = f"sqlite:///{folder / 'mlflow.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--artifacts-destination", str(folder)],
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while not _answers(uri):
            time.sleep(0.2)
        yield process
    finally:
        kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a server and the workers that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answers(uri: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5):
        return True
    return False


@contextmanager
def delayed(uri: str) -> Iterator[str]:
    """Another address of the same server, where each answer takes ``SLOW_S`` longer."""

    class Relay(BaseHTTPRequestHandler):
        def relay(self) -> None:
            time.sleep(SLOW_S)
            length = int(self.headers.get("Content-Length", 0))
            request = urllib.request.Request(
                uri + self.path,
                self.rfile.read(length) or None,
                {"Content-Type": self.headers.get("Content-Type", "application/json")},
                method=self.command,
            )
            try:
                answer = urllib.request.urlopen(request, timeout=60)
            except urllib.error.HTTPError as error:
                answer = error
            body = answer.read()
            self.send_response(answer.status or 200)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_PUT = relay  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    relay = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    threading.Thread(target=relay.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{relay.server_port}"
    finally:
        relay.shutdown()


def stage(paths: Paths, killed: "subprocess.Popen[bytes] | None") -> tuple[list[float], float]:
    """Seconds of each call, and of the stage's end; half-way the server is killed, if given."""
    calls = []
    with tracking.run("pretrain", load_params(paths.root), paths) as log:
        for number in range(CALLS):
            if killed is not None and number == CALLS // 2:
                kill(killed)
            started = time.perf_counter()
            log.metrics(128 * (number + 1), {"loss": 1 / (number + 1)})
            calls.append(time.perf_counter() - started)
            time.sleep(PAUSE_S)
        started = time.perf_counter()
    return calls, time.perf_counter() - started


def arrived(store: str) -> int:
    """How many of the numbers are in a store."""
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("dsd")
    runs = client.search_runs([experiment.experiment_id]) if experiment is not None else []
    return sum(len(client.get_metric_history(run.info.run_id, "loss")) for run in runs)


def row(name: str, calls: list[float], *others: str) -> str:
    """One line of the table."""
    ordered = sorted(1e6 * seconds for seconds in calls)
    shown = [statistics.median(ordered), ordered[int(0.99 * len(ordered))], ordered[-1]]
    return f"| {' | '.join([name, *(f'{value:,.0f}' for value in shown), *others])} |"


@contextmanager
def workspace(uri: str) -> Iterator[Paths]:
    """A workspace that tracks to ``uri``."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    with TemporaryDirectory() as folder:
        shutil.copy(ROOT / "params.yaml", folder)
        yield Paths(Path(folder))


def measure(
    name: str,
    uri: str,
    store: str,
    *,
    killed: "subprocess.Popen[bytes] | None" = None,
    again: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Run a stage that tracks to ``uri``, look into ``store``, and sync with a server there."""
    with workspace(uri) as paths:
        calls, end = stage(paths, killed)
        before = arrived(store)
        with again():
            tracking.sync(paths)
        print(row(name, calls, f"{end:.1f}", f"{before:,}", f"{arrived(store):,}"), flush=True)


def main() -> None:
    """Print the table."""
    print("| MLflow is | call, us: median | 99 % | most | end, s | numbers there | after sync |")
    print("|---|---|---|---|---|---|---|")
    with _stores() as (uri, store, _):
        measure("a SQLite file", store, store)
    with _stores() as (uri, store, server), server():
        measure("a server", uri, store)
    with _stores() as (uri, store, server), server(), delayed(uri) as slow:
        measure(f"a server that takes {SLOW_S:g} s an answer", slow, store)
    with _stores() as (uri, store, server), server() as process:
        measure("a server killed half-way", uri, store, killed=process, again=server)
    with _stores() as (uri, store, server):
        measure("not there", uri, store, again=server)


@contextmanager
def _stores() -> Iterator[tuple[str, str, Server]]:
    """A free address, a new store, and what starts a server there on it."""
    with TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        store = f"sqlite:///{folder / 'mlflow.db'}"
        MlflowClient(store).search_experiments()  # makes the tables, which takes seconds
        yield f"http://127.0.0.1:{port}", store, partial(mlflow_server, folder, port)


if __name__ == "__main__":
    main()
