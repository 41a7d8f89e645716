"""The numbers of ``reports/summary.json``: what is in them, and what they are called."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsd.errors import DataError

__all__ = ["LABELS", "distances", "feature_spaces", "read_summary", "title_of"]

LABELS = {
    "noisy_data": "noisy data",
    "teacher_full": "teacher, Full",
    "teacher_truncated": "teacher, Truncated",
    "teacher_truncated_exact": "teacher, Truncated at sigma",
    "generator": "one-step generator",
}
"""Whose images are measured, in the order of all tables, and what people call them."""

_TITLES = {
    "frechet": "Frechet to clean",
    "frechet_infinity": "the same for n to ∞",
    "proximal_frechet": "Proximal Frechet",
    "proximal_frechet_infinity": "Proximal for n to ∞",
    "heldout_proximal_frechet": "Proximal Frechet, held out",
    "kid": "KID",
}
# Only distances in Inception's features may be called FID.
_TITLES_INCEPTION = {name: title.replace("Frechet", "FID") for name, title in _TITLES.items()}


def title_of(measure: str, features: str) -> str:
    """The name of a measure in a feature space, for people."""
    titles = _TITLES_INCEPTION if features == "inception" else _TITLES
    return titles.get(measure, measure.replace("_", " "))


def read_summary(file: Path, shown: str) -> dict[str, Any]:
    """The content of a summary.

    Args:
        file: Where it is.
        shown: The file's name for people.

    Raises:
        DataError: There is none yet, or it cannot be read.
    """
    remedy = "run `dvc repro` to make it"
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(summary["generator"]["by_features"], dict):
            raise TypeError
    except FileNotFoundError as error:
        msg = f"{shown} does not exist yet; {remedy}"
        raise DataError(msg) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{shown} is not a summary of results; {remedy} again"
        raise DataError(msg) from error
    found: dict[str, Any] = summary
    return found


def feature_spaces(summary: Mapping[str, Any]) -> list[str]:
    """Names of the feature spaces in which the models were measured, the main one first."""
    return [*summary["generator"]["by_features"]]


def distances(summary: Mapping[str, Any], model: str, features: str) -> dict[str, float | None]:
    """All numbers of one model in one feature space; None where there are no clean images."""
    by_features: dict[str, dict[str, float | None]] = summary.get(model, {}).get("by_features", {})
    return by_features.get(features, {})
