"""Times of several ways to do the same, in turn, with PyTorch's own tools."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Measurement, Timer
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Comparison", "Way", "measure", "table"]

_ROUNDS, _SHOWN = 3, 6


class Way(NamedTuple):
    """One way to do something to ``items`` at a time, a share of which has a gradient."""

    name: str
    do: Callable[[], object]
    items: float = 1.0
    of_use: float = 1.0


class Comparison(NamedTuple):
    """Ways that are compared with the first of them."""

    title: str
    unit: str
    """``s``, or ``images/s``."""

    ways: Sequence[Way]
    missing: Mapping[str, str] = {}
    """Ways that cannot take part, and why."""

    computes: bool = True
    """Whether PyTorch's operations are counted and profiled."""


def measure(comparison: Comparison, seconds: float) -> dict[str, Any]:
    """Time each way in turn for at least ``seconds``, count operations, and profile the first way.

    Returns:
        All that was measured, as JSON can hold it.
    """
    timers = [
        Timer("do()", globals={"do": way.do}, num_threads=torch.get_num_threads())
        for way in comparison.ways
    ]
    for way in comparison.ways:
        way.do()  # brings what only the first time brings, such as an optimiser's moments
    found: list[list[Measurement]] = [[] for _ in timers]
    for _ in range(_ROUNDS):
        for timer, measurements in zip(timers, found, strict=True):
            measurements.append(timer.blocked_autorange(min_run_time=seconds / _ROUNDS))
    rows = []
    for way, measurements in zip(comparison.ways, found, strict=True):
        (merged,) = Measurement.merge(measurements)
        row = {"name": way.name, "items": way.items, "of_use": way.of_use, "times": merged.times}
        rows.append(row | (_counted(way) if comparison.computes else {}))
    longest = _operators(comparison.ways[0]) if comparison.computes else {}
    heading = {
        "title": comparison.title,
        "unit": comparison.unit,
        "missing": {**comparison.missing},
    }
    return {**heading, "rows": rows, "operators": longest}


def _counted(way: Way) -> dict[str, float]:
    """Floating-point operations for one go."""
    with FlopCounterMode(display=False) as counter:
        way.do()
    return {"flops": float(counter.get_total_flops())}


def _operators(way: Way) -> dict[str, float]:
    """Share of the time of each operator that takes most."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        way.do()
    taken = {event.key: float(event.self_cpu_time_total) for event in profiler.key_averages()}
    longest = sorted(taken, key=lambda key: -taken[key])[:_SHOWN]
    return {key: taken[key] / max(1e-9, sum(taken.values())) for key in longest}


def table(found: Mapping[str, Any]) -> str:
    """A comparison as Markdown."""
    unit, rows = found["unit"], found["rows"]
    lines = [
        f"| {found['title']} | {unit}: median (quartiles) | the first is faster | of use, {unit} "
        "| GFLOP each | GFLOP/s |",
        f"|---{'|---:' * 5}|",
    ]
    first = _quartiles(rows[0])[1]
    for row in rows:
        low, middle, high = _quartiles(row)
        shown = (low, middle, high) if unit == "s" else (1 / high, 1 / middle, 1 / low)
        flops = row.get("flops", 0.0) / row["items"]
        cells = [
            row["name"],
            f"{shown[1]:.4g} ({shown[0]:.4g} to {shown[2]:.4g})",
            "" if row is rows[0] else f"{middle / first:.2f} x",
            f"{shown[1] * row['of_use']:.4g}" if row["of_use"] != 1 else "",
            f"{flops / 1e9:.3g}" if flops else "",
            f"{flops / middle / 1e9:.4g}" if flops else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        f"| {name} | not measured: {why} {'| ' * 4}|" for name, why in found["missing"].items()
    ]
    if found["operators"]:
        parts = [f"{name} {100 * share:.0f} %" for name, share in found["operators"].items()]
        lines += ["", f"The first row spends its time with {', '.join(parts)}."]
    return "\n".join(lines) + "\n"


def _quartiles(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Seconds for one item: the first quartile, the median and the third."""
    times = torch.tensor(row["times"], dtype=torch.float64) / row["items"]
    low, middle, high = times.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    return low.item(), middle.item(), high.item()
