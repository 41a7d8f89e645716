"""The report: one page about one run of the whole pipeline, from what its stages wrote.

``python -m pipeline evaluate`` writes it when the stage is done. No stage depends on this module:
a better sentence must not repeat an evaluation.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from markupsafe import Markup

from dsd.selection.proximal import choose
from dsd.utils.files import read_json
from pipeline.execution.device import resolve_device
from pipeline.params.model import Params
from pipeline.params.reader import flatten, leaves, read_mapping
from pipeline.reports.figures import draw_agreement, draw_curve, draw_levels
from pipeline.reports.metric_table import make_table
from pipeline.reports.page import embed, inline, write_page
from pipeline.reports.summary import LABELS, feature_spaces, read_summary, title_of
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import read_csv
from pipeline.stages import STAGES
from pipeline.tracking.provenance import commit_of, is_dirty, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

_CRITERION = "heldout_proximal_frechet"
"""The measure by which distillation chose the generator, as the study of the choice calls it."""

_TEACHERS = ("teacher_full", "teacher_truncated", "teacher_truncated_exact")


class _Drawn(NamedTuple):
    """A figure, its name on the page, and what it shows."""

    name: str
    figure: "Figure"
    text: str


def write_report(params: Params, paths: Paths, *, seconds: float) -> None:
    """Write ``reports/report.html``.

    Args:
        params: All parameters of the run.
        paths: A workspace in which all stages have run.
        seconds: How long the evaluation took.

    Raises:
        DataError: There is no summary, or it cannot be read.
    """
    summary = read_summary(paths.summary, paths.summary.name)
    features = feature_spaces(summary)
    distances = [title_of(name, features[0]) for name in ("proximal_frechet", "frechet")]
    write_page(
        paths.report_page,
        "report.html.j2",
        title=f"One-step generator from images with noise {_level(summary)}",
        params=params,
        tiles=_tiles(summary),
        tables=[make_table(summary, name) for name in features],
        protocol=leaves(summary["protocol"]),
        selection=summary.get("selection", {}),
        memorisation=summary.get("memorisation", {}),
        moments=_moments(summary, features[0], params.distill.selection.features),
        distances=distances,
        training=_inlined(_training(paths)),
        choice=_inlined(_choice(params, paths, features[0])),
        pictures=_pictures(paths),
        noise=_read_json(paths.report("corrupt") / "noise.json"),
        sections=_by_section(params),
        stages=_stages(paths, seconds),
        provenance=_provenance(params, paths),
    )


def _level(summary: Mapping[str, Any]) -> str:
    """The noise level in the parameters, and the one assumed where it is another."""
    protocol = summary["protocol"]
    sigma, assumed = protocol["sigma"], protocol.get("sigma_hat", protocol["sigma"])
    if sigma == "auto":
        return f"{assumed:.4g} (estimated)"
    return f"{sigma:g}" + ("" if assumed == sigma else f", assumed {assumed:.4g}")


def _tiles(summary: Mapping[str, Any]) -> list[dict[str, object]]:
    """The few numbers to see first: the generator against teacher and data."""
    clean = summary["generator"]["frechet"] is not None
    measure = "frechet" if clean else "proximal_frechet"
    features = feature_spaces(summary)[0]
    title = f"{title_of(measure, features)}, {features}"
    best = min(_TEACHERS, key=lambda name: _value(summary, name, measure))
    shown = ["generator", best] + ["noisy_data"] * clean
    tiles: list[dict[str, object]] = [
        {"value": summary[name][measure], "label": LABELS[name], "what": title} for name in shown
    ]
    tiles[1]["label"] = f"best teacher sampler: {LABELS[best].removeprefix('teacher, ')}"
    evaluations = summary[best]["evaluations"]
    return [
        *tiles,
        {"value": 1, "label": "step for an image", "what": f"teacher: {evaluations} evaluations"},
    ]


def _value(summary: Mapping[str, Any], model: str, measure: str) -> float:
    value = summary.get(model, {}).get(measure)
    return float("inf") if value is None else value


def _moments(summary: Mapping[str, Any], features: str, selection: str) -> dict[str, Any]:
    """The checkpoints that the study of the choice names, as a table.

    Evaluation measured in the space ``features``, distillation chose in ``selection``.
    """
    named = {k: v for k, v in summary.get("selection", {}).items() if isinstance(v, Mapping)}
    measures = list(dict.fromkeys(measure for moment in named.values() for measure in moment))
    return {
        "titles": [
            title_of(measure, selection if measure == _CRITERION else features)
            for measure in measures
        ],
        "rows": {k: [moment.get(measure) for measure in measures] for k, moment in named.items()},
    }


def _training(paths: Paths) -> Iterator[_Drawn]:
    """Curves of both training stages."""
    yield from _curves(paths.report("pretrain"), "loss", "loss", "loss of the teacher")
    gap = "gap between teacher and fake denoiser"
    yield from _curves(paths.report("distill"), "trajectory", "gap", gap)


def _curves(report: Path, file: str, value: str, name: str) -> Iterator[_Drawn]:
    """A number over time, and by noise level at a few moments."""
    curve = [row for row in _rows(report / f"{file}.csv") if row[value]]
    if curve:
        figure = draw_curve(_thousands(curve), _column(curve, value), ylabel=value)
        yield _Drawn(value, figure, f"The {name}.")
    levels = _rows(report / f"{value}_by_level.csv")
    if levels:
        names = [row["sigma"] for row in levels]
        rows = list(zip(_thousands(levels), names, _column(levels, value), strict=True))
        text = f"The {name} by noise level, at a few moments."
        yield _Drawn(f"{value}-levels", draw_levels(rows, ylabel=value), text)


def _choice(params: Params, paths: Paths, measured: str) -> Iterator[_Drawn]:
    """How the checkpoint was chosen, and how well by the distances in the space ``measured``."""
    features = params.distill.selection.features
    seen = _rows(paths.report("distill") / "trajectory.csv")
    if seen:
        values = _column(seen, "proximal_frechet")
        at = choose(values, _column(seen, "proximal_frechet_standard_error"))
        title = title_of(_CRITERION, features)
        figure = draw_curve(_thousands(seen), values, ylabel=title, marks={"chosen": at})
        images = f"{int(seen[at]['images']):,}"
        text = (
            f"{title_of('proximal_frechet', features)} distance to held-out noisy images, in "
            f"{features} features. The last checkpoint within one standard error of the least "
            f"is the generator: that after {images} images."
        )
        yield _Drawn("choice", figure, text)
    study = [row for row in _rows(paths.report("evaluate") / "selection.csv") if row["frechet"]]
    if study:
        near, clean = _column(study, _CRITERION), _column(study, "frechet")
        figure = draw_agreement(
            near,
            clean,
            chosen=choose(near, _column(study, f"{_CRITERION}_standard_error")),
            xlabel=f"{title_of(_CRITERION, features)} ({features})",
            ylabel=f"{title_of('frechet', measured)} ({measured})",
        )
        text = (
            "One point for each checkpoint: its distance to held-out noisy images in "
            f"{features} features, which chose, against that to clean images in {measured} "
            "features, which the choice did not see."
        )
        yield _Drawn("agreement", figure, text)


def _inlined(drawn: Iterable[_Drawn]) -> list[tuple[Markup, str]]:
    """Figures as a page shows them, with their captions."""
    return [(inline(figure, name, text), text) for name, figure, text in drawn]


def _pictures(paths: Paths) -> dict[str, Markup]:
    evaluate = paths.report("evaluate")
    wanted = {
        "noise": (paths.report("corrupt") / "images.png", "training images"),
        "comparison": (evaluate / "comparison.png", "images of data, teacher, generator"),
        "progress": (evaluate / "progress.png", "the same latents over time"),
        "neighbours": (evaluate / "neighbours.png", "generated and training images"),
        "samples": (evaluate / "samples" / "generator.png", "images of the generator"),
    }
    return {name: embed(file, text) for name, (file, text) in wanted.items() if file.is_file()}


def _by_section(params: Params) -> dict[str, dict[str, object]]:
    """Parameters by dotted section."""
    sections: dict[str, dict[str, object]] = {}
    for key, value in flatten(params).items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = "null" if value is None else value
    return sections


def _stages(paths: Paths, seconds: float) -> list[dict[str, object]]:
    """When and as what each stage ran; the evaluation is not quite done."""
    locked = _locked(paths.root)
    found = {
        name: _read_json(paths.report(name) / "run.json") for name in STAGES if name != "evaluate"
    }
    rows = [
        (name, run.get("seconds"), run.get("run_id"), locked.get(f"data/{name}"))
        for name, run in found.items()
    ]
    keys = ("name", "seconds", "run", "hash")
    return [
        dict(zip(keys, row, strict=True)) for row in (*rows, ("evaluate", seconds, None, None))
    ]


def _locked(root: Path) -> dict[str, str]:
    """DVC's hashes of the stages' artifacts, as dvc.lock has them now."""
    file = root / "dvc.lock"
    stages = read_mapping(file)["stages"] if file.is_file() else {}
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return {out["path"]: out["md5"] for out in outs}


def _provenance(params: Params, paths: Paths) -> dict[str, str]:
    commit = commit_of(paths.root)
    changed = " with changes" if is_dirty(paths.root) else ""
    device = resolve_device(params.compute)
    name = f"{device.type}, {torch.get_num_threads()} threads"
    return {
        "commit": "none that git knows here" if commit is None else commit + changed,
        "device of the evaluation": (
            torch.cuda.get_device_name(device) if device.type == "cuda" else name
        ),
        **versions(),
    }


def _rows(file: Path) -> list[dict[str, str]]:
    return read_csv(file) if file.is_file() else []


def _thousands(rows: Sequence[Mapping[str, str]]) -> list[float]:
    return [count / 1000 for count in _column(rows, "images")]


def _column(rows: Sequence[Mapping[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _read_json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(file) if file.is_file() else {}
    return found
