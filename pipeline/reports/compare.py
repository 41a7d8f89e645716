"""``python -m pipeline compare``: several runs on one page, the paper's Figure 1 among it.

Runs come from MLflow, where every evaluation is recorded (those of ``dvc exp`` too), or from
folders that hold a summary and its parameters. Those that were not measured alike are never on one
page: the largest group is shown, and the others are named.

Reference:
    Chen et al. 2025, DSD (arXiv:2503.07578), Figure 1.
"""

import json
import tempfile
from collections.abc import Sequence
from itertools import product, starmap
from pathlib import Path
from typing import NamedTuple

from dsd.utils.errors import DataError
from pipeline.params.differences import as_text
from pipeline.params.reader import leaves, read_mapping
from pipeline.reports.comparison import (
    MEASURES,
    Group,
    Run,
    differing,
    groups_of,
    shared_spaces,
    title_of_run,
    variant_of,
)
from pipeline.reports.figures import draw_lines
from pipeline.reports.page import as_number, embed, inline, write_page
from pipeline.reports.selection import Selection, parse_selection
from pipeline.reports.summary import LABELS, distances, read_summary, title_of
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import write_csv

__all__ = ["compare", "folder_run", "write_comparison"]

_PICTURE = Path("evaluate") / "samples" / "generator.png"
_SHOW = "`python -m pipeline compare protocol={}` shows them"


class Column(NamedTuple):
    """One distance of one model."""

    features: str
    measure: str
    model: str

    @property
    def title(self) -> str:
        return f"{title_of(self.measure, self.features)} ({self.features})"


def compare(names: Sequence[str], paths: Paths, page: Path | None = None) -> list[str]:
    """Write a page about several runs, and its table beside it as CSV.

    Args:
        names: Which runs, as :func:`pipeline.reports.selection.parse_selection` reads them; all
            finished evaluations in MLflow if there are none.
        paths: The workspace.
        page: Where to write; ``reports/comparison.html`` unless given.

    Returns:
        What to tell the user.

    Raises:
        ParamsError: A choice is not one, or is made twice.
        DataError: A run is not there, or none was measured as the protocol that is chosen.
    """
    page = paths.comparison_page if page is None else page
    selection = parse_selection(names)
    with tempfile.TemporaryDirectory(prefix="dsd-compare-") as folder:
        found, remarks = _find(selection, paths, Path(folder))
        shown, *others = _chosen_first(groups_of(found), selection.protocol)
        others_named = [_other(shown, group) for group in others]
        write_comparison(shown.runs, page, others_named)
    return [
        "; ".join([_runs(len(shown.runs)), *remarks]),
        *others_named,
        _best_line(shown.runs),
        f"Page:   {page.relative_to(paths.root)}",
        f"Table:  {page.with_suffix('.csv').relative_to(paths.root)}",
    ]


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _chosen_first(groups: list[Group], wanted: str | None) -> list[Group]:
    """The groups, the wanted one (else the largest) first.

    Raises:
        DataError: No run was measured as ``wanted``.
    """
    if wanted is None:
        return groups
    if not any(group.protocol == wanted for group in groups):
        known = ", ".join(f"protocol={group.protocol} ({len(group.runs)})" for group in groups)
        msg = f"protocol={wanted}: no run was measured so. Choose one of {known}"
        raise DataError(msg)
    return sorted(groups, key=lambda group: group.protocol != wanted)


def _other(shown: Group, group: Group) -> str:
    """What to say of a group that is not on the page."""
    why = shown.difference(group)
    return f"{_runs(len(group.runs))} measured otherwise: {why}; {_SHOW.format(group.protocol)}"


def _find(selection: Selection, paths: Paths, scratch: Path) -> tuple[list[Run], list[str]]:
    """The runs that are chosen, the oldest first, and what to say of those left out."""
    runs = [folder_run(folder) for folder in selection.folders]
    remarks = list[str]()
    if selection.names or not selection.folders:
        stored, remarks = _stored(selection, paths, scratch)
        runs += stored
    # Runs with equal parameters are repetitions, not new evidence: the last one counts.
    newest = {json.dumps(run.params, sort_keys=True): run for run in runs}
    repeated = len(runs) - len(newest)
    if repeated:
        remarks = [f"{repeated} older with equal parameters left out", *remarks]
    return [*newest.values()][-(selection.last or 0) :], remarks


def folder_run(folder: Path) -> Run:
    """The run of a workspace, or of any folder with a ``summary.json`` and a ``params.yaml``.

    Raises:
        DataError: It holds no summary, or no parameters.
    """
    reports = folder / "reports" if (folder / "reports").is_dir() else folder
    summary = read_summary(reports / "summary.json", str(reports / "summary.json"))
    if not (folder / "params.yaml").is_file():
        msg = (
            f"{folder} has a summary but no params.yaml, so nobody knows what was run there; "
            "put the run's params.yaml beside it"
        )
        raise DataError(msg)
    # Not checked: runs of earlier versions have other keys, and compare all the same.
    params = as_text(leaves(read_mapping(folder / "params.yaml")))
    for key in ("seed", "corrupt.sigma"):
        if key not in params:
            msg = f"{folder / 'params.yaml'} has no {key}; put the run's params.yaml there"
            raise DataError(msg)
    picture = reports / _PICTURE
    return Run(str(folder), params, summary, picture if picture.is_file() else None)


