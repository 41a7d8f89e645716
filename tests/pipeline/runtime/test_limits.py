"""What schedulers leave to a process, in both versions of control groups."""

import os
import subprocess
import sys

import psutil
import pytest

from pipeline.runtime import limits
from pipeline.runtime.limits import available_cpus, available_memory, has_cpu_quota
from sandbox import ROOT

GIB = 2**30

VERSION_1 = {
    "memory/job/memory.limit_in_bytes": f"{3 * GIB}",
    "memory/job/memory.usage_in_bytes": f"{2 * GIB}",
    "memory/job/memory.stat": f"cache 5\ntotal_inactive_file {GIB // 2}",
    "memory/memory.limit_in_bytes": "9223372036854771712",
    "memory/memory.usage_in_bytes": "1",
    "cpu/job/cpu.cfs_quota_us": "-1",
    "cpu/job/cpu.cfs_period_us": "100000",
    "cpu/cpu.cfs_quota_us": "50000",
    "cpu/cpu.cfs_period_us": "100000",
}
VERSION_2 = {
    "job/step/memory.max": "max",
    "job/step/memory.current": f"{GIB}",
    "job/memory.max": f"{3 * GIB}",
    "job/memory.current": f"{2 * GIB}",
    "job/memory.stat": f"anon 7\ninactive_file {GIB // 2}",
    "job/step/cpu.max": "max 100000",
    "job/cpu.max": "50000 100000",
}
# In a container: its own group is the root, under the name that it has outside.
INSIDE = {
    name.removeprefix("job/"): text for name, text in VERSION_2.items() if "step" not in name
}


@pytest.fixture
def groups(tmp_path, monkeypatch):
    def make(own, files):
        for name, text in files.items():
            (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / name).write_text(f"{text}\n")
        (tmp_path / "own").write_text(own)
        monkeypatch.setattr(limits, "CGROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(limits, "OWN_CGROUPS", tmp_path / "own")

    monkeypatch.setattr(psutil, "virtual_memory", lambda: psutil._ntp.svmem(*[8 * GIB] * 11))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    return make


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("4:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/job\n", VERSION_1),
        ("0::/job/step\n", VERSION_2),
        ("0::/kubepods/pod7\n", INSIDE),
    ],
)
def test_the_smallest_limit_of_all_groups_counts(own, files, groups):
    groups(own, files)
    assert available_memory() == 1.5 * GIB
    assert available_cpus() == 1
    assert has_cpu_quota()


@pytest.mark.parametrize("own", ["", "0::/\n", "4:memory:/job\n"])
def test_without_limits_the_machine_and_the_affinity_count(own, groups):
    groups(own, {})
    assert available_memory() == 8 * GIB
    assert available_cpus() == 3
    assert not has_cpu_quota()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux sets affinities")
def test_a_real_affinity_is_respected():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " \
        "from pipeline.runtime.limits import available_cpus; print(available_cpus())"  # fmt: skip
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == "1\n"
