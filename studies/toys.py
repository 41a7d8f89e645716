"""The paper's toys: ``python -m studies.toys`` draws its Figures 4 and 6 from scratch.

Figure 4: the samplers of a teacher leave mass in the gaps of the data; does the one-step student
move it to the curves? Figure 6: what happens where the assumed noise level is not the true one.
Needs no data and no ``params.yaml``; writes ``reports/toys``.

Reference:
    Chen et al. 2025, DSD (arXiv:2503.07578), Figures 4 and 6.

Deviates:
    The paper's data, networks and settings for its toys were not at hand; these are our own.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from dsd.theory.toys import make_toy
from dsd.utils.files import published
from pipeline.runtime.signals import set_up_cpu
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import write_csv
from studies.toy_cases import SETTINGS, Case, Outcome, Result, Settings, train_case

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CASES", "draw_gaps", "draw_levels", "run", "train_all", "write_report"]

_SEED = 0
_GAPS = (
    Case("moons", 0.2, 0.2, _SEED),
    Case("spirals", 0.2, 0.2, _SEED),
    Case("moons", 0.05, 0.05, _SEED),
)
_NUM_DRAWN = 2000
_RATIOS = (0.5, 0.8, 1.0, 1.1, 1.25, 1.6)
_LEVELS = tuple(Case("moons", 0.2, ratio * 0.2, _SEED) for ratio in _RATIOS)

CASES = tuple(dict.fromkeys((*_GAPS, *_LEVELS)))
"""All cases of both figures, which share one."""


def run(paths: Paths) -> None:
    """Train all cases, write figures and table, print the table."""
    write_report(paths, list(train_all(CASES, SETTINGS)))


def train_all(cases: Sequence[Case], settings: Settings) -> Iterator[Outcome]:
    """All cases, side by side in processes of one thread, so that numbers depend on no core."""
    workers = min(len(cases), os.cpu_count() or 1)
    with get_context("spawn").Pool(workers, initializer=_start_worker) as pool:
        for outcome in pool.imap(partial(train_case, settings=settings), cases):
            print(f"done: {outcome.case}", flush=True)
            yield outcome


def _start_worker() -> None:
    # Ctrl-C reaches the parent, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def write_report(paths: Paths, outcomes: Sequence[Outcome]) -> None:
    """Write both figures and the table of the outcomes of ``CASES``, print the table."""
    folder = paths.report("toys")
    rows = [[*map(_short, row)] for outcome in outcomes for row in outcome.results.values()]
    write_csv(folder / "table.csv", Result._fields, rows)
    table = Table(*Result._fields, title="Points in the plane; std of the data 0.5", box=SIMPLE)
    for row in rows:
        table.add_row(*row, style="bold" if "one step" in row else None)
    of_case = {outcome.case: outcome for outcome in outcomes}
    figures = {
        "figure4.png": draw_gaps([of_case[case] for case in _GAPS]),
        "figure6.png": draw_levels([of_case[case] for case in _LEVELS]),
    }
    for name, figure in figures.items():
        with published(folder / name) as file:
            figure.savefig(file, format="png")
    Console().print(table)
    for name in ("table.csv", *figures):
        print((folder / name).relative_to(paths.root))


def draw_gaps(outcomes: Sequence[Outcome]) -> "Figure":
    """Figure 4: a row of panels for each case, a panel for each method."""
    methods = [*outcomes[0].points]
    figure = _figure(width=2.4 * len(methods), height=2.9 * len(outcomes))
    grid = figure.subplots(len(outcomes), len(methods), squeeze=False)
    for axes, outcome in zip(grid, outcomes, strict=True):
        for panel, method in zip(axes, methods, strict=True):
            _scatter(panel, outcome, method, title=method)
        axes[0].set_ylabel(f"{outcome.case.toy}, sigma {outcome.case.sigma:g}")
    return figure


def draw_levels(outcomes: Sequence[Outcome]) -> "Figure":
    """Figure 6: teacher and student of each assumed level, and their measures against it."""
    figure = _figure(width=2.4 * len(outcomes), height=8.6)
    pictures, curves = figure.subfigures(2, 1, squeeze=False, height_ratios=[2, 1.1])[:, 0]
    grid = pictures.subplots(2, len(outcomes), squeeze=False)
    for column, outcome in zip(grid.T, outcomes, strict=True):
        for panel, method in zip(column, ("Truncated", "one step"), strict=True):
            title = f"{method}, assumed {_ratio(outcome.case):g} sigma"
            _scatter(panel, outcome, method, title=title)
    left, right = curves.subplots(1, 2)
    _draw_curves(left, outcomes, "distance", "mean distance to the curves")
    _draw_curves(right, outcomes, "wasserstein", "sliced W2 to clean points")
    right.legend(fontsize=8, loc="upper left")
    return figure


def _figure(*, width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _scatter(panel: "Axes", outcome: Outcome, method: str, *, title: str) -> None:
    toy, result = make_toy(outcome.case.toy), outcome.results[method]
    x, y = outcome.points[method][:_NUM_DRAWN].T
    panel.plot(*torch.stack([toy.start, toy.end]).permute(2, 0, 1), color="0.75", lw=0.6)
    panel.scatter(x, y, s=1.2, lw=0, alpha=0.6)
    panel.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", xticks=[], yticks=[])
    measured = f"distance {result.distance:.3f}, W2 {result.wasserstein:.3f}"
    panel.set_title(f"{title}\n{measured}\ncoverage {result.coverage:.2f}", fontsize=8)


def _draw_curves(panel: "Axes", outcomes: Sequence[Outcome], measure: str, label: str) -> None:
    ratios = [_ratio(outcome.case) for outcome in outcomes]
    for method in [name for name in outcomes[0].points if name != "clean"]:
        values = [getattr(outcome.results[method], measure) for outcome in outcomes]
        panel.plot(ratios, values, marker="o", ms=3, label=method)
    panel.axvline(1, color="0.75", lw=0.8)
    panel.set(xlabel="assumed sigma / true sigma", ylabel=label, ylim=(0, None))


def _ratio(case: Case) -> float:
    return case.sigma_hat / case.sigma


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    set_up_cpu()
    run(Paths(Path.cwd()))
