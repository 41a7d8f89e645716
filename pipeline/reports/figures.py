"""Figures of both pages: training, choice of the generator, and distances against the noise."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.reports.comparison import Line, Point, Run, lines_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["NUM_TIMES", "draw_agreement", "draw_curve", "draw_levels", "draw_lines"]

NUM_TIMES = 5
"""Moments of the training that a figure by noise level shows."""

_WIDE = 5
"""Ratio of largest to smallest number from which on an axis is logarithmic."""

_WIDTH = 4.6
_LINE, _CHOSEN, _BEST, _LAST = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
_HEALTHY = "0.6"
_MARKS = {"chosen": (_CHOSEN, 13), "last": (_LAST, 10), "oracle": (_BEST, 7)}
"""Colour and size of the rings around the checkpoints that the study of the choice names."""

_TEACHER_STYLES = {
    "noisy_data": ("0.55", "s"),
    "teacher_full": ("#56b4e9", "v"),
    "teacher_truncated": ("#0072b2", "^"),
    "teacher_truncated_exact": ("#cc79a7", "D"),
}
_GENERATOR_COLOURS = ("#d55e00", "#009e73", "#e69f00", "#000000", "#882255", "#999933")
_DASHES = ("--", ":", "-.")

_PLOT_HEIGHT, _LABEL_HEIGHT = 3.0, 0.18
"""Inches of the axes, and of each line of the legend below them."""

_MAX_TICKS = 8


def _new_axes(height: float = 3.0) -> tuple["Figure", "Axes"]:
    """An empty figure, ``height`` inches high, that is readable where a page shows it small."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", lw=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _scale(axes: "Axes", which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Make an axis logarithmic if its numbers are positive and far apart, with plain labels."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if 0 < _WIDE * min(values) < max(values):
        axes.set(**{f"{which}scale": "log"})
        axis = axes.xaxis if which == "x" else axes.yaxis
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def draw_curve(
    seen: Sequence[float],
    values: Sequence[float],
    *,
    ylabel: str,
    marks: Mapping[str, int] | None = None,
    errors: Sequence[float] | None = None,
    healthy: tuple[Sequence[float], Sequence[float]] | None = None,
) -> "Figure":
    """A number over thousands of images seen.

    Args:
        seen: Thousands of images.
        values: The number.
        ylabel: What it is.
        marks: Positions of the checkpoints ``chosen``, ``last`` and ``oracle``, as far as known.
        errors: Standard errors, drawn as a band.
        healthy: The same of a training that went well, for its shape.
    """
    figure, axes = _new_axes()
    if healthy is not None:
        axes.plot(*healthy, color=_HEALTHY, lw=4, alpha=0.5, label="shape of a healthy one")
    axes.plot(seen, values, color=_LINE, marker="." if len(seen) <= 40 else None)
    if errors is not None:
        middle, width = np.asarray(values), np.asarray(errors)
        low = np.maximum(middle - width, middle / 2)  # above 0, for logarithmic axes
        axes.fill_between(seen, low, middle + width, alpha=0.2, color=_LINE)
    _ring(axes, seen, values, marks or {})
    if marks or healthy:
        axes.legend(fontsize="small")
    axes.set(xlabel="thousands of images", ylabel=ylabel)
    _scale(axes, "y", [*values, *(healthy[1] if healthy else ())])
    return figure


def _ring(axes: "Axes", x: Sequence[float], y: Sequence[float], marks: Mapping[str, int]) -> None:
    """A ring around each checkpoint that is named; equal ones lie inside each other."""
    for label, at in marks.items():
        colour, size = _MARKS[label]
        axes.plot(x[at], y[at], "o", color=colour, mfc="none", mew=2, ms=size, label=label)


def draw_levels(rows: Sequence[tuple[float, str, float]], *, ylabel: str) -> "Figure":
    """A number by noise level; rows are (thousands of images, level's bin, number)."""
    from matplotlib import colormaps

    figure, axes = _new_axes()
    shown = _thinned(sorted({time for time, _, _ in rows}))
    levels = list(dict.fromkeys(level for _, level, _ in sorted(rows, key=_by_level)))
    colours = colormaps["viridis"](np.linspace(0.85, 0, len(shown)))
    for time, colour in zip(shown, colours, strict=True):
        here = {level: value for when, level, value in rows if when == time}
        at = [number for number, level in enumerate(levels) if level in here]
        axes.plot(at, [here[levels[n]] for n in at], "o-", ms=4, color=colour, label=f"{time:.3g}")
    axes.set_xticks(range(len(levels)), [level.replace("<=", "≤") for level in levels])
    axes.set(xlabel="noise level sigma", ylabel=ylabel)
    _scale(axes, "y", [value for _, _, value in rows])
    axes.legend(title="after thousands\nof images", fontsize="small", title_fontsize="small")
    return figure


def _thinned(times: Sequence[float]) -> list[float]:
    """A few of many moments, evenly spaced, the first and the last among them."""
    at = np.linspace(0, len(times) - 1, min(NUM_TIMES, len(times))).round().astype(int)
    return [times[n] for n in at]


def _by_level(row: tuple[float, str, float]) -> tuple[bool, float]:
    """Sorts the bins ``<=a``, ``<=b``, ``>b`` by their levels."""
    level = row[1]
    return level.startswith(">"), float(level.lstrip("<=>"))


def draw_agreement(
    proximal: Sequence[float],
    clean: Sequence[float],
    *,
    marks: Mapping[str, int],
    xlabel: str,
    ylabel: str,
) -> "Figure":
    """The distance to noisy images against that to clean ones, for all checkpoints in order.

    ``marks`` as in :func:`draw_curve`.

    Reference:
        Chen et al. 2025, DSD (arXiv:2503.07578), Figure 5.
    """
    figure, axes = _new_axes()
    order = range(len(proximal))
    points = axes.scatter(proximal, clean, c=order, cmap="viridis_r", s=30, zorder=3)
    bar = figure.colorbar(points, ax=axes, ticks=[0, len(proximal) - 1])
    bar.ax.set_yticklabels(["first", "last"])
    _ring(axes, proximal, clean, marks)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _scale(axes, "x", proximal)
    _scale(axes, "y", clean)
    axes.legend(fontsize="small")
    return figure


def draw_lines(
    runs: Sequence[Run], features: str, measure: str, *, title: str
) -> "tuple[Figure, dict[str, str]] | None":
    """Mean and standard deviation over seeds, for each model and method; None without numbers.

    Parts of line N have ids that begin with ``line-N``, its name in the legend is ``key-N``.
    Beside the figure returns what its points show, by their ids.

    Reference:
        Chen et al. 2025, DSD (arXiv:2503.07578), Figure 1.
    """
    lines = lines_of(runs, features, measure)
    if not lines:
        return None
    figure, axes = _new_axes(_PLOT_HEIGHT + _LABEL_HEIGHT * len(lines))
    tips = {}
    for number, (line, style) in enumerate(zip(lines, _styles(lines), strict=True)):
        drawn, caps, bars = axes.errorbar(
            [point.sigma for point in line.points],
            [point.mean for point in line.points],
            yerr=[math.nan if point.spread is None else point.spread for point in line.points],
            label=line.label,
            ms=5,
            capsize=3,
            **style,
        )
        for part, artist in enumerate((drawn, *caps, *bars)):
            artist.set_gid(f"line-{number}-{part}")
        for at, point in enumerate(line.points):
            # What is not seen, but felt: larger than the point.
            gid = f"line-{number}-tip-{at}"
            axes.plot(point.sigma, point.mean, "o", ms=12, alpha=0, gid=gid)
            tips[gid] = _tip(line, point)
    axes.set(xlabel="sigma, noise of the data", ylabel=title)
    sigmas = sorted({point.sigma for line in lines for point in line.points})
    if len(sigmas) <= _MAX_TICKS:
        axes.set_xticks(sigmas, [f"{sigma:g}" for sigma in sigmas])
    _scale(axes, "y", [point.mean for line in lines for point in line.points])
    legend = figure.legend(loc="outside lower left", fontsize="small", frameon=False)
    for number, text in enumerate(legend.get_texts()):
        text.set_gid(f"key-{number}")
    return figure, tips


def _tip(line: Line, point: Point) -> str:
    spread = "" if point.spread is None else f" ± {point.spread:.2g} over {point.runs} seeds"
    return f"{line.label}, sigma {point.sigma:g}: {point.mean:.3g}{spread}"


def _styles(lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    """A colour for each sampler of the teacher and each generator; dashes for variants."""
    seen = Counter[str]()
    for line in lines:
        number = seen[line.model]
        seen[line.model] += 1
        if line.model == "generator":
            colour = _GENERATOR_COLOURS[number % len(_GENERATOR_COLOURS)]
            yield {"color": colour, "ls": "-", "marker": "o"}
        else:
            colour, marker = _TEACHER_STYLES[line.model]
            fill = colour if number == 0 else "white"
            dashes = _DASHES[number % len(_DASHES)]
            yield {"color": colour, "ls": dashes, "marker": marker, "mfc": fill}
