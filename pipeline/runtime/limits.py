"""What a scheduler lets this process use: processors and memory of its control groups."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

__all__ = ["available_cpus", "available_memory", "has_cpu_quota"]

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """Processors that this process may use: its affinity, and the quota of its control groups."""
    count = os.cpu_count() or 1
    with suppress(AttributeError):  # not Linux
        count = len(os.sched_getaffinity(0))
    return max(1, min([count, *_quotas()]))


def has_cpu_quota() -> bool:
    """Whether a control group lends processors by time, which torch does not notice."""
    return any(_quotas())


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its control groups.

    Pages of files that a group has read count as free, as the kernel frees them.
    """
    found: list[int] = [psutil.virtual_memory().available]
    for folder in _groups("memory"):
        for limit, usage, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            numbers = (*_numbers(folder / limit), *_numbers(folder / usage))
            if len(numbers) == 2:
                found.append(numbers[0] - numbers[1] + _statistic(folder / "memory.stat", cached))
    return max(0, min(found))


def _quotas() -> Iterator[int]:
    """Processors of each control group that lends them by time."""
    for folder in _groups("cpu"):
        first = (*_numbers(folder / "cpu.cfs_quota_us"), *_numbers(folder / "cpu.cfs_period_us"))
        second = _numbers(folder / "cpu.max", 2)
        for quota, period in filter(None, (first, second)):
            if quota > 0:  # -1 where there is none
                yield math.ceil(quota / period)


def _groups(controller: str) -> Iterator[Path]:
    """Folders of this process' control groups, versions 1 and 2, each before those above it."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        inside = root / name.lstrip("/")
        # A container may see its own group as the root, under its name outside.
        yield from (folder for folder in (inside, *inside.parents) if folder.is_relative_to(root))


def _numbers(file: Path, count: int = 1) -> tuple[int, ...]:
    """The first numbers of a file; none where there is no limit, or no such file."""
    try:
        words = file.read_text().split()
    except OSError:
        return ()
    found = tuple(int(word) for word in words if word.lstrip("-").isdecimal())
    return found if len(found) == count == len(words) else ()


def _statistic(file: Path, name: str) -> int:
    with suppress(OSError):
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
