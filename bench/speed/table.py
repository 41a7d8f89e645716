"""From all timings to tables for people."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

from bench.speed.roofline import Peaks
from bench.speed.timings import quartiles, ratios, seconds_each

__all__ = ["page"]

_MISSING = "not measured"

_LIMITS = {
    "products": "all but products free",
    "operations": "operation by operation",
    "with_own_code": "products at the peak",
}
"""Of ``roofline.Least``, with what is said of them."""

_SHOWN_OPERATORS = 8


def page(results: Mapping[str, Any]) -> str:
    """The whole result as Markdown."""
    tables = "\n".join(map(_table, results["contests"]))
    return f"{_head(results)}\n{tables}"


def _head(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    where = machine["gpu"] or f"{machine['processor']} ({machine['instructions']})"
    commit = (results["commit"] or "no commit")[:12] + (", changed" if results["dirty"] else "")
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    load = ", ".join(f"{value:.2f}" for value in results["load"])
    lines = [
        "# Speed, measured",
        "",
        f"`{results['command']}`, {results['date']}, commit {commit}, {results['minutes']:.0f} "
        "minutes.",
        f"{where}, {machine['cores']} cores, {results['threads']} threads; {versions}.",
        f"Load before and after: {load}. Every timing is in the JSON file beside this page; what "
        "the columns mean is in `bench/README.md`.",
        "",
    ]
    return "\n".join(lines)


def _operators(row: Mapping[str, Any]) -> str:
    """What the time of the first row is spent with."""
    if row["missing"] is not None or row["least"] is None:
        return ""
    took, least = row["took"], row["least"]["operations"]
    total = sum(took.values())
    longest = sorted(took, key=lambda name: -took[name])[:_SHOWN_OPERATORS]
    told = [
        f"{name} {100 * took[name] / total:.0f} ({100 * least[name] / took[name]:.0f})"
        for name in longest
    ]
    return (
        "Operators of the first row, in percent of the time of all (and their least time in "
        f"percent of theirs): {', '.join(told)}."
    )


class _Column(NamedTuple):
    """A column that is shown where at least one row has something in it."""

    title: str
    cell: Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]
    """From a row and the first row."""


def _table(contest: Mapping[str, Any]) -> str:
    rows: Sequence[Mapping[str, Any]] = contest["contestants"]
    peaks = Peaks.among(contest["limits"]) if contest["limits"] else None
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
    notes = [_turns(rows, peaks), _operators(rows[0]), contest["note"]]
    return (
        f"## {contest['name']}\n\n" + "\n".join(lines) + f"\n\n{' '.join(filter(None, notes))}\n"
    )


def _turns(rows: Sequence[Mapping[str, Any]], peaks: Peaks | None) -> str:
    """How often they had their turn, and what the machine did between them."""
    told = f"{max(len(row['seconds']) for row in rows)} turns."
    if peaks is None:
        return told
    products = ", ".join(f"{name} {_number(1e-9 * rate)}" for name, rate in peaks.flops.items())
    sizes = ", ".join(_number(1e-6 * moved) for moved in sorted(peaks.copies))
    rates = ", ".join(_number(1e-9 * peaks.copies[moved]) for moved in sorted(peaks.copies))
    return (
        f"{told} Between them products did up to {products} GFLOP/s, copies that move {sizes} MB "
        f"up to {rates} GB/s."
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _columns(unit: str, relation: str, peaks: Peaks | None) -> Iterator[_Column]:
    yield _Column(f"{unit}, median (quartiles)", lambda row, _: _speed(row, unit))
    yield _Column(f"of use, {unit}", lambda row, _: _of_use(row))
    if relation == "rivals":
        yield _Column("the first is faster", _faster)
        yield _Column("the same, of use", _faster_of_use)
        for limit, title in _LIMITS.items():
            yield _Column(f"at best, {title}", partial(_could_be, limit))
    if relation == "part":
        yield _Column("share of the first", _part)
    yield _Column("GFLOP each", lambda row, _: _gflop(row))
    yield _Column("of the peak", lambda row, _: _of_peak(row, peaks))
    yield _Column("parameters, M", lambda row, _: _fact(row, "parameters", 1e-6))
    yield _Column("memory, MB (before)", lambda row, _: _memory(row))


def _measured(cell: Callable[..., str | None]) -> Callable[..., str | None]:
    """A cell that is empty where a row it needs was not measured."""

    def guarded(*arguments: object) -> str | None:
        rows = [row for row in arguments if isinstance(row, Mapping)]
        return None if any(row["missing"] is not None for row in rows) else cell(*arguments)

    return guarded


def _spread(values: Sequence[float]) -> str:
    low, middle, high = map(_number, quartiles(values))
    return f"{middle} ({low} to {high})"


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


def _least_seconds(row: Mapping[str, Any], limit: str) -> float | None:
    """Seconds for one at a limit, if it has such."""
    if row["least"] is None:
        return None
    found = row["least"][limit]
    seconds: float = sum(found.values()) if isinstance(found, Mapping) else found
    items: float = row["items"]
    return seconds / items


@_measured
def _of_peak(row: Mapping[str, Any], peaks: Peaks | None) -> str | None:
    """Its arithmetic's least share of the time, or that of the bytes that must be moved."""
    least = _least_seconds(row, "products")
    if row["moved"] and peaks is not None:
        least = row["moved"] / row["items"] / peaks.bandwidth(row["moved"])
    return f"{_number(100 * least / median(seconds_each(row)))} %" if least else None


@_measured
def _could_be(limit: str, row: Mapping[str, Any], first: Mapping[str, Any]) -> str | None:
    """How much faster than this row the first could be, if it were at a limit."""
    least = _least_seconds(first, limit)
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
