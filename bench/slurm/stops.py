"""Ways in which SLURM stops a job, and what a run makes of each."""

import time
from collections.abc import Callable, Mapping
from typing import TypeAlias

from bench.slurm.clones import PARAMS, Clone
from bench.slurm.lab import Lab
from sandbox.workspace import until

__all__ = ["STAGES", "STOPS", "interrupted", "requeue"]

STAGES = ("pretrain", "distill")

Way: TypeAlias = Callable[[Lab, Clone, str], str]
"""Stops the job and sees to it that it is started again; the job that goes on."""

_REQUEUED = ("PENDING", "REQUEUED", "RUNNING", "CONFIGURING")


def requeue(lab: Lab, clone: Clone, job: str) -> str:
    """What an administrator does."""
    lab.run("login", "scontrol", "requeue", job)
    return job


def limit(lab: Lab, clone: Clone, job: str) -> str:
    """The time limit comes near: SIGUSR1 to the batch script, as the script itself asks for."""
    hours, minutes, seconds = map(int, lab.job(job)["RunTime"].rsplit("-")[-1].split(":"))
    # SLURM looks every 30 s; the script asks for a signal 120 s before the end.
    end = 60 * hours + minutes + (seconds > 0) + 1
    lab.run("login", "scontrol", "update", f"JobId={job}", f"TimeLimit={end}")
    return job


def preemption(lab: Lab, clone: Clone, job: str) -> str:
    """Another job of a partition that has priority needs the node."""
    node = lab.job(job)["BatchHost"]
    whole = ("--partition=urgent", f"--nodelist={node}", "--exclusive", "--output=/dev/null")
    lab.submit(clone.root, *whole, "--wrap", "sleep 1", env=clone.env)
    return job


def cancel(lab: Lab, clone: Clone, job: str) -> str:
    """The user ends the job, and later submits it again."""
    lab.run("login", "scancel", job)
    known = lab.wait(job, "CANCELLED", seconds=60)
    time.sleep(12)  # longer than two rounds of the scheduler
    if known["Restarts"] != "0" or lab.job(job)["JobState"] != "CANCELLED" or lab.jobs():
        msg = f"job {job} went on after scancel: {lab.jobs()}"
        raise RuntimeError(msg)
    return lab.submit(clone.root, "slurm/run.sbatch", "distill", env=clone.env)


def death(lab: Lab, clone: Clone, job: str) -> str:
    """The node loses its power."""
    node = lab.job(job)["BatchHost"]
    lab.kill(node)
    until(lambda: lab.job(job)["JobState"] in {"PENDING", "REQUEUED"}, 90, "the node's loss")
    lab.boot(node)
    return job


STOPS: Mapping[str, Way] = {
    "requeue": requeue,
    "time limit": limit,
    "preemption": preemption,
    "scancel": cancel,
    "node death": death,
}


def interrupted(
    lab: Lab, clone: Clone, way: Way, stages: tuple[str, ...] = STAGES
) -> tuple[list[str], list[str]]:
    """Stop a run once in each of these stages; what was seen, and what is not as promised.

    Args:
        lab: The SLURM.
        clone: With the stages before these done.
        way: How to stop.
        stages: Trainings, in order.
    """
    seen, findings = [], []
    job = lab.submit(clone.root, "slurm/run.sbatch", stages[-1], env=clone.env)
    for stage in stages:
        after = len(clone.log(job))
        clone.wait_for(job, rf"^{stage} \d+% [1-9][\d,]*/", 300, after=after)
        if way is death:
            clone.wait_for(job, rf"^{stage} ([3-9]\d)% [1-9][\d,]*/", 300, after=after)
        after = len(clone.log(job))
        restarts = int(lab.job(job)["Restarts"])
        old, job = job, way(lab, clone, job)
        if way is not death:
            stop = clone.watch_stop(old, stage, after)
        if job == old:
            lab.let_start(job, restarts)
        resumed = clone.resumed(job, after if job == old else 0)
        if way is death:
            seen.append(f"{stage}: resumed after {resumed:,} images on {_host(lab, job)}")
            continue
        seen.append(
            f"{stage}: {stop.before:,} images in the last line before the signal; stopped after "
            f"{stop.stopped:,}, {stop.seconds:.1f} s after the signal (a step takes "
            f"{stop.step_seconds:.1f} s); resumed after {resumed:,} on {_host(lab, job)}"
        )
        batch = PARAMS[f"{stage}.batch_size"]
        findings += [f"{stage}: {finding}" for finding in stop.findings(resumed, batch)]
    lab.wait(job, "COMPLETED", seconds=600)
    return seen, findings


def _host(lab: Lab, job: str) -> str:
    return lab.job(job)["BatchHost"]
