"""How the generator was chosen among its checkpoints, and what the choice cost."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dsd.selection.proximal import choose
from pipeline.params.model import Params
from pipeline.reports.figures import draw_agreement, draw_curve
from pipeline.reports.page import as_number
from pipeline.reports.summary import title_of
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import read_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawn", "Study", "column", "draw_choice", "rows_of", "study_of", "thousands"]

_CRITERION = "heldout_proximal_frechet"
"""The measure by which distillation chose the generator, as the study of the choice calls it."""

_NAMED = ("chosen", "last", "oracle")


class Drawn(NamedTuple):
    """A figure, its name on the page, and what it shows."""

    name: str
    figure: "Figure"
    text: str


class Study(NamedTuple):
    """The checkpoints that the evaluation names, and sentences about the choice."""

    titles: list[str]
    rows: list[list[str]]
    sentences: list[str]


def draw_choice(params: Params, paths: Paths, measured: str) -> Iterator[Drawn]:
    """How the checkpoint was chosen, and how well by the distances in the space ``measured``."""
    features = params.distill.selection.features
    seen = rows_of(paths.report("distill") / "trajectory.csv")
    study = [row for row in rows_of(paths.report("evaluate") / "selection.csv") if row["frechet"]]
    if seen:
        values = column(seen, "proximal_frechet")
        errors = column(seen, "proximal_frechet_standard_error")
        marks = _marks(values, errors, column(study, "frechet"))
        title = title_of(_CRITERION, features)
        figure = draw_curve(thousands(seen), values, ylabel=title, marks=marks, errors=errors)
        images = f"{int(seen[marks['chosen']]['images']):,}"
        text = (
            f"{title_of('proximal_frechet', features)} distance to held-out noisy images, in "
            f"{features} features, with one standard error. The last checkpoint within one "
            f"standard error of the least is the generator: that after {images} images."
        )
        yield Drawn("choice", figure, text)
    if study:
        near, clean = column(study, _CRITERION), column(study, "frechet")
        figure = draw_agreement(
            near,
            clean,
            marks=_marks(near, column(study, f"{_CRITERION}_standard_error"), clean),
            xlabel=f"{title_of(_CRITERION, features)} ({features})",
            ylabel=f"{title_of('frechet', measured)} ({measured})",
        )
        text = (
            "One point for each checkpoint: its distance to held-out noisy images in "
            f"{features} features, which chose, against that to clean images in {measured} "
            "features, which the choice did not see."
        )
        yield Drawn("agreement", figure, text)


def _marks(
    criterion: Sequence[float], errors: Sequence[float], clean: Sequence[float]
) -> dict[str, int]:
    """Positions of the chosen checkpoint, the last one, and that nearest to clean images."""
    found = {"chosen": choose(criterion, errors), "last": len(criterion) - 1}
    if len(clean) == len(criterion):
        found["oracle"] = min(range(len(clean)), key=clean.__getitem__)
    return found


def study_of(summary: Mapping[str, Any], clean_title: str) -> Study:
    """The table of the named checkpoints; one generator has one distance, so others are relative.

    Args:
        summary: Of the run.
        clean_title: Name of the distance to clean images.
    """
    selection = summary.get("selection", {})
    named = {name: selection[name] for name in _NAMED if name in selection}
    if not named:
        return Study([], [], [])
    features = selection["features"]
    base = named["chosen"].get("frechet")
    titles = ["checkpoint", "images", f"{title_of(_CRITERION, features)} ({features})"]
    rows = [
        [
            name,
            f"{one['images']:,}",
            as_number(one[_CRITERION], one.get(f"{_CRITERION}_standard_error")),
        ]
        for name, one in named.items()
    ]
    if base is not None:
        titles.append(f"{clean_title}, against the chosen one")
        for row, one in zip(rows, named.values(), strict=True):
            row.append(_relative(one["frechet"], base))
    return Study(titles, rows, [*_sentences(selection, named["chosen"], clean_title)])


def _sentences(
    selection: Mapping[str, Any], chosen: Mapping[str, Any], clean_title: str
) -> Iterator[str]:
    count = selection["checkpoints"]
    if "spearman" in selection:
        later = selection.get("spearman_later_half")
        yield (
            f"Over {count} checkpoints the rank correlation of what chose and {clean_title} is "
            f"{selection['spearman']:.2f}"
            + (f", over the later half {later:.2f}." if later is not None else ".")
        )
    again = selection.get("again", {}).get(_CRITERION)
    if again is not None and chosen[_CRITERION] > 0:
        change = _relative(again, chosen[_CRITERION])
        yield (
            f"The chosen distance is among the least of {count}, and so partly luck: measured "
            f"again with other latents and noise it changes by {change}."
        )


def _relative(value: float, base: float) -> str:
    """How much a number differs from another one, in whole percent."""
    return f"{100 * (value / base - 1):+.0f} %" if base > 0 else "-"


def rows_of(file: Path) -> list[dict[str, str]]:
    """Rows of a table; none where there is no table."""
    return read_csv(file) if file.is_file() else []


def thousands(rows: Sequence[Mapping[str, str]]) -> list[float]:
    """Thousands of images that rows were recorded after."""
    return [count / 1000 for count in column(rows, "images")]


def column(rows: Sequence[Mapping[str, str]], name: str) -> list[float]:
    """The numbers of a column."""
    return [float(row[name]) for row in rows]
