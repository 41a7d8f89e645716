"""One small real run for each linear operator: ``python -m bench.accuracy.operators [KIND ...]``.

All stages on the embedded clothes, one seed, with a budget far below the default's: it shows that
every operator leads to a generator, not how good one can get. Writes
``docs/results/operators/<kind>.json`` and ``<kind>.png``; about 3 minutes each on one free core.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.common import RESULTS, silent_log
from pipeline.execution.run import run_stage
from pipeline.params.reader import preview_params
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, evaluate, prepare, pretrain
from sandbox import ROOT

OPERATORS: dict[str, dict[str, Any]] = {
    "mask": {"kind": "mask", "keep_prob": 0.6, "further_mask_prob": 0.1},
    "blur": {"kind": "blur", "std": 1.0, "radius": 3},
    "downsample": {"kind": "downsample", "factor": 2},
    "fourier": {"kind": "fourier", "acceleration": 2.0, "center": 0.13, "further_mask_prob": 0.1},
}
BUDGET: dict[str, Any] = {
    "data.path": str(ROOT / "data" / "embedded" / "fashion-mnist.parquet"),
    "corrupt.sigma": 0.2,
    "corrupt.num_heldout": 1000,
    "pretrain.kimg": 38.4,
    "pretrain.lr_warmup_kimg": 3.84,
    "pretrain.sample_every_kimg": 38.4,
    "distill.kimg": 12.8,
    "distill.selection.every_kimg": 3.2,
    "distill.selection.num_samples": 1000,
    "evaluate.features": ["fashion-classifier"],
    "evaluate.num_samples": 1000,
}


def run(kind: str) -> None:
    """All stages for one operator; keep the summary and the picture."""
    phase = "smooth" if kind == "fourier" else "none"
    changes = {**BUDGET, "corrupt.operator": OPERATORS[kind], "data.phase": phase}
    params = preview_params(ROOT, changes)
    with tempfile.TemporaryDirectory() as folder:
        paths, started = Paths(Path(folder)), time.process_time()
        for stage in (prepare, corrupt, pretrain, distill, evaluate):
            paths.report(stage.__name__.rpartition(".")[2]).mkdir(parents=True)
            run_stage(stage, params, paths, silent_log())
        summary = json.loads(paths.summary.read_text())
        summary["cpu_minutes"] = round((time.process_time() - started) / 60, 1)
        results = RESULTS / "operators"
        results.mkdir(parents=True, exist_ok=True)
        (results / f"{kind}.json").write_text(json.dumps(summary, indent=2) + "\n")
        shutil.copyfile(paths.report("evaluate") / "comparison.png", results / f"{kind}.png")


if __name__ == "__main__":
    for kind in sys.argv[1:] or OPERATORS:
        print(kind, OPERATORS[kind], flush=True)
        run(kind)
