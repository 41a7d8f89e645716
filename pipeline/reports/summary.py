"""The numbers of ``reports/summary.json``: what is in them, and what they are called."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final

from pydantic import BaseModel, ConfigDict, ValidationError

from dsd.features.config import INCEPTION_SPACES
from dsd.utils.errors import DataError, one_line

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
    "frechet_published": "Frechet to published statistics",
    "proximal_frechet": "Proximal Frechet",
    "proximal_frechet_infinity": "Proximal for n to ∞",
    "heldout_proximal_frechet": "Proximal Frechet, held out",
    "kid": "KID",
}
# Only distances in Inception's features may be called FID.
_TITLES_INCEPTION = {name: title.replace("Frechet", "FID") for name, title in _TITLES.items()}


class _Part(BaseModel):
    """Base of all parts: numbers are finite numbers, not text."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Distances(_Part):
    frechet: float | None = None
    proximal_frechet: float | None = None


class _Measured(_Distances):
    by_features: dict[str, _Distances]


_ABSENT = _Measured(by_features={})


class _Protocol(_Part):
    features: str
    extractors: dict[str, str]
    seed: int
    sigma: float | Literal["auto"]
    sigma_hat: float


@final
class _Summary(_Part):
    """All that is read of a summary; there may be more in it."""

    generator: _Measured
    noisy_data: _Measured = _ABSENT
    teacher_full: _Measured = _ABSENT
    teacher_truncated: _Measured = _ABSENT
    teacher_truncated_exact: _Measured = _ABSENT
    protocol: _Protocol


def title_of(measure: str, features: str) -> str:
    """The name of a measure in a feature space, for people."""
    titles = _TITLES_INCEPTION if features in INCEPTION_SPACES else _TITLES
    return titles.get(measure, measure.replace("_", " "))


def read_summary(file: Path, shown: str) -> dict[str, Any]:
    """The content of a summary; ``shown`` is the file's name for people.

    Raises:
        DataError: There is none yet, or it cannot be read.
    """
    remedy = "run `dvc repro` to make it"
    try:
        content = file.read_bytes()
        _Summary.model_validate_json(content)
        found: dict[str, Any] = json.loads(content)
    except FileNotFoundError as error:
        msg = f"{shown} does not exist yet; {remedy}"
        raise DataError(msg) from error
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        msg = f"{shown} is not a summary of results ({one_line(reason)}); {remedy} again"
        raise DataError(msg) from error
    except OSError as error:
        msg = f"{shown} cannot be read ({error.strerror}); {remedy} again"
        raise DataError(msg) from error
    return found


def feature_spaces(summary: Mapping[str, Any]) -> list[str]:
    """Names of the feature spaces in which the models were measured, the main one first."""
    return [*summary["generator"]["by_features"]]


def distances(summary: Mapping[str, Any], model: str, features: str) -> dict[str, float | None]:
    """All numbers of one model in one feature space; None where there are no clean images."""
    by_features: dict[str, dict[str, float | None]] = summary.get(model, {}).get("by_features", {})
    return by_features.get(features, {})
