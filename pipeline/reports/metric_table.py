"""The table of all numbers of one run in one feature space."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.reports.page import as_number
from pipeline.reports.summary import LABELS, distances, title_of

__all__ = ["Cell", "MetricTable", "Row", "make_table"]

_LOW, _HIGH, _ERROR = "_low", "_high", "_standard_error"


class Cell(NamedTuple):
    """A number, and how sure it is."""

    value: float | None
    spread: str = ""


class Row(NamedTuple):
    """All numbers of one model; the generator is the ``main`` one."""

    label: str
    cells: list[Cell]
    main: bool


class MetricTable(NamedTuple):
    """What a page shows of one feature space."""

    features: str
    titles: list[str]
    rows: list[Row]


def make_table(summary: Mapping[str, Any], features: str) -> MetricTable:
    """All numbers of the summary in one feature space, whatever they measure.

    ``x_low`` and ``x_high`` are shown as the interval of ``x``, ``x_standard_error`` as its error.
    """
    models = [name for name in LABELS if distances(summary, name, features)]
    found = {name: _numbers(distances(summary, name, features)) for name in models}
    known = dict.fromkeys(measure for values in found.values() for measure in values)
    # A number that says how sure another one is has no column.
    belonging = {measure + suffix for measure in known for suffix in (_LOW, _HIGH, _ERROR)}
    measures = [measure for measure in known if measure not in belonging]
    calls = {name: summary[name].get("evaluations") for name in models}
    rows = [
        Row(
            LABELS[name],
            [_cell(found[name], measure) for measure in measures] + [Cell(calls[name])],
            main=name == "generator",
        )
        for name in models
    ]
    titles = [title_of(measure, features) for measure in measures]
    return MetricTable(features, [*titles, "network calls"], rows)


def _numbers(values: Mapping[str, object]) -> dict[str, float | None]:
    return {
        name: value
        for name, value in values.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def _cell(values: Mapping[str, float | None], measure: str) -> Cell:
    low, high, error = (values.get(measure + suffix) for suffix in (_LOW, _HIGH, _ERROR))
    spread = f"± {error:.2g}" if error is not None else ""
    if low is not None and high is not None:
        spread = f"{as_number(low)} to {as_number(high)}"
    return Cell(values.get(measure), spread)
