"""From all timings to tables for people."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

__all__ = ["Peaks", "found_peaks", "page", "ratios", "seconds_each"]

_MISSING = "not measured"


class Peaks(NamedTuple):
    """The most that the machine did."""

    flops: Mapping[str, float]
    """Floating-point operations a second, by precision."""

    bandwidth: float
    """Bytes a second, read and written."""


def found_peaks(contest: Mapping[str, Any]) -> Peaks:
    """Peaks among the results of ``contests.peaks``: the fastest turn of each."""
    best = {
        entry["label"]: 1e9 / min(seconds_each(entry))
        for entry in contest["contestants"]
        if entry["missing"] is None
    }
    flops = {label.split(", ")[1]: best[label] for label in best if ", " in label}
    return Peaks(flops, best["copy"])


def seconds_each(entry: Mapping[str, Any]) -> list[float]:
    """Seconds for one image, megabyte, ..., of each turn."""
    return [taken / (entry["times"] * entry["items"]) for taken in entry["seconds"]]


def ratios(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[float]:
    """How many times faster the first is than another, turn by turn."""
    pairs = zip(seconds_each(other), seconds_each(first), strict=True)
    return [theirs / ours for theirs, ours in pairs]


def page(results: Mapping[str, Any]) -> str:
    """The whole result as Markdown."""
    first, *others = results["contests"]
    peaks = found_peaks(first)
    tables = "\n".join(_table(contest, peaks) for contest in (first, *others))
    return f"{_head(results, peaks)}\n{tables}"


def _head(results: Mapping[str, Any], peaks: Peaks) -> str:
    machine = results["machine"]
    where = machine["gpu"] or f"{machine['processor']} ({machine['instructions']})"
    commit = (results["commit"] or "no commit")[:12] + (", changed" if results["dirty"] else "")
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    load = ", ".join(f"{value:.2f}" for value in results["load"])
    lines = [
        "# Speed, measured",
        "",
        f"`{results['command']}`, {results['date']}, commit {commit}.",
        f"{where}, {machine['cores']} cores, {results['threads']} threads; {versions}.",
        f"Load before and after: {load}. Every timing is in the JSON file beside this page; what "
        "the columns mean is in `docs/speed.md`.",
        "",
    ]
    return "\n".join(lines)


class _Column(NamedTuple):
    """A column that is shown where at least one row has something in it."""

    title: str
    cell: Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]
    """From a row and the first row."""


def _table(contest: Mapping[str, Any], peaks: Peaks) -> str:
    rows: Sequence[Mapping[str, Any]] = contest["contestants"]
    columns = list(_columns(contest["unit"], contest["relation"], peaks))
    cells = [[column.cell(row, rows[0]) for column in columns] for row in rows]
    shown = [number for number in range(len(columns)) if any(line[number] for line in cells)]
    titles = ["", *(columns[number].title for number in shown)]
    lines = [_line(titles), _line(["---"] * len(titles))]
    for row, line in zip(rows, cells, strict=True):
        if row["missing"] is None:
            lines.append(_line([row["label"], *(line[number] or "" for number in shown)]))
        else:
            why = f"{_MISSING}: {row['missing']}"
            lines.append(_line([row["label"], why, *[""] * (len(shown) - 1)]))
    note = f"{contest['note']}\n" if contest["note"] else ""
    return f"## {contest['name']}\n\n" + "\n".join(lines) + f"\n\n{note}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _columns(unit: str, relation: str, peaks: Peaks) -> Iterator[_Column]:
    yield _Column(f"{unit}, median (range)", lambda row, _: _speed(row, unit))
    yield _Column(f"of use, {unit}", lambda row, _: _of_use(row))
    if relation == "rivals":
        yield _Column("the first is faster", _faster)
        yield _Column("the same, of use", _faster_of_use)
        yield _Column("at the peak it would be", lambda row, first: _at_peak(row, first, peaks))
    if relation == "part":
        yield _Column("share of the first", _part)
    yield _Column("GFLOP each", lambda row, _: _gflop(row))
    yield _Column("of the peak", lambda row, _: _share(row, peaks))
    yield _Column("parameters, M", lambda row, _: _fact(row, "parameters", 1e-6))
    yield _Column("memory, MB (before)", lambda row, _: _memory(row))


def _measured(cell: Callable[..., str | None]) -> Callable[..., str | None]:
    """A cell that is empty where a row it needs was not measured."""

    def guarded(*arguments: object) -> str | None:
        rows = [row for row in arguments if isinstance(row, Mapping)]
        return None if any(row["missing"] is not None for row in rows) else cell(*arguments)

    return guarded


def _spread(values: Sequence[float]) -> str:
    return f"{_number(median(values))} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@_measured
def _speed(row: Mapping[str, Any], unit: str) -> str:
    each = seconds_each(row)
    return _spread(each if unit == "s" else [1 / seconds for seconds in each])


@_measured
def _faster(row: Mapping[str, Any], first: Mapping[str, Any]) -> str | None:
    return None if row is first else f"{_spread(ratios(first, row))} x"


@_measured
def _part(row: Mapping[str, Any], first: Mapping[str, Any]) -> str | None:
    if row is first:
        return None
    percents = [100 / ratio for ratio in ratios(row, first)]
    return f"{_spread(percents)} %"


@_measured
def _of_use(row: Mapping[str, Any]) -> str | None:
    share = row["facts"].get("of_use")
    return _spread([share / each for each in seconds_each(row)]) if share else None


@_measured
def _faster_of_use(row: Mapping[str, Any], first: Mapping[str, Any]) -> str | None:
    shares = [entry["facts"].get("of_use") for entry in (first, row)]
    if row is first or None in shares:
        return None
    return f"{_spread([shares[0] / shares[1] * ratio for ratio in ratios(first, row)])} x"


def _flops_each(row: Mapping[str, Any]) -> float | None:
    flops: float | None = row["flops"]
    return flops / row["items"] if flops else None


@_measured
def _gflop(row: Mapping[str, Any]) -> str | None:
    flops = _flops_each(row)
    return _number(1e-9 * flops) if flops else None


def _least_seconds(row: Mapping[str, Any], peaks: Peaks) -> float | None:
    """Seconds for one at the machine's peak of arithmetic, or of copying."""
    flops, moved = _flops_each(row), row["moved"]
    if flops:
        return flops / peaks.flops[row["precision"]]
    return moved / row["items"] / peaks.bandwidth if moved else None


@_measured
def _share(row: Mapping[str, Any], peaks: Peaks) -> str | None:
    least = _least_seconds(row, peaks)
    return f"{100 * least / median(seconds_each(row)):.2g} %" if least else None


@_measured
def _at_peak(row: Mapping[str, Any], first: Mapping[str, Any], peaks: Peaks) -> str | None:
    """How much faster the first could be if it reached the peak."""
    least = _least_seconds(first, peaks)
    if row is first or not least:
        return None
    return f"{_number(median(seconds_each(row)) / least)} x"


@_measured
def _fact(row: Mapping[str, Any], name: str, scale: float) -> str | None:
    value = row["facts"].get(name)
    return _number(scale * value) if value else None


@_measured
def _memory(row: Mapping[str, Any]) -> str:
    memory = row["memory"]
    gpu = f", GPU {_number(1e-6 * memory['gpu'])}" if memory["gpu"] else ""
    return f"{_number(1e-6 * memory['host'])} ({_number(1e-6 * memory['at_start'])}){gpu}"
