"""Imitate several machines on one: ``python -m bench.reliability.several_machines``.

A real PostgreSQL holds Prefect's and MLflow's data bases. Two clones of this project, each with
a worker of its own, stand for two machines: they share the servers and a DVC remote, nothing else.
A sweep of four noise levels, with tiny networks, runs over both; then a third clone restores a
result without computing. Needs the extra ``postgres`` and PostgreSQL's programs, which refuse to
be root and are run as ``nobody`` then. Prints what was found; about 5 minutes on 2 cores.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.stages import STAGES
from sandbox.ports import free_port
from sandbox.tiny_project import Project
from sandbox.workspace import Workspace, clone, outcomes

SIGMAS = ["0.3", "0.4", "0.6", "0.7"]
TROUBLE = re.compile(r"Traceback|database is locked|\bERROR\b|\bCRITICAL\b")


def main() -> int:
    """Run the check; the exit code is 0 if nothing was wrong."""
    with tempfile.TemporaryDirectory(prefix="several-machines-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user
        with _postgres(folder) as url:
            return _check(folder, url)


def _check(folder: Path, url: str) -> int:
    first = clone(folder / "first")
    remote = str(folder / "remote")
    first.run(sys.executable, "-m", "dvc", "remote", "add", "--default", "shared", remote)
    first.run("git", "commit", "-qam", "remote")
    for name in ("second", "third"):
        subprocess.run(["git", "clone", "-q", first.root, folder / name], check=True)
    port = free_port()
    servers = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{url}/prefect",
        "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://{url}/mlflow",
    }
    here, there = Project(folder / "first", port), Project(folder / "second", port)
    here.env.update(servers)
    running = [here.start_services("servers")]
    try:
        running.append(here.start_services("workers", "--name", "first", log="workers.out"))
        running.append(there.start_services("workers", "--name", "second", log="workers.out"))
        _sweep(here)
        _show_workers(here)
        problems = _mlflow_problems(here) + _log_problems(here, there)
    finally:
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    problems += _restore(Workspace(folder / "third"))
    print(*problems or ["nothing was wrong"], sep="\n")
    return 1 if problems else 0


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server with the data bases ``prefect`` and ``mlflow``: user@host:port."""
    initdb = shutil.which("initdb")
    if initdb is None:
        sys.exit("PostgreSQL's initdb is not on the PATH; install postgresql (Debian) for this")
    programs = Path(initdb).resolve().parent
    data, port = folder / "postgres", free_port()
    data.mkdir()
    user: Mapping[str, Any] = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
    if user:
        shutil.chown(data, user["user"], user["group"])

    if user:
        user = {**user, "extra_groups": []}
    run = partial(subprocess.run, check=True, cwd=data, stdout=subprocess.DEVNULL, **user)

    db = str(data / "db")
    run([initdb, "-D", db, "-U", "dsd", "--auth", "trust", "--no-sync"])
    options = f"-h 127.0.0.1 -p {port} -k {data} -c max_connections=200"
    control = [programs / "pg_ctl", "-D", db, "-w", "-l", data / "log", "-o", options]
    run([*control, "start"])
    try:
        for name in ("prefect", "mlflow"):
            at = ["-h", "127.0.0.1", "-p", str(port), "-U", "dsd"]
            run([programs / "createdb", *at, name])
        yield f"dsd@127.0.0.1:{port}"
    finally:
        run([programs / "pg_ctl", "-D", db, "-m", "fast", "stop"])


def _sweep(project: Project) -> None:
    grid = [{"key": "corrupt.sigma", "values": SIGMAS}]
    run = project.submit("sweep/sweep", grid=grid, push=True)
    ended = project.wait_for(run, "Completed", "Failed", "Crashed", "Cancelled", seconds=1500)
    print(f"sweep: {ended}")
    states = [r["state_name"] for r in project.ask("flow_runs/filter", {}) if r["id"] != run]
    print(f"its runs: {dict(Counter(states))}")
    assert ended == "Completed", project.log(run)
    assert states == ["Completed"] * len(SIGMAS)


def _show_workers(project: Project) -> None:
    """How many runs each clone's worker took, by its own log."""
    for name in ("first", "second"):
        log = project.root.parent / name / ".dsd" / "services" / f"worker-{name}-cpu.log"
        print(f"taken by the worker of {name}: {log.read_text().count('submitting flow run')}")


def _mlflow_problems(project: Project) -> list[str]:
    """Whether MLflow has each execution of a stage once."""
    from mlflow import MlflowClient

    client = MlflowClient(project.mlflow)
    experiment = client.get_experiment_by_name("dsd")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    stages = Counter(run.data.tags["dvc.stage"] for run in runs)
    status = Counter(run.info.status for run in runs)
    print(f"MLflow's runs: {dict(stages)}, {dict(status)}")
    wrong = [f"{stage}: {stages[stage]} runs" for stage in [*STAGES][1:] if stages[stage] != 4]
    return wrong + ([] if set(status) == {"FINISHED"} else [f"runs are {dict(status)}"])


def _log_problems(*projects: Project) -> list[str]:
    """Lines of the services' logs that speak of trouble."""
    found = []
    for project in projects:
        for log in sorted((project.root / ".dsd" / "services").glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()
            found += [f"{log.name}: {line}" for line in lines if TROUBLE.search(line)]
    return found


def _restore(third: Workspace) -> list[str]:
    """Whether a clone that has computed nothing gets one of the results from the remote."""
    third.set({"corrupt.sigma": float(SIGMAS[0])})
    third.run(sys.executable, "-m", "dvc", "pull", "--run-cache", "--allow-missing", code=None)
    done = outcomes(third.run(sys.executable, "-m", "dvc", "repro", "--pull").stdout)
    print(f"a third clone: {done}")
    return [f"{stage} was computed again" for stage in STAGES if done.get(stage) != "restored"]


if __name__ == "__main__":
    sys.exit(main())
