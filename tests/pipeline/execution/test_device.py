"""What ``auto`` means on this machine."""

import pytest
import torch
from stage_helpers import params_with

from dsd.utils.errors import ParamsError
from pipeline.execution import device
from pipeline.execution.device import obstacle_to_compiling, resolve_device


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


@pytest.mark.parametrize(
    ("wanted", "where", "missing", "why"),
    [
        ("auto", "cuda", None, None),
        ("auto", "cuda", "triton is not installed", "triton is not installed"),
        ("auto", "cpu", None, "compute.compile is auto, which compiles for GPUs only"),
        ("on", "cpu", None, None),
        ("off", "cuda", None, "compute.compile is off"),
    ],
)
def test_a_training_is_compiled_on_gpus_with_a_compiler(wanted, where, missing, why, monkeypatch):
    monkeypatch.setattr(device, "missing_compiler", lambda _: missing)
    compute = params_with(compute={"compile": wanted}).compute
    assert obstacle_to_compiling(compute, torch.device(where)) == why


def test_a_compiler_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(device, "missing_compiler", lambda _: "there is no C compiler")
    compute = params_with(compute={"compile": "on"}).compute
    with pytest.raises(ParamsError, match=r"compile is on, but there is no C compiler: install"):
        obstacle_to_compiling(compute, torch.device("cpu"))
