"""Trainings on both nodes, and Prefect's worker as a job."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors.torch import load_file

from bench.slurm.clones import Clone, copy
from bench.slurm.lab import Lab
from bench.slurm.sharing import WORKS, Row
from sandbox.workspace import until

__all__ = ["two_nodes", "worker"]

_WITHIN_SECONDS = 20.0
_LIVES = "-m pipeline pretrain"

# Stands for the tunnel to the servers, which listen on their own host only.
_FORWARD = """
import asyncio, sys

async def pass_on(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def main(host, ports):
    def to(port):
        async def connect(reader, writer):
            there, back = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pass_on(reader, back), pass_on(there, writer))
        return connect
    for port in ports:
        await asyncio.start_server(to(port), host, port)
    await asyncio.sleep(1e6)

asyncio.run(main(sys.argv[1], [int(port) for port in sys.argv[2:]]))
"""


def two_nodes(lab: Lab, base: Clone, whole: Clone) -> Iterator[Row]:
    """Train on both nodes; then lose a process, and a node."""
    clone = copy(base, base.root.with_name("two-nodes"))
    submit = ("--nodes=1-2", "slurm/run.sbatch", "pretrain")
    row = Row("`sbatch --nodes=1-2 slurm/run.sbatch`, a process of node2 killed")
    job = lab.submit(clone.root, *submit, env=clone.env)
    clone.wait_for(job, WORKS, 300)
    row.expect(_LIVES in lab.run("node2", "ps", "-eo", "args"), "processes on both nodes")
    # The newest one trains; the others start it.
    lab.run("node2", "sh", "-c", f"kill -9 $(pgrep -n -f -- '[-]{_LIVES[1:]}')")  # not sh itself
    _expect_all_to_end(lab, row, ("node1", "node2"))
    row.expect(lab.wait(job, "FAILED")["ExitCode"] != "0:0", _error(clone.log(job)))
    yield row

    row = Row("the same command again, node2 without power, then what is left")
    job = lab.submit(clone.root, *submit, env=clone.env)
    clone.wait_for(job, WORKS, 300)
    lab.kill("node2")
    _expect_all_to_end(lab, row, ("node1",))
    lab.let_start(job)
    clone.wait_for(job, "resumed after", 300)
    row.expect(True, f"{_error(clone.log(job))}; goes on after its last state")
    known = lab.wait(job, "COMPLETED", "FAILED")
    row.expect(known["JobState"] == "COMPLETED", f"{known['JobState']} on {known['NodeList']}")
    lab.boot("node2")
    status = clone.run("dvc", "status", "pretrain").stdout.strip()
    row.expect("up to date" in status, f"dvc status: {status}")
    weights = [
        load_file(c.root / "data" / "pretrain" / "weights.safetensors") for c in (clone, whole)
    ]
    apart = max(float((weights[0][n] - weights[1][n]).abs().max()) for n in weights[0])
    row.expect(apart < 1e-3, f"largest difference of a weight from one process' run: {apart:.1e}")
    yield row

    row = Row("`srun --ntasks=2` before the stage, and before the batch script's command")
    for command in (
        (".venv/bin/python", "-m", "pipeline", "pretrain"),
        ("bash", "slurm/run.sbatch", "pretrain"),
    ):
        srun = ("srun", "--ntasks=2", "--nodes=2", *command)
        printed = lab.run("login", *srun, cwd=clone.root, env=clone.env, code=2)
        errors = [line for line in printed.splitlines() if line.startswith("error: ")]
        row.expect(len(errors) == 1, f"exit code 2: {'; '.join(errors)}")
    yield row


def worker(lab: Lab, clone: Clone) -> Iterator[Row]:
    """End the job of a worker in the middle of a run; another worker continues the run."""
    with _servers(lab, clone) as env:
        job = lab.submit(clone.root, "slurm/worker.sbatch", env=env)
        clone.wait_for(job, "Ctrl-C", 300)
        run = _submit_run(lab, clone, env)
        until(lambda: _trains(clone), 300, "the training")
        row = Row("`slurm/worker.sbatch` gets SIGUSR1, as before its time limit, in pretrain")
        begun = time.monotonic()
        lab.run("login", "scancel", "--batch", "--signal=USR1", job)
        until(lambda: _state(lab, clone, env, run) != "Running", 60, "another state")
        said = f"{_state(lab, clone, env, run)} after {time.monotonic() - begun:.0f} s"
        row.expect("AwaitingRetry" in said, f"Prefect shows the run as {said}")
        lab.let_start(job)
        row.expect(lab.wait(job, "RUNNING")["Restarts"] == "1", "the job requeued itself")
        until(lambda: _state(lab, clone, env, run) in _ENDS, 900, "the run's end")
        state_name = _state(lab, clone, env, run)
        row.expect(state_name == "Completed", f"the next worker took it up: {state_name}")
        logs = lab.run("login", *_PREFECT, "flow-run", "logs", run, cwd=clone.root, env=env)
        resumed = "resumed after" in logs
        row.expect(resumed, "its training resumed" if resumed else "its training began again")
        yield row


def _trains(clone: Clone) -> bool:
    """Whether a run's training has shown progress in its worker's log."""
    logs = (clone.root / ".dsd" / "services").glob("worker-*.log")
    return any(re.search(r"pretrain [1-9]\d*% ", log.read_text()) for log in logs)


_PREFECT = (".venv/bin/python", "-m", "prefect")
_ENDS = {"Completed", "Failed", "Crashed", "Cancelled"}
_ASK = """
import sys
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    print(client.read_flow_run(sys.argv[1]).state.name)
"""


@contextmanager
def _servers(lab: Lab, clone: Clone) -> Iterator[dict[str, str]]:
    """Prefect and MLflow on the login host; the environment that names them."""
    address = "10.99.0.100"
    env = {
        **clone.env,
        "PREFECT_API_URL": f"http://{address}:4200/api",
        "MLFLOW_TRACKING_URI": f"http://{address}:5000",
        "MLFLOW_SERVER_ALLOWED_HOSTS": "*",
        "PREFECT_HOME": str(clone.root / ".prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    python = str(clone.root / ".venv" / "bin" / "python")
    forward = (python, "-c", _FORWARD, address, "4200", "5000")
    command = (python, "-m", "flows.services", "servers")
    with (
        lab.start("login", *command, cwd=clone.root, env=env) as servers,
        lab.start("login", *forward, cwd=clone.root) as forwarding,
    ):
        try:
            assert servers.stdout is not None
            lines = iter(servers.stdout.readline, "")
            if not any("Ctrl-C" in line for line in lines):
                msg = "the servers did not start"
                raise RuntimeError(msg)
            yield env
        finally:
            lab.run("login", "pkill", "-TERM", "-f", "-m flows.services servers", code=None)
            forwarding.kill()


def _submit_run(lab: Lab, clone: Clone, env: dict[str, str]) -> str:
    command = ("deployment", "run", "train/train")
    printed = lab.run("login", *_PREFECT, *command, cwd=clone.root, env=env)
    words = printed.replace("/", " ").split()
    return next(word for word in words if word.count("-") == 4 and len(word) == 36)


def _state(lab: Lab, clone: Clone, env: dict[str, str], run: str) -> str:
    command = (sys.executable, "-c", _ASK, run)
    return lab.run("login", *command, cwd=clone.root, env=env).strip().splitlines()[-1]


def _expect_all_to_end(lab: Lab, row: Row, hosts: tuple[str, ...]) -> None:
    def left() -> bool:
        return any(_LIVES in lab.run(host, "ps", "-eo", "args") for host in hosts)

    seconds = until(lambda: not left(), 120, "the end of all processes")
    row.expect(seconds < _WITHIN_SECONDS, f"all processes ended within {seconds:.0f} s")


def _error(log: str) -> str:
    return [line for line in log.splitlines() if line.startswith("error: ")][-1]
