"""Runs side by side: which numbers compare, which runs differ only by chance, and what that gives.

Runs that differ in nothing but seed and noise level form one line of the figure; their spread over
seeds is its uncertainty.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd.utils.errors import DataError
from pipeline.params.reader import leaves
from pipeline.reports.summary import LABELS, distances, feature_spaces
from pipeline.tracking.provenance import NOT_PROTOCOL, protocol_id

__all__ = [
    "MEASURES",
    "Line",
    "Point",
    "Run",
    "differing",
    "lines_of",
    "one_protocol",
    "shared_spaces",
    "variant_of",
]

MEASURES = ("frechet", "proximal_frechet")
"""What the figures show, the distance to clean images first."""

_FREE = {*NOT_PROTOCOL, "sigma", "sigma_hat", "noisy_sha256", "features"}
"""What may differ in the protocols of compared runs; extractors are looked at one by one."""

_IMMATERIAL = (
    "compute.",
    "run.",
    "corrupt.workers",
    "data.shard_size",
    "evaluate.features",
    "evaluate.inception_statistics",
    "evaluate.inception_weights",
    "pretrain.sample_every_kimg",
)
"""Parameters that change no image."""

_UPSTREAM = {
    "noisy_data": ("data.", "corrupt."),
    "teacher": ("data.", "corrupt.", "network.", "pretrain.", "evaluate."),
    "generator": ("data.", "corrupt.", "network.", "pretrain.", "distill."),
}
"""Sections of parameters that a model depends on, by the beginning of its name."""

_NAMED = 3
"""Runs that a message names of each group."""


@dataclass(frozen=True)
class Run:
    """One evaluated run: a folder or the beginning of an MLflow run's id, and what it left.

    ``params`` are text by dotted key; ``picture`` shows the generator's images, if they were kept.
    """

    name: str
    params: dict[str, str]
    summary: dict[str, Any]
    picture: Path | None

    @property
    def seed(self) -> str:
        """The seed of everything."""
        return self.params["seed"]

    @property
    def sigma(self) -> float:
        """The noise level: as given, or as estimated where it was not known."""
        given = self.params["corrupt.sigma"]
        return float(self.summary["protocol"]["sigma_hat"] if given == "auto" else given)


@dataclass(frozen=True)
class Point:
    """Mean and standard deviation (None for one run) over the seeds at one noise level."""

    sigma: float
    mean: float
    spread: float | None
    runs: int


@dataclass(frozen=True)
class Line:
    """One model under one set of parameters, over noise levels."""

    model: str
    variant: str
    points: list[Point]

    @property
    def label(self) -> str:
        """For the legend."""
        return LABELS[self.model] + (f" ({self.variant})" if self.variant else "")


def differing(runs: Sequence[Run]) -> list[str]:
    """Parameters that are not the same in all runs and matter, in the order of the file."""
    keys = dict.fromkeys(key for run in runs for key in run.params)
    return [
        key
        for key in keys
        if not key.startswith(_IMMATERIAL) and len({run.params.get(key) for run in runs}) > 1
    ]


def variant_of(run: Run, model: str, keys: Sequence[str]) -> str:
    """What distinguishes this run's model from others besides seed and noise level."""
    sections = next(value for name, value in _UPSTREAM.items() if model.startswith(name))
    wanted = [key for key in keys if key.startswith(sections) and key != "corrupt.sigma"]
    return ", ".join(_named(key, run.params.get(key, "-")) for key in wanted)


def _named(key: str, value: str) -> str:
    """A word as it is, a number with its key."""
    is_word = value.isalpha() and value not in ("null", "auto", "none")
    return value if is_word else f"{key.rpartition('.')[2]} {value}"


def lines_of(runs: Sequence[Run], features: str, measure: str) -> list[Line]:
    """All lines of the figure of one measure (of ``MEASURES``) in one feature space."""
    keys = differing(runs)
    # By seed too: runs that share a teacher must not count its number twice.
    values: dict[tuple[str, str], dict[float, dict[str, float]]] = {}
    for model in LABELS:
        for run in runs:
            value = distances(run.summary, model, features).get(measure)
            if value is not None:
                line = values.setdefault((model, variant_of(run, model, keys)), {})
                line.setdefault(run.sigma, {})[run.seed] = value
    return [
        Line(model, variant, [_point(sigma, at[sigma]) for sigma in sorted(at)])
        for model in LABELS
        for (owner, variant), at in sorted(values.items())
        if owner == model
    ]


def _point(sigma: float, by_seed: Mapping[str, float]) -> Point:
    values = [*by_seed.values()]
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Point(sigma, statistics.fmean(values), spread, len(values))


def shared_spaces(runs: Sequence[Run]) -> list[str]:
    """Feature spaces in which all runs were measured, in the first run's order."""
    spaces = [feature_spaces(run.summary) for run in runs]
    return [name for name in spaces[0] if all(name in others for others in spaces)]


def one_protocol(runs: Sequence[Run], wanted: str | None) -> list[Run]:
    """The runs whose numbers compare.

    Args:
        runs: At least one.
        wanted: The id of the protocol to keep; None if there is only one.

    Raises:
        DataError: Runs were measured in different ways, or none in the way ``wanted``.
    """
    spaces = shared_spaces(runs)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(protocol_id(_protocol(run, spaces))[:6], []).append(run)
    if wanted is not None and wanted in groups:
        return groups[wanted]
    choices = "; ".join(f"protocol={name} ({_names(group)})" for name, group in groups.items())
    if wanted is not None:
        msg = f"no run was measured as protocol={wanted}; there are {choices}"
        raise DataError(msg)
    if len(groups) > 1:
        first, other, *_ = groups.values()
        msg = (
            f"these runs were not measured alike, so their numbers do not compare: "
            f"{_difference(first[0], other[0], spaces)}. Name runs that go together, or add one "
            f"of {choices}"
        )
        raise DataError(msg)
    if not spaces:
        msg = f"{_names(runs)} have no feature space in common; name runs that have"
        raise DataError(msg)
    return [*runs]


def _protocol(run: Run, spaces: Sequence[str]) -> dict[str, object]:
    """All that must be equal."""
    protocol = run.summary["protocol"]
    fixed = {name: value for name, value in protocol.items() if name not in _FREE}
    return {**leaves(fixed), **{name: protocol["extractors"].get(name) for name in spaces}}


def _difference(one: Run, other: Run, spaces: Sequence[str]) -> str:
    """The first field in which two runs' protocols differ."""
    here, there = (_protocol(run, spaces) for run in (one, other))
    field = next(key for key in {**here, **there} if here.get(key) != there.get(key))
    return f"{field} is {here.get(field)} in {one.name} and {there.get(field)} in {other.name}"


def _names(runs: Sequence[Run]) -> str:
    names = ", ".join(run.name for run in runs[:_NAMED])
    rest = len(runs) - _NAMED
    return f"{names} and {rest} more" if rest > 0 else names
