"""The final table, and where to look next."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.reports.summary import LABELS, distances, feature_spaces, read_summary, title_of
from pipeline.stage_io.paths import Paths

__all__ = ["show_summary"]

_MEASURES = ("frechet", "proximal_frechet")


def show_summary(paths: Paths, console: Console | None = None) -> None:
    """Print ``reports/summary.json``, a table for each feature space, and the next steps.

    Raises:
        DataError: There is no summary yet, or it cannot be read.
    """
    console = Console() if console is None else console
    shown = paths.summary.relative_to(paths.root).as_posix()
    summary = read_summary(paths.summary, shown)
    for features in feature_spaces(summary):
        console.print(_table(summary, features))
    for line in _next_steps(paths, summary):
        # Commands must be copied from one line, and brackets in paths are no markup.
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(summary: Mapping[str, Any], features: str) -> Table:
    title = _title(summary.get("protocol", {}), features)
    table = Table(title=title, title_justify="left")
    table.add_column("images of", no_wrap=True)
    for measure in _MEASURES:
        table.add_column(title_of(measure, features), justify="right")
    for key, label in LABELS.items():
        if key in summary:
            measured = distances(summary, key, features)
            cells = [_number(measured.get(measure)) for measure in _MEASURES]
            table.add_row(label, *cells, style="bold" if key == "generator" else None)
    return table


def _title(protocol: Mapping[str, Any], features: str) -> str:
    count = protocol.get("num_samples")
    sampled = f", {count:,} images each" if isinstance(count, int) else ""
    return f"Distances in {features} features (smaller is better{sampled})"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}"  # 0.0072 is not 0.0128


def _next_steps(paths: Paths, summary: Mapping[str, Any]) -> list[str]:
    picture = (paths.report("evaluate") / "comparison.png").relative_to(paths.root)
    report = paths.report_page.relative_to(paths.root)
    lines = [
        "",
        f"Picture:  {picture}  (noisy data, teacher samples, one-step samples)",
        f"Report:   {report}  (all numbers, curves and pictures on one page)",
        "Change:   edit corrupt.sigma in params.yaml, then `dvc repro`",
        "MLflow:   mlflow ui --backend-store-uri sqlite:///mlflow.db",
        "Prefect:  python -m flows.train",
    ]
    reason = summary.get("protocol", {}).get("without_frechet")
    if reason is not None:
        lines.insert(0, f"A dash: {reason}.")
    return lines
