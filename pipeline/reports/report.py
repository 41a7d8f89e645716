"""The report: one page about one run of the whole pipeline, from what its stages wrote.

``python -m pipeline evaluate`` writes it when the stage is done. No stage depends on this module:
a better sentence must not repeat an evaluation.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from dsd.utils.files import read_json, write_json
from pipeline.execution.device import resolve_device
from pipeline.params.differences import changed, run_name
from pipeline.params.model import Params
from pipeline.params.reader import flatten, leaves, read_mapping
from pipeline.reports.choice import Drawn, column, draw_choice, rows_of, study_of, thousands
from pipeline.reports.figures import draw_curve, draw_levels
from pipeline.reports.metric_table import make_table
from pipeline.reports.page import as_number, embed, inline, write_page
from pipeline.reports.summary import LABELS, distances, feature_spaces, read_summary, title_of
from pipeline.reports.verdict import problems
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import read_csv
from pipeline.stages import STAGES
from pipeline.tracking.headline import best_teacher, short_headlines
from pipeline.tracking.provenance import commit_of, is_dirty, versions

__all__ = ["write_report"]

_HEALTHY = {
    "loss": "A healthy one falls steeply in the first tenth, then slowly, and does not rise.",
    "gap": "A healthy one falls over most of the training; what rises for long, or jumps, is not.",
}
"""What a reader compares a curve with."""


def write_report(params: Params, paths: Paths, *, seconds: float) -> None:
    """Write ``reports/report.html``, and ``reports/metrics.json``, the numbers that DVC shows.

    Args:
        params: All parameters of the run.
        paths: A workspace in which all stages have run.
        seconds: How long the evaluation took.

    Raises:
        DataError: There is no summary, or it cannot be read.
    """
    summary = read_summary(paths.summary, paths.summary.name)
    write_json(paths.metrics, short_headlines(summary))
    features, flat = feature_spaces(summary), flatten(params)
    losses = rows_of(paths.report("pretrain") / "loss.csv")
    trajectory = rows_of(paths.report("distill") / "trajectory.csv")
    write_page(
        paths.report_page,
        "report.html.j2",
        title=f"One-step generator from images with noise {_level(summary)}",
        name=run_name(flat),
        date=_date(paths.summary),
        code=_code(paths.root),
        differences=changed(flat),
        problems=problems(summary, column(losses, "loss"), trajectory),
        params=params,
        tiles=_tiles(summary),
        tables=[make_table(summary, name) for name in features],
        protocol=leaves(summary["protocol"]),
        memorisation=summary.get("memorisation", {}),
        training=_inlined(_training(paths)),
        choice=_inlined(draw_choice(params, paths, features[0])),
        study=study_of(summary, title_of("frechet", features[0])),
        pictures=_pictures(paths),
        noise=_read_json(paths.report("corrupt") / "noise.json"),
        sections=_by_section(params),
        stages=_stages(paths, seconds),
        provenance=_provenance(params, paths),
    )


def _date(file: Path) -> str:
    """When the evaluation wrote its summary."""
    return f"{datetime.fromtimestamp(file.stat().st_mtime, UTC):%Y-%m-%d %H:%M} UTC"


def _code(root: Path) -> str:
    """The commit, and whether the code is that of it."""
    commit = commit_of(root)
    if commit is None:
        return "no commit that git knows here"
    return f"commit {commit[:10]}" + (" with uncommitted changes" if is_dirty(root) else "")


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
    best = best_teacher(summary, measure)
    names = ["generator", *([best[0]] if best else []), *(["noisy_data"] if clean else [])]
    tiles: list[dict[str, object]] = [
        {
            "value": _value(summary, name, measure, features),
            "label": LABELS[name],
            "what": f"{title_of(measure, features)}, {features}",
        }
        for name in names
    ]
    calls = ""
    if best is not None:
        tiles[1]["label"] = f"best teacher sampler: {LABELS[best[0]].removeprefix('teacher, ')}"
        calls = f"teacher: {summary[best[0]]['evaluations']} evaluations"
    return [*tiles, {"value": "1", "label": "step for an image", "what": calls}]


def _value(summary: Mapping[str, Any], model: str, measure: str, features: str) -> str:
    error = distances(summary, model, features).get(f"{measure}_standard_error")
    return as_number(summary[model][measure], error)


def _training(paths: Paths) -> Iterator[Drawn]:
    """Curves of both training stages."""
    yield from _curves(paths.report("pretrain"), "loss", "loss", "loss of the teacher")
    gap = "gap between teacher and fake denoiser"
    yield from _curves(paths.report("distill"), "trajectory", "gap", gap)


def _curves(report: Path, file: str, value: str, name: str) -> Iterator[Drawn]:
    """A number over time, and by noise level at a few moments."""
    curve = [row for row in rows_of(report / f"{file}.csv") if row[value]]
    if curve:
        seen, values = thousands(curve), column(curve, value)
        figure = draw_curve(seen, values, ylabel=value, healthy=_healthy(value, seen, values))
        yield Drawn(value, figure, f"The {name}. {_HEALTHY[value]}")
    levels = rows_of(report / f"{value}_by_level.csv")
    if levels:
        names = [row["sigma"] for row in levels]
        rows = list(zip(thousands(levels), names, column(levels, value), strict=True))
        text = f"The {name} by noise level, at a few moments."
        yield Drawn(f"{value}-levels", draw_levels(rows, ylabel=value), text)


def _healthy(
    curve: str, seen: Sequence[float], values: Sequence[float]
) -> tuple[list[float], list[float]] | None:
    """The curve of a good training, as long as this one and with the same first number."""
    known = read_csv(Path(__file__).with_name("healthy.csv"))
    rows = [row for row in known if row["curve"] == curve]
    if len(seen) < 2 or values[0] <= 0:
        return None
    start, length = seen[0], seen[-1] - seen[0]
    return (
        [start + length * float(row["part"]) for row in rows],
        [values[0] * float(row["ratio"]) for row in rows],
    )


def _inlined(drawn: Iterable[Drawn]) -> list[tuple[Markup, str]]:
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
    device = resolve_device(params.compute)
    name = f"{device.type}, {torch.get_num_threads()} threads"
    return {
        "commit": "none that git knows here" if commit is None else commit,
        "device of the evaluation": (
            torch.cuda.get_device_name(device) if device.type == "cuda" else name
        ),
        **versions(),
    }


def _read_json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(file) if file.is_file() else {}
    return found
