"""What ``auto`` means on this machine, and how much memory a process may take."""

import pytest
import torch
from stage_helpers import params_with

from dsd.utils.errors import ParamsError
from pipeline.execution import device
from pipeline.execution.device import _left_by_groups, free_memory, resolve_device

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wanted", "available", "found"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_a_gpu_is_taken_where_there_is_one_and_nothing_else_is_asked_for(
    wanted, available, found, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert resolve_device(params_with(compute={"device": wanted}).compute).type == found


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ParamsError, match=r"compute\.device is cuda.*use cpu or auto"):
        resolve_device(params_with(compute={"device": "cuda"}).compute)


def test_processes_on_one_cpu_share_its_memory(monkeypatch):
    alone = free_memory(CPU)
    assert alone > 1e8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) == pytest.approx(alone / 4, rel=0.2)


def group(folder, limit, used, cached):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\nactive_file 7\n")


def test_control_groups_limit_what_is_free(tmp_path):
    root = tmp_path / "cgroup"
    group(root / "job" / "step", "max", 50, 0)
    group(root / "job", 1000, 400, 100)
    group(tmp_path, 1, 1, 0)  # no group at all
    assert _left_by_groups(root, "/job/step") == [700]
    assert _left_by_groups(root, "/elsewhere") == []
    group(root, 500, 900, 100)
    assert _left_by_groups(root, "/job/step") == [700, 0]


def test_the_least_limit_is_what_a_process_may_take(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(device, "_left_by_groups", lambda *_: [5000, 3000])
    assert free_memory(CPU) == 3000