def _stored(selection: Selection, paths: Paths, scratch: Path) -> tuple[list[Run], list[str]]:
    """Evaluations in MLflow that are chosen, and what to say of those that cannot be shown."""
    # Late, because it takes seconds and folders do without it.
    from pipeline.tracking.tracker import evaluations

    chosen = selection.of(evaluations(paths))
    runs, unreadable = list[Run](), 0
    for one in chosen:
        params = as_text(one.params)
        try:
            files = one.fetch(scratch)
            if files is None or not {"seed", "corrupt.sigma"} <= {*params}:
                continue
            summary = read_summary(files[0], f"summary.json of run {one.run_id}")
        except DataError:  # of a version that wrote another one
            unreadable += 1
            continue
        runs.append(Run(one.run_id[:8], params, summary, files[1]))
    if not runs:
        msg = "none of these runs has a summary that this version reads; run `dvc repro` again"
        raise DataError(msg)
    return runs, [f"{unreadable} of another version left out"] if unreadable else []


def write_comparison(runs: Sequence[Run], page: Path, others: Sequence[str] = ()) -> None:
    """Write page and table about runs of one protocol; ``others`` says what else there is."""
    keys, spaces = differing(runs), shared_spaces(runs)
    ordered = sorted(runs, key=_rank)
    columns = [
        column
        for column in starmap(Column, product(spaces, MEASURES, LABELS))
        if any(_value(run, column) is not None for run in runs)
    ]
    # One for each method and noise level: that of the smallest seed.
    pictured = {
        (variant_of(run, "generator", keys), run.sigma): (run, run.picture)
        for run in sorted(runs, key=lambda run: -float(run.seed))
        if run.picture is not None
    }
    write_csv(
        page.with_suffix(".csv"),
        ["run", *keys, *(f"{column.title}: {LABELS[column.model]}" for column in columns)],
        [
            (
                run.name,
                *(run.params.get(key, "-") for key in keys),
                *(_value(run, column) for column in columns),
            )
            for run in ordered
        ],
    )
    write_page(
        page,
        "comparison.html.j2",
        script="comparison.js",
        title=f"{_runs(len(runs))} compared",
        best=_best_line(runs),
        others=others,
        tables=[_table(ordered, keys, [c for c in columns if c.features == s]) for s in spaces],
        spaces=[_figures(runs, name) for name in spaces],
        pictures=[
            (_caption(run, keys), embed(picture, f"images of the generator of {run.name}"))
            for run, picture in sorted(pictured.values(), key=lambda pair: _rank(pair[0]))
        ],
        protocol=leaves(runs[0].summary["protocol"]),
        seeds=sorted({run.seed for run in runs}, key=float),
    )


def _rank(run: Run) -> float:
    """The generator's distance: to clean images, or the Proximal one where there are none."""
    values = (run.summary["generator"].get(measure) for measure in MEASURES)
    return next((float(value) for value in values if value is not None), float("inf"))


def _best_line(runs: Sequence[Run]) -> str:
    """Which generator is nearest, at each noise level of the data."""
    keys, features = differing(runs), shared_spaces(runs)[0]
    clean = runs[0].summary["generator"].get("frechet") is not None
    measure, words = MEASURES[0 if clean else 1], []
    for sigma in sorted({run.sigma for run in runs}):
        best = min((run for run in runs if run.sigma == sigma), key=_rank)
        error = distances(best.summary, "generator", features).get(f"{measure}_standard_error")
        words.append(f"{title_of_run(best, keys)} ({as_number(_rank(best), error)})")
    title = title_of(measure, features)
    return f"Best by {title} in {features} features: {'; '.join(words)}"


def _table(runs: Sequence[Run], keys: Sequence[str], columns: list[Column]) -> dict[str, object]:
    """What the page shows of the runs in one feature space."""
    headings: dict[str, list[str]] = {}
    for column in columns:
        headings.setdefault(title_of(column.measure, column.features), []).append(
            LABELS[column.model].replace("one-step ", "").replace("teacher, ", "")
        )
    rows = [
        (title_of_run(run, keys), run.name, [_cell(run, column) for column in columns])
        for run in runs
    ]
    return {"features": columns[0].features, "headings": headings, "rows": rows}


def _cell(run: Run, column: Column) -> tuple[float | None, str, bool]:
    """A number, as it is shown, and whether it is the generator's."""
    found = distances(run.summary, column.model, column.features)
    value = found.get(column.measure)
    text = as_number(value, found.get(f"{column.measure}_standard_error"))
    return value, text, column.model == "generator"


def _figures(runs: Sequence[Run], features: str) -> dict[str, object]:
    drawn = []
    for measure in MEASURES:
        title = title_of(measure, features)
        figure = draw_lines(runs, features, measure, title=title)
        if figure is not None:
            text = f"{title}, {features} features, against the noise level of the data."
            shown, tips = figure
            drawn.append((inline(shown, f"{features}-{measure}", text, tips), text))
    return {"features": features, "figures": drawn}


def _value(run: Run, column: Column) -> float | None:
    return distances(run.summary, column.model, column.features).get(column.measure)


def _caption(run: Run, keys: Sequence[str]) -> str:
    return f"{title_of_run(run, keys)} ({run.name})"
