"""Servers and workers of this project: ``python -m flows.services`` runs all on one machine.

On several machines ``servers`` runs on one, with its data bases in PostgreSQL, and ``workers`` on
each machine with GPUs; docs/running.md says how. Everything ends with Ctrl-C or SIGTERM.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import psutil

from dsd.utils.errors import DsdError
from flows.runtime.environment import ROOT, stage_environment
from flows.runtime.run_records import RECORDS
from flows.services.gpus import gpus_of_workers
from flows.services.http import get_text, prefect_version
from flows.services.prefect_server import make_database
from flows.services.rescheduling import give_back, runs_below
from flows.services.supervisor import Service, ServiceError, Supervisor
from pipeline.runtime.addresses import absolute_address, sqlite_address
from pipeline.runtime.proxies import ask_local_servers_directly, through_proxy
from pipeline.stage_io.paths import Paths

__all__ = ["main", "require_free_port", "require_same_version"]

LOGS = ROOT / ".dsd" / "services"
"""Folder of the log files."""

_HEALTHY_WITHIN_S = 180.0  # the first start of a server makes its data base
_RUNS_END_WITHIN_S = 20.0
_RECONCILE_EVERY_S = 10
# In a process of its own: MLflow takes seconds to import, and stays in memory.
_MAKE_STORE = (
    "import os; from pipeline.tracking.store import make_database; "
    "make_database(os.environ['MLFLOW_BACKEND_STORE_URI'])"
)
_CONTROL_RUNS = 4  # runs that only start other runs and wait for them


def main(arguments: Sequence[str] | None = None) -> int:
    """Run servers, workers or both until stopped.

    Returns:
        0 after Ctrl-C or SIGTERM; 1 if something is missing, or a process cannot be kept alive.
    """
    options = _parser().parse_args(arguments)
    # SIGINT too: a shell starts background jobs with it ignored, and Prefect's workers need it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        _require_workspace()
        _run(options)
    except DsdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _say("stopped")
    return 0


def require_free_port(host: str, port: int, option: str) -> None:
    """Make sure that a server can listen.

    Raises:
        ServiceError: Something listens there already; the message says what, if it tells.
    """
    with closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            other = prefect_version(f"http://127.0.0.1:{port}/api")
            what = f" by a Prefect server, version {other}" if other else ""
            msg = (
                f"port {port} is taken{what} ({error.strerror}); stop what listens there (is "
                f"`make up` running already?) or choose another port with {option}"
            )
            raise ServiceError(msg) from error


def require_same_version(api: str) -> None:
    """Make sure that the Prefect server of ``api`` fits this environment.

    Raises:
        ServiceError: It does not answer, or has another version.
    """
    theirs, ours = prefect_version(api), version("prefect")
    if theirs is None:
        msg = (
            f"no Prefect server answers at {api}{through_proxy(api)}; start it (`python -m "
            "flows.services servers`), open the tunnel to it, correct PREFECT_API_URL (such as "
            "http://127.0.0.1:4200/api), or, if it wants a password, set PREFECT_API_AUTH_STRING"
        )
        raise ServiceError(msg)
    if theirs != ours:
        msg = (
            f"the Prefect server at {api} has version {theirs}, this environment {ours}; "
            "install requirements.lock on both machines"
        )
        raise ServiceError(msg)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.services",
        description="Run Prefect, MLflow and a worker for each GPU until Ctrl-C.",
    )
    kinds = ["all", "servers", "workers"]
    text = "on several machines: servers on one, workers on the others (default: all)"
    parser.add_argument("what", nargs="?", choices=kinds, default="all", help=text)
    parser.add_argument("--gpus", default="auto", help="how many GPUs get a worker (auto: all)")
    text = "for runs that train with several processes (default: 1)"
    parser.add_argument("--gpus-per-worker", type=int, default=1, metavar="N", help=text)
    host = socket.gethostname()
    parser.add_argument("--name", type=_name, default=host, help="of this machine's workers")
    parser.add_argument("--port-prefect", type=_port, default=4200, metavar="PORT")
    parser.add_argument("--port-mlflow", type=_port, default=5000, metavar="PORT")
    return parser


def _name(text: str) -> str:
    if not re.fullmatch(r"[\w.+=-]{1,100}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not made of letters, digits and _ . + = -")
    return text


def _port(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text} is no port; give a number from 1 to 65535")
    return int(text)


def _run(options: argparse.Namespace) -> None:
    """Start what is wanted, say where it is, and keep it alive for ever."""
    with_servers, with_workers = options.what != "workers", options.what != "servers"
    gpus = gpus_of_workers(options.gpus, options.gpus_per_worker, os.environ)
    addresses = _local(options) if with_servers else _given()
    os.environ.update(addresses)
    if with_servers:
        require_free_port("127.0.0.1", options.port_prefect, "--port-prefect")
        require_free_port("127.0.0.1", options.port_mlflow, "--port-mlflow")
    else:
        require_same_version(addresses["PREFECT_API_URL"])
    servers, workers = Supervisor(ROOT, LOGS, _say), Supervisor(ROOT, LOGS, _say)
    try:
        if with_servers:
            _start_servers(servers, addresses, options)
        # Beside servers too: workers on other hosts may die with these.
        reconcile = [sys.executable, "-m", "flows.services.reconcile"]
        every = ["--every", str(_RECONCILE_EVERY_S)]
        workers.start(Service(f"reconcile-{options.name}", [*reconcile, *every]))
        if with_workers:
            _start_workers(workers, options.name, gpus)
        _say(_overview(addresses, options.what, gpus))
        while True:
            servers.poll()
            workers.poll()
            time.sleep(1.0)
    finally:
        _say("stopping; a stage that runs saves its state first")
        try:
            runs = runs_below(RECORDS)
            workers.stop()
            # The servers must hear how these runs end.
            _wait(
                lambda: not any(map(psutil.pid_exists, [r.pid for r in runs])), _RUNS_END_WITHIN_S
            )
            for line in give_back(runs) if options.what == "workers" else ():
                _say(line)
        finally:
            servers.stop()


def _start_servers(
    servers: Supervisor, addresses: Mapping[str, str], options: argparse.Namespace
) -> None:
    _say("waiting for the servers; their first start makes the data bases")
    make_database()
    prefect = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    servers.start(Service("prefect", [*prefect, "--port", str(options.port_prefect)]))
    mlflow = _mlflow(options.port_mlflow, shared=options.what == "servers")
    _finish("MLflow's data base", [sys.executable, "-c", _MAKE_STORE], mlflow.environment)
    servers.start(mlflow)
    _await_health(servers, "mlflow", f"{addresses['MLFLOW_TRACKING_URI']}/health")
    _await_health(servers, "prefect", f"{addresses['PREFECT_API_URL']}/health")
    _finish("the deployments of prefect.yaml", [sys.executable, "-m", "flows.services.deploy"])


def _start_workers(workers: Supervisor, name: str, gpus: Sequence[str]) -> None:
    for gpu in gpus:
        workers.start(_worker(f"{name}-gpu{gpu.replace(',', '-')}", "gpu", 1, gpu))
    if not gpus:
        workers.start(_worker(f"{name}-cpu", "gpu", 1, ""))
    workers.start(_worker(f"{name}-control", "control", _CONTROL_RUNS, ""))


def _mlflow(port: int, *, shared: bool) -> Service:
    """MLflow's server on the project's store, or on that of ``MLFLOW_BACKEND_STORE_URI``."""
    paths = Paths(ROOT)
    files = paths.tracking_artifacts.resolve().as_uri()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--artifacts-destination", files),
        # On one machine runs name the folder itself, so that they can be read without a server,
        # and one process (of threads) answers: each of MLflow's four imports for 5 s, in 250 MB.
        *([] if shared else ["--default-artifact-root", files, "--workers", "1"]),
    ]
    environment = {
        "MLFLOW_BACKEND_STORE_URI": sqlite_address(paths.tracking_store),
        # The job runners are eight processes and 2 GB for features that are not used here.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    environment |= {name: os.environ[name] for name in environment if name in os.environ}
    # Not an argument, which any user of the machine could read: it may hold a password.
    store = absolute_address(environment["MLFLOW_BACKEND_STORE_URI"], ROOT)
    return Service("mlflow", command, {**environment, "MLFLOW_BACKEND_STORE_URI": store})


def _worker(name: str, pool: str, limit: int, gpus: str) -> Service:
    """A worker; the runs that it starts inherit its environment."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process"]
    environment = {
        **stage_environment(),
        "CUDA_VISIBLE_DEVICES": gpus,
        # This folder's flows, whatever project the environment has installed.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    arguments = ["--pool", pool, "--name", name, "--limit", str(limit)]
    # Longer than what a run gives its stage to save the state.
    return Service(f"worker-{name}", [*command, *arguments], environment, grace_s=20.0)


def _finish(
    what: str, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> None:
    """Run a command to its end; quiet unless it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | (environment or {}), text=True, capture_output=True
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise ServiceError(f"{what} could not be made:\n" + "\n".join(lines[-15:]))


def _await_health(servers: Supervisor, name: str, url: str) -> None:
    def healthy() -> bool:
        servers.poll()
        return get_text(url) is not None

    if not _wait(healthy, _HEALTHY_WITHIN_S):
        msg = f"{name} did not become healthy in {_HEALTHY_WITHIN_S:.0f} s:\n{servers.tail(name)}"
        raise ServiceError(msg)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _require_workspace() -> None:
    if not (ROOT / ".dvc").is_dir():
        msg = f"{ROOT} is no DVC workspace; start this command from a clone of the project"
        raise ServiceError(msg)
    from flows.dvc.repository import tell_dvc  # late, because --help must not wait for DVC

    tell_dvc(ROOT)


def _local(options: argparse.Namespace) -> dict[str, str]:
    """The variables by which clients find servers that are started here."""
    if options.port_prefect == options.port_mlflow:
        msg = f"Prefect and MLflow cannot share port {options.port_mlflow}; change --port-mlflow"
        raise ServiceError(msg)
    return {
        "PREFECT_API_URL": f"http://127.0.0.1:{options.port_prefect}/api",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{options.port_mlflow}",
    }


def _given() -> dict[str, str]:
    """The same variables on a machine that has workers only: the user sets them."""
    found = {name: os.environ.get(name, "") for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    if missing := [name for name, address in found.items() if not address]:
        msg = (
            f"workers must know the servers: set {' and '.join(missing)}, for example "
            "PREFECT_API_URL=http://127.0.0.1:4200/api MLFLOW_TRACKING_URI=http://127.0.0.1:5000"
        )
        raise ServiceError(msg)
    return found


def _overview(addresses: Mapping[str, str], what: str, gpus: Sequence[str]) -> str:
    """The table that says where everything is."""
    here = Path.cwd()
    on = f"GPU {' and '.join(gpus)}" if gpus else "the CPU"
    variables = {**addresses, **ask_local_servers_directly()}
    rows = {
        "Prefect": addresses["PREFECT_API_URL"].removesuffix("/api"),
        "MLflow": addresses["MLFLOW_TRACKING_URI"],
        **({} if what == "servers" else {"workers": f"training on {on}; sweeps: 1"}),
        "logs": str(LOGS.relative_to(here) if LOGS.is_relative_to(here) else LOGS),
        "shell": " ".join(f"export {k}={v};" for k, v in variables.items()),
        "run": "prefect deployment run train/train --watch",
        "stop": "Ctrl-C",
    }
    return "\n".join(f"{name:<9}{text}" for name, text in rows.items())


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
