"""Compare the locked packages with published advisories, without a network.

``advisories.toml`` beside this file lists them. Run ``python -m bench.quality.audit``; it ends
with 1 if a package of ``requirements.lock``, or the oldest release that ``pyproject.toml`` allows,
has a known hole for which there is a better release.
"""

import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

__all__ = ["Advisory", "allowed_from", "audit", "locked", "main", "read_advisories"]

from sandbox import ROOT

ADVISORIES = Path(__file__).with_name("advisories.toml")


@dataclass(frozen=True)
class Advisory:
    """One published hole."""

    package: str
    id: str
    what: str
    """What it lets others do."""

    source: str
    """Where it is published."""

    fixed: str | None = None
    """The first release without it."""

    accepted: str | None = None
    """Why a package without such a release may stay."""

    def complaint(self, version: str, where: str) -> str | None:
        """What is wrong with that version, with the remedy."""
        if self.fixed is None or Version(version) >= Version(self.fixed):
            return None
        return (
            f"{where} has {self.package} {version}: {self.what} ({self.id}); "
            f"take {self.fixed} or later"
        )


def read_advisories(file: Path = ADVISORIES) -> list[Advisory]:
    """All entries of the list.

    Raises:
        ValueError: An entry names neither a release that mends it nor a reason to accept it.
    """
    entries = tomllib.loads(file.read_text(encoding="utf-8"))["advisory"]
    advisories = [Advisory(**entry) for entry in entries]
    for advisory in advisories:
        if (advisory.fixed is None) == (advisory.accepted is None):
            msg = f"{file.name}: {advisory.id} needs either `fixed` or `accepted`"
            raise ValueError(msg)
    return advisories


def locked(text: str) -> dict[str, str]:
    """Versions by name in the text of a lock file."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    exact = (Requirement(line) for line in lines if line)
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in exact}


def allowed_from(requirements: Iterable[str]) -> dict[str, str]:
    """The oldest release that each requirement with a lower bound allows, by name."""
    found = {}
    for requirement in map(Requirement, requirements):
        bounds = [one.version for one in requirement.specifier if one.operator in {">=", "=="}]
        found.update({canonicalize_name(requirement.name): bound for bound in bounds})
    return found


def audit(advisories: Sequence[Advisory], versions: Mapping[str, str], where: str) -> list[str]:
    """One line for each advisory that one of the versions has; ``where`` names their file."""
    complaints = (
        advisory.complaint(versions[advisory.package], where)
        for advisory in advisories
        if advisory.package in versions
    )
    return [complaint for complaint in complaints if complaint is not None]


def main() -> int:
    """Print what was found; 1 if anything was."""
    advisories = read_advisories()
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["features"],
        *project["dependency-groups"]["pipeline"],
    ]
    found = [
        *audit(advisories, locked(lock), "requirements.lock"),
        *audit(advisories, allowed_from(wanted), "pyproject.toml"),
    ]
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    for advisory in advisories:
        if advisory.accepted is not None:
            print(f"known: {advisory.package}, {advisory.id}: {advisory.accepted}")
    print(f"{len(advisories)} advisories, {len(found)} open")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
