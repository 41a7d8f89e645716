"""The dozen numbers by which runs are compared; ``reports/summary.json`` has all others.

MLflow shows them under their whole names, DVC under the short ones (``reports/metrics.json``).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = [
    "HEADLINES",
    "TEACHERS",
    "Headline",
    "best_teacher",
    "headlines",
    "not_improved",
    "short_headlines",
]

TEACHERS = ("teacher_full", "teacher_truncated", "teacher_truncated_exact")
"""Ways to sample the teacher, by their names in the summary."""


class Headline(NamedTuple):
    """One number."""

    name: str
    """Group and name."""

    better: str
    """Which direction is better."""

    meaning: str
    """What it measures, with its unit."""

    short: str | None = None
    """Name in DVC's tables, of a number that is in them."""


HEADLINES = (
    Headline(
        "generator/frechet",
        "smaller",
        "Frechet distance of the generator's images to clean ones",
        "frechet",
    ),
    Headline(
        "generator/gain_percent",
        "larger",
        "by how many percent the generator is nearer than its teacher's best sampler: to clean "
        "images, or by Proximal distance where there are none",
        "gain",
    ),
    Headline("generator/kid", "smaller", "kernel distance to clean images"),
    Headline("generator/precision", "larger", "share of generated images among real ones, 0 to 1"),
    Headline(
        "generator/recall", "larger", "share of real images that are reached, 0 to 1", "recall"
    ),
    Headline(
        "teacher_full/frechet",
        "smaller",
        "the same distance of the teacher's samples, Full",
        "full",
    ),
    Headline(
        "teacher_truncated/frechet",
        "smaller",
        "the same of the teacher's samples, Truncated",
        "truncated",
    ),
    Headline("noisy_data/frechet", "smaller", "the same of the noisy data", "noisy"),
    Headline(
        "proximal/generator",
        "smaller",
        "Proximal Frechet distance of the generator to the noisy data, without clean images",
        "proximal",
    ),
    Headline("proximal/teacher_full", "smaller", "the same of the teacher's samples, Full"),
    Headline("proximal/teacher_truncated", "smaller", "the same of the teacher's, Truncated"),
    Headline(
        "proximal/heldout",
        "smaller",
        "distance to held-out noisy images, in the features that chose, measured again",
    ),
    Headline(
        "memorisation/p_value", "larger", "below 0.01: training images are matched too often"
    ),
)
"""All of them; ``docs/metrics.md`` has the same table."""


def headlines(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that a summary has, by name, in the main feature space."""
    features = summary["protocol"].get("features")

    def measured(model: str) -> dict[str, Any]:
        row = summary.get(model, {})
        return {**row, **row.get("by_features", {}).get(features, {})}

    models = ("generator", *TEACHERS, "noisy_data")
    found: dict[str, Any] = {
        f"{model}/{name}": value for model in models for name, value in measured(model).items()
    }
    found |= {f"proximal/{model}": measured(model).get("proximal_frechet") for model in models}
    again = summary.get("selection", {}).get("again", {})
    found["proximal/heldout"] = again.get("heldout_proximal_frechet")
    found["memorisation/p_value"] = summary.get("memorisation", {}).get("p_value")
    found["generator/gain_percent"] = _gain(summary)
    return {
        one.name: float(found[one.name])
        for one in HEADLINES
        if type(found.get(one.name)) in (int, float)
    }


def short_headlines(summary: Mapping[str, Any]) -> dict[str, float]:
    """What DVC shows, with four digits that count; more do not fit a terminal."""
    found = headlines(summary)
    return {
        one.short: float(f"{found[one.name]:.4g}")
        for one in HEADLINES
        if one.short is not None and one.name in found
    }


def best_teacher(summary: Mapping[str, Any], measure: str) -> tuple[str, float] | None:
    """The teacher's sampler with the smallest distance ``measure``; None where none has one."""
    values = {name: summary.get(name, {}).get(measure) for name in TEACHERS}
    known = {name: float(value) for name, value in values.items() if value is not None}
    return min(known.items(), key=lambda item: item[1]) if known else None


def not_improved(summary: Mapping[str, Any]) -> list[str]:
    """The measures by which the generator is not better than its teacher's best sampler."""
    found = []
    for measure in ("frechet", "proximal_frechet"):
        ours, best = summary["generator"].get(measure), best_teacher(summary, measure)
        if ours is not None and best is not None and ours >= best[1]:
            found.append(measure)
    return found


def _gain(summary: Mapping[str, Any]) -> float | None:
    for measure in ("frechet", "proximal_frechet"):
        ours, best = summary["generator"].get(measure), best_teacher(summary, measure)
        if ours is not None and best is not None and best[1] > 0:
            return float(100 * (1 - ours / best[1]))
    return None
