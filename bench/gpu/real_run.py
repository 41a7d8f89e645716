"""A whole run of the pipeline with preset ``cifar10-quick``, cut to the time that is there."""

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.gpu.worker import Figures
from dsd.utils.files import copy_files, read_json
from pipeline.__main__ import main
from pipeline.params.presets import load_preset
from pipeline.params.reader import update_params
from pipeline.stages import TRAININGS
from sandbox import ROOT

__all__ = ["PRESET", "parquet_file", "prepare_workspace", "run_stage"]

PRESET = "cifar10-quick"

_KEPT = ("pretrain", "distill", "evaluate")
"""Folders of reports that are results."""


def parquet_file() -> Path | None:
    """CIFAR-10 as a Parquet file in ``shared/data``, in the clone or beside it, if it is there."""
    places = (folder / "shared" / "data" for folder in (ROOT, ROOT.parent))
    return next((file for place in places for file in place.glob("cifar10*.parquet")), None)


def prepare_workspace(root: Path, data: Path | None, changes: Mapping[str, Any]) -> None:
    """Make a workspace with the preset's values.

    Args:
        root: A folder that is made.
        data: A Parquet file of the images; None lets torchvision fetch them.
        changes: Other values, by dotted key.
    """
    root.mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", root)
    values = load_preset(PRESET)
    if data is not None:
        source = {"data.source": "parquet", "data.path": str(data.resolve()), "data.name": None}
        values |= source
    update_params(root, {**values, **changes})


def run_stage(stage: str, root: Path, files: Path) -> Figures:
    """Run a stage in this process as its command does; what it says goes to stdout.

    Args:
        stage: Its name.
        root: The workspace.
        files: Folder for pictures and tables of the run, which the evaluation copies.

    Returns:
        Its seconds and, of the evaluation, distances.
    """
    os.chdir(root)
    started = time.monotonic()
    code = main([stage])
    figures: Figures = {"s": time.monotonic() - started}
    if code:
        return {**figures, "problem": f"exit code {code}; its message is above"}
    if stage in TRAININGS and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if stage == "evaluate":
        for name in _KEPT:
            copy_files(root / "reports" / name, files / name)
        summary = read_json(root / "reports" / "summary.json")
        models = ("noisy_data", "teacher_full", "teacher_truncated", "generator")
        figures |= {f"{name}_frechet": summary[name]["frechet"] for name in models}
    return figures
