"""A small SLURM on one machine: a login host and two nodes, for studies and tests.

Each host is a set of Linux namespaces with separate networks, names, mounts and process ids.
Hosts share the network and the files, nothing else, as machines of a laboratory do. Needs root,
Debian's packages ``slurm-wlm`` and ``iproute2``, and their right to make namespaces; several may
run side by side. All ends with :meth:`Lab.stop`.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, final

import psutil

from sandbox.workspace import until

__all__ = ["NODES", "Lab", "missing"]

NODES = ("node1", "node2")
_ADDRESSES = {"login": "10.99.0.100", "node1": "10.99.0.1", "node2": "10.99.0.2"}
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "ip", "nsenter", "unshare")
_FREEZER = Path("/sys/fs/cgroup/freezer")

_SLURM_CONF = """
ClusterName=lab
SlurmctldHost=login(10.99.0.100)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType={track}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,bf_interval=5
PropagateResourceLimits=NONE
MinJobAge=86400
ReturnToService=2
JobRequeue=1
# A preempted or cancelled job has ten seconds. A node that is silent for as long is down.
KillWait=10
SlurmdTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node1 NodeAddr=10.99.0.1 NodeHostname=node1 CPUs=2 RealMemory=8000
NodeName=node2 NodeAddr=10.99.0.2 NodeHostname=node2 CPUs=2 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=9 PreemptMode=OFF
"""
_CGROUP_CONF = """
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
"""
# The first process of a host: it adopts orphans, and with it all processes of the host end.
_BOOT = """
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
[ -z "$3" ] || mount --bind "$3" /sys/fs/cgroup/freezer
shift 3
ip link set lo up
until ip -brief address show scope global | grep -q .; do sleep 0.05; done
"$@" &
wait
"""


def missing() -> str | None:
    """Why there can be no such SLURM here, in words; None if there can."""
    if os.geteuid() != 0:
        return "only root may make hosts of namespaces"
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} missing: install slurm-wlm and iproute2"
    if subprocess.run(["unshare", "-nump", "true"], capture_output=True).returncode:
        return "this machine refuses namespaces"
    return None


@final
class Lab:
    """A running SLURM whose files are in ``folder``.

    Args:
        folder: A new folder with a short path (sockets' names have at most 108 bytes) that is not
            below /sys or /proc.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Self:
        """Start all hosts, and wait until both nodes are idle."""
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        cgroups = (_FREEZER / "cgroup.procs").exists()
        track = "proctrack/cgroup" if cgroups else "proctrack/linuxproc"
        conf = _SLURM_CONF.format(folder=self.folder, track=track)
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "cgroup.conf").write_text(_CGROUP_CONF)
        names = [f"{address} {host}\n" for host, address in _ADDRESSES.items()]
        (self.folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *names]))
        try:
            for host in _ADDRESSES:
                self.boot(host)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all hosts."""
        self.stop()

    def stop(self) -> None:
        """End all hosts and what runs on them."""
        for host in [*self._hosts]:
            self.kill(host)

    def boot(self, host: str) -> None:
        """Start a host and its daemon."""
        group = self._control_group(host)
        daemon = ["slurmctld", "-D", "-i"] if host == "login" else ["slurmd", "-D", "-N", host]
        with (self.folder / f"{host}.out").open("ab") as log:
            self._hosts[host] = subprocess.Popen(
                [
                    *("unshare", "--net", "--uts", "--pid", "--mount", "--mount-proc"),
                    *("--fork", "--kill-child", "bash", "-c", _BOOT, "boot"),
                    *(host, str(self.folder), group, *daemon),
                ],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._connect(host)
        if host != "login":
            until(lambda: host in self._idle(), 60, f"{host} idle (its logs: {self.folder})")

    def kill(self, host: str) -> None:
        """End a host suddenly, as a power cut does."""
        process = self._hosts.pop(host)
        with suppress(psutil.Error):
            os.kill(self._first_process(process), signal.SIGKILL)
        process.kill()
        process.wait()
        group = self._control_group_of(host)
        for folder in sorted(group.rglob("*"), reverse=True) if group.is_dir() else []:
            if folder.is_dir():
                with suppress(OSError):
                    folder.rmdir()
        with suppress(OSError):
            group.rmdir()

    def start(
        self, host: str, *command: str, cwd: Path, env: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        """Start a command on a host, its output and errors in one stream."""
        return subprocess.Popen(
            # Its folder after it has entered the host, where every process begins in the root.
            [*self._enter(host), "env", f"--chdir={cwd}", *command],
            env={**self._environment, **(env or {}), "HOSTNAME": host},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(
        self,
        host: str,
        *command: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        code: int | None = 0,
    ) -> str:
        """Run a command on a host; what it printed.

        Raises:
            RuntimeError: It did not end with ``code``.
        """
        process = self.start(host, *command, cwd=cwd or self.folder, env=env)
        printed, _ = process.communicate(timeout=900)
        if code is not None and process.returncode != code:
            msg = f"{host}: {command} ended with {process.returncode}:\n{printed}"
            raise RuntimeError(msg)
        return printed

    def submit(self, root: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Submit a batch script with ``sbatch`` from the login host; the number of the job."""
        said = self.run("login", "sbatch", "--parsable", *arguments, cwd=root, env=env)
        return said.strip().splitlines()[-1]

    def job(self, job: str) -> dict[str, str]:
        """What SLURM knows about a job: JobState, Restarts, BatchHost, ..."""
        shown = self.run("login", "scontrol", "show", "job", job, "--oneliner").splitlines()
        return dict(word.split("=", 1) for word in shown[0].split() if "=" in word)

    def jobs(self) -> list[str]:
        """The states of all jobs that have not ended."""
        return self.run("login", "squeue", "--noheader", "--format=%i %T").splitlines()

    def let_start(self, job: str, restarts: int = 0) -> None:
        """Spare a requeued job the two minutes that SLURM makes it wait.

        Args:
            job: Number of the job.
            restarts: How often it had been requeued before.
        """

        def requeued() -> bool:
            found = self.job(job)
            return int(found["Restarts"]) > restarts and found["JobState"] != "COMPLETING"

        until(requeued, 90, "requeueing")
        if self.job(job)["JobState"] == "PENDING":
            update = ("scontrol", "update", f"JobId={job}", "StartTime=now")
            self.run("login", *update, code=None)

    def wait(self, job: str, *states: str, seconds: float = 600) -> dict[str, str]:
        """Wait until a job is in one of these states; what SLURM knows about it then."""
        deadline = time.monotonic() + seconds
        while (known := self.job(job))["JobState"] not in states:
            if time.monotonic() > deadline:
                msg = f"job {job} is {known['JobState']} after {seconds:.0f} s, not {states}"
                raise TimeoutError(msg)
            time.sleep(0.5)
        return known

    def _connect(self, host: str) -> None:
        """Give a host its address; the switch between all of them is in the login host."""
        address = f"{_ADDRESSES[host]}/24"
        if host == "login":
            self._ip("login", "link", "add", "lab", "type", "bridge")
            self._ip("login", "link", "set", "lab", "up")
            self._ip("login", "address", "add", address, "dev", "lab")
            return
        init = str(self._first_process(self._hosts[host]))
        port = f"to-{host}"
        with suppress(RuntimeError):  # that of the host's earlier life
            self._ip("login", "link", "delete", port)
        veth = ("type", "veth", "peer", "name", "eth0", "netns", init)
        self._ip("login", "link", "add", port, *veth)
        self._ip("login", "link", "set", port, "master", "lab", "up")
        self._ip(host, "link", "set", "eth0", "up")
        self._ip(host, "address", "add", address, "dev", "eth0")

    def _ip(self, host: str, *arguments: str) -> None:
        init = str(self._first_process(self._hosts[host]))
        command = ["nsenter", "--target", init, "--net", "ip", *arguments]
        done = subprocess.run(command, text=True, capture_output=True)
        if done.returncode:
            raise RuntimeError(done.stderr)

    def _enter(self, host: str) -> Sequence[str]:
        init = str(self._first_process(self._hosts[host]))
        return "nsenter", "--target", init, "--net", "--uts", "--pid", "--mount"

    @staticmethod
    def _first_process(unshare: "subprocess.Popen[bytes]") -> int:
        """The process with id 1 on a host, by its id here."""
        parent = psutil.Process(unshare.pid)
        until(parent.children, 20, "a host's first process")
        return parent.children()[0].pid

    def _idle(self) -> list[str]:
        form = (
            "sinfo",
            "--noheader",
            "--Node",
            "--partition=main",
            "--states=idle",
            "--format=%N",
        )
        return self.run("login", *form, code=None).split()

    def _control_group(self, host: str) -> str:
        """A control group for the jobs of a host alone; empty where there is none."""
        if host == "login" or not (_FREEZER / "cgroup.procs").exists():
            return ""
        self._control_group_of(host).mkdir(exist_ok=True)
        return str(self._control_group_of(host))

    def _control_group_of(self, host: str) -> Path:
        return _FREEZER / f"lab-{os.getpid()}-{host}"
