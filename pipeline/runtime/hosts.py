"""Several hosts of one SLURM job that train together: SLURM starts, PyTorch connects.

``dvc repro`` and the stage run on the first host of the job alone. For a training the stage asks
SLURM (``srun``) to start ``torchrun`` once on each other host.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

from dsd.utils.errors import ParamsError

__all__ = ["Meeting", "joined_by", "num_hosts", "refuse_tasks", "requeue"]

_OWN_END_SECONDS = 5.0
"""For the processes of this host to notice the end of others, or of a host to obey SLURM."""


@final
@dataclass(frozen=True)
class Meeting:
    """Where the processes of several hosts find each other: PyTorch's static rendezvous."""

    hosts: int
    address: str = field(default_factory=socket.gethostname)
    port: int = field(default_factory=lambda: _free_port())
    name: str = field(default_factory=lambda: uuid.uuid4().hex)


def num_hosts() -> int:
    """Hosts of the SLURM job, or of the step of it, that this process is the only task of."""
    if "SLURMD_NODENAME" not in os.environ:  # no job, or an allocation seen from elsewhere
        return 1
    counts = (os.environ.get(f"SLURM_{part}_NUM_NODES") for part in ("STEP", "JOB"))
    return int(next(filter(None, counts), 1))


def refuse_tasks() -> None:
    """Refuse to be one of several tasks that ``srun`` has started, each with the same command.

    Raises:
        ParamsError: This is the first of them.
        SystemExit: This is another one, which leaves the message to the first.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks == "1":
        return
    if os.environ.get("SLURM_PROCID") != "0":
        sys.exit(ParamsError.exit_code)
    msg = (
        f"srun started this command {tasks} times: start it once, without srun, in a batch script "
        "(slurm/run.sbatch); trainings then use all hosts of the job by themselves"
    )
    raise ParamsError(msg)


def requeue() -> None:
    """Put this job of SLURM, if it is one, into the queue again."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is not None:
        print(f"job {job} goes back to the queue", file=sys.stderr, flush=True)
        subprocess.run(["scontrol", "requeue", job], check=False)


@contextmanager
def joined_by(meeting: Meeting, stage: str, count: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``count`` processes of a stage on each other host of the job during the block.

    If they fail, this process gets SIGTERM. If the block fails, they are ended; a host that does
    not even obey SLURM is lost, and the job goes back to the queue.
    """
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={meeting.hosts}"),
        *(f"--nproc-per-node={count}", f"--rdzv-id={meeting.name}"),
        *(f"--master-addr={meeting.address}", f"--master-port={meeting.port}"),
    ]
    # The first host of the job has rank 0.
    command = f"exec {shlex.join(torchrun)} --node-rank=$((SLURM_PROCID + 1)) -m pipeline {stage}"
    others = meeting.hosts - 1
    srun = subprocess.Popen(
        [
            *("srun", "--overlap", "--relative=1", f"--nodes={others}", f"--ntasks={others}"),
            *("--ntasks-per-node=1", "--kill-on-bad-exit=1", "--input=none", "sh", "-c", command),
        ]
    )
    over = threading.Event()
    threading.Thread(target=_end_with, args=[srun, over], name="hosts", daemon=True).start()
    try:
        yield srun
        over.set()
        srun.wait(60)
    finally:
        over.set()
        if srun.poll() is None:
            srun.terminate()
            try:
                srun.wait(_OWN_END_SECONDS)
            except subprocess.TimeoutExpired:
                srun.kill()
                requeue()


def _end_with(srun: "subprocess.Popen[bytes]", over: threading.Event) -> None:
    """Thread: end this process when those of other hosts fail, unless it is ending."""
    if srun.wait() and not over.wait(_OWN_END_SECONDS):
        os.kill(os.getpid(), signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
