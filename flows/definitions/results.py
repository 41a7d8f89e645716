"""What a run found, as the rows and pages that Prefect shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from dsd.utils.files import read_json
from pipeline.reports.summary import LABELS
from pipeline.stage_io.paths import Paths

__all__ = ["DISTANCES", "Row", "distance_rows", "result_page", "stage_row"]

Row: TypeAlias = dict[str, Any]

DISTANCES = {"frechet": "Frechet", "proximal_frechet": "Proximal Frechet"}
"""The headline measures, by their keys in ``reports/summary.json``."""


def stage_row(root: Path, stage: str, state: str, message: str) -> Row:
    """What happened to a stage, by its task's state, and the MLflow run that made its result."""
    record = _mlflow_record(root, stage) if state != "Failed" else {}
    return {
        "stage": stage,
        "state": state,
        "what happened": message.partition("\n")[0],
        "MLflow run": record.get("run_id"),
    }


def distance_rows(root: Path) -> list[Row]:
    """The headline distances of each model in a run's summary; none if nothing was evaluated."""
    file = Paths(root).summary
    if not file.is_file():
        return []
    summary = read_json(file)
    features = summary["protocol"]["features"]
    return [
        {"images of": LABELS.get(name, name), "features": features}
        | {title: row.get(measure) for measure, title in DISTANCES.items()}
        for name, row in summary.items()
        if isinstance(row, Mapping) and "frechet" in row
    ]


def result_page(root: Path, rows: list[Row], report: Path | None, experiment: str | None) -> str:
    """Markdown: the distances, and where the rest is.

    Args:
        root: The workspace of the run.
        rows: Of :func:`distance_rows`.
        report: The report of this run, relative to the user's workspace.
        experiment: Name of the DVC experiment, if the run is kept as one.
    """
    features = rows[0]["features"] if rows else ""
    titles = [f"{title} ({features})" for title in DISTANCES.values()]
    lines = [f"| images of | {' | '.join(titles)} |", "|---|---|---|"]
    for row in rows:
        numbers = [row[title] for title in DISTANCES.values()]
        cells = ["-" if number is None else f"{number:.2f}" for number in numbers]
        lines.append(f"| {' | '.join([row['images of'], *cells])} |")
    lines += ["", f"Report: `{report}`" if report else "No report was written.", ""]
    lines += [f"MLflow: {_mlflow_link(root)}"]
    if experiment is not None:
        lines += ["", f"DVC experiment: `dvc exp show`, `dvc exp apply {experiment}`"]
    return "\n".join(lines)


def _mlflow_record(root: Path, stage: str) -> dict[str, Any]:
    """What ``reports/<stage>/run.json`` says of the MLflow run; empty without one."""
    try:
        found: dict[str, Any] = read_json(Paths(root).report(stage) / "run.json")
    except OSError:
        return {}
    return found


def _mlflow_link(root: Path) -> str:
    """A link where the store is a server, else the run's name for people to look up."""
    record = _mlflow_record(root, "evaluate")
    run_id, uri = record.get("run_id"), str(record.get("tracking_uri"))
    if run_id is None:
        return "not there yet; `python -m pipeline sync` sends it"
    if uri.startswith("http"):
        return f"[run {run_id[:8]}]({uri.rstrip('/')}/#/runs/{run_id})"
    return f"run `{run_id}`"
