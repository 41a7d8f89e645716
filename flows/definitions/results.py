"""What a run found, as the rows and pages that Prefect shows."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import httpx
from PIL import Image

from dsd.utils.files import read_json
from pipeline.reports.page import as_number
from pipeline.reports.summary import LABELS, title_of
from pipeline.stage_io.paths import Paths

__all__ = ["DISTANCES", "Row", "distance_rows", "figure_lines", "result_page", "stage_row"]

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
    """Markdown: the picture, the distances, and where the rest is.

    Args:
        root: The workspace of the run.
        rows: Of :func:`distance_rows`.
        report: The report of this run, relative to the user's workspace.
        experiment: Name of the DVC experiment, if the run is kept as one.
    """
    features = rows[0]["features"] if rows else ""
    titles = [f"{title} ({features})" for title in DISTANCES.values()]
    lines = _picture(Paths(root).report("evaluate") / "comparison.png")
    lines += [f"| images of | {' | '.join(titles)} |", "|---|---|---|"]
    for row in rows:
        cells = [as_number(row[title]) for title in DISTANCES.values()]
        lines.append(f"| {' | '.join([row['images of'], *cells])} |")
    lines += ["", "Smaller is better.", ""]
    lines += [f"Report: {_report_links(root, report)}", "", f"MLflow: {_mlflow_link(root)}"]
    if experiment is not None:
        lines += ["", f"DVC experiment: `dvc exp show`, `dvc exp apply {experiment}`"]
    return "\n".join(lines)


def _picture(file: Path) -> list[str]:
    """A picture inside the page, smaller than the file; nothing where there is none."""
    try:
        with Image.open(file, formats=("PNG",)) as image:
            image.convert("RGB").save(small := io.BytesIO(), "WEBP", quality=80)
    except OSError:
        return []
    coded = base64.b64encode(small.getvalue()).decode()
    return [f"![noisy data, teacher and generator](data:image/webp;base64,{coded})", ""]


def figure_lines(folders: Sequence[Path]) -> list[str]:
    """Markdown of the paper's Figure 1 from the reports of some runs; empty without any.

    Raises:
        DataError: A report cannot be read.
    """
    if not folders:
        return []
    # Late, because drawing takes a second to import.
    from pipeline.reports.compare import folder_run
    from pipeline.reports.comparison import MEASURES, groups_of, shared_spaces
    from pipeline.reports.figures import draw_lines

    runs = groups_of([folder_run(folder) for folder in folders])[0].runs
    features = shared_spaces(runs)[0]
    lines = []
    for measure in MEASURES:
        title = title_of(measure, features)
        if (drawn := draw_lines(runs, features, measure, title=title)) is not None:
            drawn[0].savefig(png := io.BytesIO(), format="png", dpi=90)
            coded = base64.b64encode(png.getvalue()).decode()
            lines += [f"![{title} against sigma](data:image/png;base64,{coded})", ""]
    return lines


def _report_links(root: Path, report: Path | None) -> str:
    """The report in MLflow, where that is a server: browsers open no files from other pages."""
    shown = f"`{report}`" if report else "none was written"
    record = _mlflow_record(root, "evaluate")
    run_id, uri = record.get("run_id"), str(record.get("tracking_uri")).rstrip("/")
    if report is None or run_id is None or not uri.startswith("http"):
        return shown
    download = f"[download]({uri}/get-artifact?path=report.html&run_uuid={run_id})"
    experiment = _experiment_id(uri, run_id)
    if experiment is None:
        return f"{download}, {shown}"
    page = f"{uri}/#/experiments/{experiment}/runs/{run_id}/artifacts/report.html"
    return f"[open]({page}), {download}, {shown}"


def _experiment_id(uri: str, run_id: str) -> str | None:
    """MLflow's experiment of a run; None if the server does not say."""
    try:
        answer = httpx.get(f"{uri}/api/2.0/mlflow/runs/get", params={"run_id": run_id}, timeout=5)
        return str(answer.raise_for_status().json()["run"]["info"]["experiment_id"])
    except (httpx.HTTPError, ValueError, LookupError):
        return None


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
