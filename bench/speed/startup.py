"""Whole processes that have nothing to do: imports, a help text, a pipeline that is up to date."""

import atexit
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.speed.work import Work

__all__ = ["command", "repro"]

from sandbox import ROOT as _ROOT


def command(device: torch.device, options: Mapping[str, Any]) -> Work:
    """Python with some arguments, in the project's folder."""
    line = [sys.executable, *options["arguments"]]

    def do() -> None:
        subprocess.run(line, cwd=_ROOT, check=True, capture_output=True)

    return Work(do, 1.0)


def repro(device: torch.device, options: Mapping[str, Any]) -> Work:
    """``dvc repro`` where nothing is out of date, in a clone whose tiny pipeline has run."""
    sys.path.insert(0, str(_ROOT / "tests"))
    from sandbox.workspace import clone  # type: ignore[import-not-found]

    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_"))]:
        del os.environ[name]
    for who in ("AUTHOR", "COMMITTER"):
        os.environ |= {f"GIT_{who}_NAME": "bench", f"GIT_{who}_EMAIL": "bench@example.org"}
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)  # and until then it is kept
    workspace = clone(Path(folder.name))
    workspace.repro()
    again = workspace.repro()
    if "ran" in again.values() or not again:
        msg = f"a second `dvc repro` was not without work: {again}"
        raise RuntimeError(msg)

    return Work(partial(workspace.run, "dvc", "repro"), 1.0)
