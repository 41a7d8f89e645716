"""The final table, and where to look next."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from dsd.errors import DataError
from pipeline.paths import Paths

__all__ = ["show_summary"]

_ROWS = (
    ("noisy_data", "noisy data"),
    ("teacher_full", "teacher, Full"),
    ("teacher_truncated", "teacher, Truncated"),
    ("teacher_truncated_exact", "teacher, Truncated at sigma"),
    ("generator", "one-step generator"),
)
_MEASURES = ("frechet", "proximal_frechet")
_TITLES = {
    # Only distances in Inception's features may be called FID.
    "inception": ("FID to clean", "Proximal FID"),
    None: ("Frechet to clean", "Proximal Frechet"),
}


def show_summary(paths: Paths, console: Console | None = None) -> None:
    """Print ``reports/summary.json``, a table for each feature space, and the next steps.

    Raises:
        DataError: There is no summary yet, or it cannot be read.
    """
    console = Console() if console is None else console
    summary = _read(paths)
    for features in summary["generator"]["by_features"]:
        console.print(_table(summary, features))
    for line in _next_steps(paths, summary):
        # Commands must be copied from one line, and brackets in paths are no markup.
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _read(paths: Paths) -> dict[str, Any]:
    remedy = "run `dvc repro` to make it"
    try:
        summary = json.loads(paths.summary.read_text(encoding="utf-8"))
        if not isinstance(summary["generator"]["by_features"], dict):
            raise TypeError
    except FileNotFoundError as error:
        msg = f"{_relative(paths)} does not exist yet; {remedy}"
        raise DataError(msg) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{_relative(paths)} is not a summary of results; {remedy} again"
        raise DataError(msg) from error
    found: dict[str, Any] = summary
    return found


def _table(summary: Mapping[str, Any], features: str) -> Table:
    table = Table(title=_title(summary.get("protocol", {}), features))
    table.add_column("images of", no_wrap=True)
    for title in _TITLES.get(features, _TITLES[None]):
        table.add_column(title, justify="right")
    for key, label in _ROWS:
        if key in summary:
            measured = summary[key].get("by_features", {}).get(features, {})
            cells = [_number(measured.get(measure)) for measure in _MEASURES]
            table.add_row(label, *cells, style="bold" if key == "generator" else None)
    return table


def _title(protocol: Mapping[str, Any], features: str) -> str:
    count = protocol.get("num_samples")
    sampled = f", {count:,} images each" if isinstance(count, int) else ""
    return f"Distances in {features} features (smaller is better{sampled})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def _next_steps(paths: Paths, summary: Mapping[str, Any]) -> list[str]:
    picture = (paths.report("evaluate") / "comparison.png").relative_to(paths.root)
    lines = [
        "",
        f"Picture:  {picture}  (noisy data, teacher samples, one-step samples)",
        "Change:   edit corrupt.sigma in params.yaml, then `dvc repro`",
        "MLflow:   mlflow ui --backend-store-uri sqlite:///mlflow.db",
        "Prefect:  python -m flows.train",
    ]
    reason = summary.get("protocol", {}).get("without_frechet")
    if reason is not None:
        lines.insert(0, f"A dash: {reason}.")
    return lines


def _relative(paths: Paths) -> str:
    return paths.summary.relative_to(paths.root).as_posix()
