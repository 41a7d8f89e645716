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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pipeline.execution.run import run_stage
from pipeline.params.model import Params
from pipeline.params.reader import load_params
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, evaluate, prepare, pretrain
from sandbox import ROOT

RESULTS = ROOT / "docs" / "results" / "operators"
STAGES = (prepare, corrupt, pretrain, distill, evaluate)

OPERATORS: dict[str, dict[str, Any]] = {
    "mask": {"kind": "mask", "keep_prob": 0.6, "further_mask_prob": 0.1},
    "blur": {"kind": "blur", "std": 1.0, "radius": 3},
    "downsample": {"kind": "downsample", "factor": 2},
    "fourier": {"kind": "fourier", "acceleration": 2.0, "center": 0.13, "further_mask_prob": 0.1},
}
SIGMA = 0.2
BUDGET: dict[str, dict[str, Any]] = {
    "corrupt": {"num_heldout": 1000},
    "pretrain": {"kimg": 38.4, "lr_warmup_kimg": 3.84, "sample_every_kimg": 38.4},
    "distill": {"kimg": 12.8},
    "evaluate": {"features": ["fashion-classifier"], "num_samples": 1000},
}


class _Bar:
    """Progress that nobody sees."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, images: int, **shown: float) -> None:
        pass


class _Log:
    """What a stage says goes to the terminal."""

    def metrics(self, images: int, values: Mapping[str, float]) -> None:
        pass

    def trains(self, name: str) -> None:
        pass

    def nonfinite_failures(self, count: int) -> None:
        pass

    def reads(self, name: str, *, digest: str, count: int, shape: Sequence[int]) -> None:
        pass

    def progress(self, total_images: int) -> _Bar:
        return _Bar()

    def say(self, text: str) -> None:
        print("  ", text, flush=True)

    def stop_signal(self) -> int | None:
        return None


def params_of(kind: str) -> Params:
    """The committed parameters with an operator, another level and a small budget."""
    values = load_params(ROOT).model_dump()
    values["data"] |= {"path": str(ROOT / values["data"]["path"])}
    values["data"] |= {"phase": "smooth" if kind == "fourier" else "none"}
    for section, changes in BUDGET.items():
        values[section] |= changes
    values["corrupt"] |= {"operator": OPERATORS[kind], "sigma": SIGMA}
    values["distill"]["selection"] |= {"every_kimg": 3.2, "num_samples": 1000}
    return Params.model_validate(values)


def run(kind: str) -> None:
    """All stages for one operator; keep the summary and the picture."""
    params = params_of(kind)
    with tempfile.TemporaryDirectory() as folder:
        paths, started = Paths(Path(folder)), time.process_time()
        for stage in STAGES:
            paths.report(stage.__name__.removeprefix("pipeline.")).mkdir(parents=True)
            run_stage(stage, params, paths, _Log())
        summary = json.loads(paths.summary.read_text())
        summary["cpu_minutes"] = round((time.process_time() - started) / 60, 1)
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{kind}.json").write_text(json.dumps(summary, indent=2) + "\n")
        shutil.copyfile(paths.report("evaluate") / "comparison.png", RESULTS / f"{kind}.png")


if __name__ == "__main__":
    for kind in sys.argv[1:] or OPERATORS:
        print(kind, OPERATORS[kind], flush=True)
        run(kind)
