"""Runs side by side: which numbers compare, which runs differ only by chance, and what that gives.

Runs that differ in nothing but seed and noise level form one line of the figure; their spread over
seeds is its uncertainty.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.params.differences import IMMATERIAL, level_of, value_name
from pipeline.params.reader import leaves
from pipeline.reports.summary import LABELS, distances, feature_spaces
from pipeline.tracking.provenance import NOT_PROTOCOL, protocol_id

__all__ = [
    "MEASURES",
    "Group",
    "Line",
    "Point",
    "Run",
    "differing",
    "groups_of",
    "lines_of",
    "shared_spaces",
    "title_of_run",
    "variant_of",
]

MEASURES = ("frechet", "proximal_frechet")
"""What the figures show, the distance to clean images first."""

_FREE = {*NOT_PROTOCOL, "sigma", "sigma_hat", "noisy_sha256", "features"}
"""What may differ in the protocols of compared runs; extractors are looked at one by one."""

_UPSTREAM = {
    "noisy_data": ("data.", "corrupt."),
    "teacher": ("data.", "corrupt.", "network.", "pretrain.", "evaluate."),
    "generator": ("data.", "corrupt.", "network.", "pretrain.", "distill."),
}
"""Sections of parameters that a model depends on, by the beginning of its name."""


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
    def extractors(self) -> dict[str, str]:
        """How each feature space was computed in which the models were measured."""
        known = self.summary["protocol"]["extractors"]
        return {name: known.get(name, "") for name in feature_spaces(self.summary)}

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
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.params.items():  # those that a run of an older version has
            values.setdefault(key, set()).add(value)
    return [
        key for key, found in values.items() if len(found) > 1 and not key.startswith(IMMATERIAL)
    ]


def title_of_run(run: Run, keys: Sequence[str]) -> str:
    """Name a run by what differs among those that are compared.

    Args:
        run: One of them.
        keys: What :func:`differing` found.
    """
    others = [key for key in keys if key not in ("corrupt.sigma", "corrupt.sigma_hat")]
    words = [value_name(key, run.params.get(key, "-")) for key in others]
    return ", ".join([level_of(run.params), *words])


def variant_of(run: Run, model: str, keys: Sequence[str]) -> str:
    """What distinguishes this run's model from others besides seed and noise level."""
    sections = next(value for name, value in _UPSTREAM.items() if model.startswith(name))
    wanted = [key for key in keys if key.startswith(sections) and key != "corrupt.sigma"]
    return ", ".join(value_name(key, run.params.get(key, "-")) for key in wanted)


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
    """Feature spaces in which all runs were measured alike, in the first run's order."""
    measured = [run.extractors for run in runs]
    return [
        name
        for name, protocol in measured[0].items()
        if all(others.get(name) == protocol for others in measured)
    ]


@dataclass(frozen=True)
class Group:
    """Runs that were measured alike, so that their numbers compare."""

    runs: list[Run]

    @property
    def protocol(self) -> str:
        """The id by which a person chooses the group."""
        fixed = _fixed(self.runs[0])
        spaces = {name: self.runs[0].extractors[name] for name in shared_spaces(self.runs)}
        return protocol_id({**fixed, **spaces})[:6]

    def difference(self, other: "Group") -> str:
        """The first field in which another group's protocol differs, with both values."""
        here, there = self.runs[0], other.runs[0]
        if _fixed(here) != _fixed(there):
            return _first_difference(_fixed(here), _fixed(there))
        common = [name for name in here.extractors if name in there.extractors]
        if not common:
            return "no feature space in common"
        ours, theirs = ({name: run.extractors[name] for name in common} for run in (here, there))
        return _first_difference(ours, theirs)


def _first_difference(here: Mapping[str, object], there: Mapping[str, object]) -> str:
    key = next(key for key in {**here, **there} if here.get(key) != there.get(key))
    return f"{key} {there.get(key)} and not {here.get(key)}"


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """Runs by protocol, the largest group first, of equal ones that with the newest run.

    Runs are alike if all fields are but those that may differ, and they have a feature space in
    common. ``runs`` are at least one, the oldest first.
    """
    groups: list[Group] = []
    for run in runs:
        for group in groups:
            if _fixed(group.runs[0]) == _fixed(run) and shared_spaces([*group.runs, run]):
                group.runs.append(run)
                break
        else:
            groups.append(Group([run]))
    newest = {id(run): at for at, run in enumerate(runs)}
    return sorted(groups, key=lambda one: (-len(one.runs), -newest[id(one.runs[-1])]))


def _fixed(run: Run) -> dict[str, object]:
    """All that must be equal besides the extractors of the features."""
    protocol = run.summary["protocol"]
    return leaves({name: value for name, value in protocol.items() if name not in _FREE})
