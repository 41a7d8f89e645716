"""Numbers that no refactoring may move; ``python tests/helpers/golden.py`` makes them anew.

Bit-equal on the platform that the committed files name. Elsewhere other instructions round in
another way. Measured with torch's plain loops and with its AVX2 ones beside AVX-512: losses
differed by at most 1.1e-5, norms of weights by 8e-9, measures by 1.7e-7, means of pictures not.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import golden
import pytest

from sandbox import ROOT

TOLERANCES = {"losses": 1e-3, "norms": 1e-6, "measures": 1e-5, "means": 1e-2}
"""Relative, or for means of pictures absolute in grey levels; by kind of number."""


def assert_close(found, wanted):
    """Numbers within the tolerances, and all of them; hashes are skipped."""
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        if name in TOLERANCES:
            limit = {"abs" if name == "means" else "rel": TOLERANCES[name]}
            assert found[name] == pytest.approx(values, **limit), name
        elif isinstance(values, dict) and name != "sha256":
            assert_close(found[name], values)


def assert_same(found, committed, wanted):
    """Equal to the last bit where that is promised."""
    if golden.platform_now() == committed["platform"]:
        assert found == wanted
    else:
        assert_close(found, wanted)


@pytest.mark.parametrize("name", [*golden.TEACHERS, *golden.GENERATORS])
def test_the_steps_of_a_training_are_the_committed_ones(name):
    committed = golden.load("trainings")
    assert_same(golden.training(name), committed, committed["values"][name])


def test_an_evaluation_is_the_committed_one():
    committed = golden.load("evaluation")
    assert_same(golden.evaluation(), committed, committed["values"])


@pytest.mark.slow
def test_other_instructions_move_the_numbers_little(tmp_path):
    """Plain loops instead of vector instructions stand in for another processor."""
    plain = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    script = Path(golden.__file__)
    subprocess.run(
        [sys.executable, script, tmp_path],
        env={**os.environ, **plain, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    for name in ("trainings", "evaluation"):
        found, committed = json.loads((tmp_path / f"{name}.json").read_text()), golden.load(name)
        assert found["platform"]["cpu_capability"] == "DEFAULT"
        assert found["values"] != committed["values"]
        assert_close(found["values"], committed["values"])
