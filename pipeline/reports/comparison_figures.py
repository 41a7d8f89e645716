"""The paper's Figure 1: distances of noisy data, teacher and generators against the noise."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.reports.comparison import Line, Run, lines_of
from pipeline.reports.report_figures import new_axes, scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_lines"]

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


def draw_lines(runs: Sequence[Run], features: str, measure: str, *, title: str) -> "Figure | None":
    """One line for each model and method, mean and standard deviation over seeds.

    Args:
        runs: Runs of one protocol.
        features: Name of the feature space.
        measure: ``frechet`` or ``proximal_frechet``.
        title: Its name for people.

    Returns:
        The figure, or None if no run has this number.
    """
    lines = lines_of(runs, features, measure)
    if not lines:
        return None
    figure, axes = new_axes(_PLOT_HEIGHT + _LABEL_HEIGHT * len(lines))
    for line, style in zip(lines, _styles(lines), strict=True):
        axes.errorbar(
            [point.sigma for point in line.points],
            [point.mean for point in line.points],
            yerr=[math.nan if point.spread is None else point.spread for point in line.points],
            label=line.label,
            ms=5,
            capsize=3,
            **style,
        )
    axes.set(xlabel="sigma, noise of the data", ylabel=title)
    sigmas = sorted({point.sigma for line in lines for point in line.points})
    if len(sigmas) <= _MAX_TICKS:
        axes.set_xticks(sigmas, [f"{sigma:g}" for sigma in sigmas])
    scale(axes, "y", [point.mean for line in lines for point in line.points])
    figure.legend(loc="outside lower left", fontsize="small", frameon=False)
    return figure


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
