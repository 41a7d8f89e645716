"""``python -m pipeline compare``: several runs on one page, the paper's Figure 1 among it.

Runs come from MLflow, where every evaluation is recorded (those of ``dvc exp`` too), or from
folders that hold a summary and its parameters.

Reference:
    Chen et al. 2025, DSD (arXiv:2503.07578), Figure 1.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product, starmap
from pathlib import Path
from typing import NamedTuple

from dsd.utils.errors import DataError, ParamsError
from pipeline.params.reader import leaves, read_mapping
from pipeline.reports.comparison import (
    MEASURES,
    Run,
    differing,
    one_protocol,
    shared_spaces,
    variant_of,
)
from pipeline.reports.figures import draw_lines
from pipeline.reports.page import embed, inline, write_page
from pipeline.reports.summary import LABELS, distances, read_summary, title_of
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import write_csv

__all__ = ["compare", "folder_run", "write_comparison"]

_CHOICE = "protocol="
_LEFT_OUT = "another protocol, or older with equal parameters"
_PICTURE = Path("evaluate") / "samples" / "generator.png"


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
        names: Folders, beginnings of MLflow runs' ids (all finished evaluations in MLflow if there
            are neither), and at most one ``protocol=ID``.
        paths: The workspace.
        page: Where to write; ``reports/comparison.html`` unless given.

    Returns:
        What to tell the user.

    Raises:
        ParamsError: Two protocols are named.
        DataError: A run is not there, or the runs do not compare.
    """
    page = paths.comparison_page if page is None else page
    protocols = [name.removeprefix(_CHOICE) for name in names if name.startswith(_CHOICE)]
    if len(protocols) > 1:
        msg = f"compare takes one {_CHOICE}ID, but {len(protocols)} were given; leave one"
        raise ParamsError(msg)
    sources = [name for name in names if not name.startswith(_CHOICE)]
    with tempfile.TemporaryDirectory(prefix="dsd-compare-") as folder:
        found = _find(sources, paths, Path(folder))
        alike = one_protocol(found, protocols[0] if protocols else None)
        # Runs with equal parameters are repetitions, not new evidence: the last one counts.
        runs = [*{json.dumps(run.params, sort_keys=True): run for run in alike}.values()]
        write_comparison(runs, page)
    left_out = len(found) - len(runs)
    return [
        _runs(len(runs)) + (f"; {left_out} left out ({_LEFT_OUT})" if left_out else ""),
        f"Page:   {page.relative_to(paths.root)}",
        f"Table:  {page.with_suffix('.csv').relative_to(paths.root)}",
    ]


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _find(sources: Sequence[str], paths: Paths, scratch: Path) -> list[Run]:
    """The runs that are named, or all in MLflow."""
    folders = [Path(name) for name in sources if Path(name).is_dir()]
    prefixes = [name for name in sources if not Path(name).is_dir()]
    runs = [folder_run(folder) for folder in folders]
    if prefixes or not sources:
        runs += _stored(prefixes, paths, scratch)
    return runs


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
    params = _as_text(leaves(read_mapping(folder / "params.yaml")))
    for key in ("seed", "corrupt.sigma"):
        if key not in params:
            msg = f"{folder / 'params.yaml'} has no {key}; put the run's params.yaml there"
            raise DataError(msg)
    picture = reports / _PICTURE
    return Run(str(folder), params, summary, picture if picture.is_file() else None)


def _stored(prefixes: Sequence[str], paths: Paths, scratch: Path) -> list[Run]:
    """Evaluations in MLflow, oldest first: those whose ids are named, or all."""
    # Late, because it takes seconds and folders do without it.
    from pipeline.tracking.tracker import evaluations

    stored = evaluations(paths, scratch)
    for prefix in prefixes:
        if not any(run.run_id.startswith(prefix) for run in stored):
            msg = (
                f"{prefix!r} is no folder, and no finished evaluation in MLflow has an id that "
                "begins so; `python -m pipeline compare` alone shows those that there are"
            )
            raise DataError(msg)
    if not stored:
        msg = "MLflow has no finished evaluation yet; run `dvc repro`, or name folders of runs"
        raise DataError(msg)
    return [
        Run(
            run.run_id[:8],
            _as_text(run.params),
            read_summary(run.summary, f"summary.json of run {run.run_id}"),
            run.picture,
        )
        for run in stored
        if not prefixes or run.run_id.startswith(tuple(prefixes))
    ]


def _as_text(values: Mapping[str, object]) -> dict[str, str]:
    """Equal text for equal values, be they from YAML or from MLflow, which keeps text."""

    def plain(value: object) -> str:
        if value is None or isinstance(value, list):
            return json.dumps(value)
        try:
            return f"{float(str(value)):g}"
        except ValueError:
            return str(value)

    return {key: plain(value) for key, value in values.items()}


def write_comparison(runs: Sequence[Run], page: Path) -> None:
    """Write page and table about runs of one protocol."""
    keys, spaces = differing(runs), shared_spaces(runs)
    columns = [
        column
        for column in starmap(Column, product(spaces, MEASURES, LABELS))
        if any(_value(run, column) is not None for run in runs)
    ]
    ordered = sorted(
        runs, key=lambda run: (variant_of(run, "generator", keys), run.sigma, run.seed)
    )
    rows = [
        (
            [run.name, *(run.params.get(key, "-") for key in keys)],
            [_value(run, column) for column in columns],
        )
        for run in ordered
    ]
    # One for each method and noise level: that of the smallest seed.
    pictured = {
        (variant_of(run, "generator", keys), run.sigma): (run, run.picture)
        for run in reversed(ordered)
        if run.picture is not None
    }
    write_csv(
        page.with_suffix(".csv"),
        ["run", *keys, *(f"{column.title}: {LABELS[column.model]}" for column in columns)],
        [(*words, *values) for words, values in rows],
    )
    write_page(
        page,
        "comparison.html.j2",
        title=f"{_runs(len(runs))} compared",
        spaces=[_figures(runs, name) for name in spaces],
        keys=keys,
        groups=Counter(column.title for column in columns),
        models=[LABELS[column.model] for column in columns],
        rows=rows,
        pictures=[
            (_caption(run, keys), embed(picture, f"images of the generator of {run.name}"))
            for run, picture in reversed(pictured.values())
        ],
        protocol=leaves(runs[0].summary["protocol"]),
        seeds=sorted({run.seed for run in runs}, key=float),
    )


def _figures(runs: Sequence[Run], features: str) -> dict[str, object]:
    drawn = []
    for measure in MEASURES:
        title = title_of(measure, features)
        figure = draw_lines(runs, features, measure, title=title)
        if figure is not None:
            text = f"{title}, {features} features, against the noise level of the data."
            drawn.append((inline(figure, f"{features}-{measure}", text), text))
    return {"features": features, "figures": drawn}


def _value(run: Run, column: Column) -> float | None:
    return distances(run.summary, column.model, column.features).get(column.measure)


def _caption(run: Run, keys: Sequence[str]) -> str:
    variant = variant_of(run, "generator", keys)
    return f"{variant + ', ' if variant else ''}sigma {run.sigma:g}, seed {run.seed} ({run.name})"
