"""What ``auto`` means on this machine."""

import pytest
import torch
from stage_helpers import params_with

from dsd.utils.errors import ParamsError
from pipeline.execution.device import resolve_device


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
