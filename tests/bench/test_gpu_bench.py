"""``python -m bench.gpu`` gives every row on a machine without DVC, Prefect and MLflow."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from stage_helpers import png, write_parquet

from bench.gpu.page import TARGETS, render
from sandbox import ROOT

ABSENT = ("dvc", "prefect", "mlflow", "sqlalchemy", "fastapi", "tifffile")
"""Packages that a machine with torch alone lacks."""


@pytest.fixture
def bare(tmp_path):
    """The environment of a Python in which the packages cannot be imported."""
    lines = ["import sys", f"sys.modules.update(dict.fromkeys({ABSENT!r}))"]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("\n".join(lines))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}


@pytest.mark.slow
def test_a_dry_run_gives_every_row_on_a_bare_machine(tmp_path, bare):
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--out", str(tmp_path / "out")]
    coarse = np.random.default_rng(0).integers(256, size=(80, 4, 4, 3), dtype=np.uint8)
    pictures = [png(one.repeat(4, axis=0).repeat(4, axis=1)) for one in coarse]
    write_parquet(tmp_path / "images.parquet", pictures)
    command += ["--data", str(tmp_path / "images.parquet")]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MLflow is not installed, so nothing is tracked" in done.stdout
    document = json.loads((tmp_path / "out" / "cpu.json").read_text())
    assert (tmp_path / "out" / "cpu.md").read_text() == render(document)
    parts = document["parts"]
    rows = {name: row for part in parts.values() for name, row in part.items()}
    assert {target.row for target in TARGETS} <= rows.keys()
    without = {name: row["problem"] for name, row in rows.items() if "problem" in row}
    assert without == {"paper: EDM, float32": "no --edm", "paper: SiD, float32": "no --sid"}
    assert all(row["ok"] for row in parts["correctness"].values())
    assert parts["run"]["stage evaluate"]["generator_frechet"] > 0
    files = tmp_path / "out" / "cpu"
    assert "aten::" in (files / "profile_teacher.txt").read_text()
    assert (files / "evaluate" / "comparison.png").is_file()


def test_a_page_has_each_aim_beside_its_figure():
    teacher = {"images_per_second": 2000.0, "peak_gib": 15.0}
    rows = {"paper: teacher, bfloat16": teacher, "paper: EDM, float32": {"images_per_second": 200}}
    machine = {"gpu": "H", "versions": {"torch": "2"}, "cuda": "13", "python": "3", "cores": 1}
    about = {"machine": machine, "command": "c", "commit": "a", "dirty": False, "date": "d"}
    lines = render({**about, "seconds": 1, "parts": {"speed": rows}}).splitlines()
    assert "| paper: teacher, bfloat16 | images_per_second | >= 3,000 | 2,000 | no |" in lines
    of = "paper: EDM, float32"
    assert f"| paper: teacher, bfloat16 | images_per_second | >= 8 x {of} | 10 | yes |" in lines
    assert "| paper: teacher, bfloat16 | peak_gib | <= 20 | 15 | yes |" in lines
    assert (
        "| default: teacher, bfloat16 | images_per_second | >= 40,000 | not measured |  |" in lines
    )
