"""The table of all numbers of one run in one feature space."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.reports.page import as_number
from pipeline.reports.summary import LABELS, distances, title_of

__all__ = ["Cell", "MetricTable", "Row", "make_table"]

_LOW, _HIGH, _ERROR = "_low", "_high", "_standard_error"
_TWO_SIDED_95 = 1.96
_SHARES = ("precision", "recall", "coverage")


class Cell(NamedTuple):
    """A number, and how sure it is; ``error`` is its standard error, where that is known."""

    value: float | None
    spread: str = ""
    error: float | None = None


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
    images = summary["protocol"].get("num_samples")
    rows = [
        Row(
            LABELS[name],
            [_cell(found[name], measure, images) for measure in measures] + [Cell(calls[name])],
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


def _cell(values: Mapping[str, float | None], measure: str, images: int | None) -> Cell:
    low, high, error = (values.get(measure + suffix) for suffix in (_LOW, _HIGH, _ERROR))
    value = values.get(measure)
    if low is not None and high is not None:
        error = (high - low) / (2 * _TWO_SIDED_95)
        return Cell(value, f"{as_number(low, error)} to {as_number(high, error)}", error)
    if error is not None:
        return Cell(value, f"± {as_number(error, error)}", error)
    return Cell(value, "", None if value is None else _of_share(measure, value, images))


def _of_share(measure: str, value: float, images: int | None) -> float | None:
    """Standard error of a share of images, by the binomial distribution."""
    if measure not in _SHARES or not images:
        return None
    return max(math.sqrt(max(value * (1 - value), 0.0) / images), 1 / images)
