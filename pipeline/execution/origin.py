"""The dependencies of a training's result: parameters, inputs and the library's code."""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, final

from pydantic import BaseModel, JsonValue, ValidationError

from dsd.utils.files import published
from pipeline.params.model import Params
from pipeline.params.reader import read_mapping

__all__ = ["Origin"]

_PROJECT = Path(__file__).parents[2]
_FILE = "origin.json"
_MOST_SHOWN = 5


@final
class Origin(BaseModel):
    """Dependencies of a training's result, kept beside its states."""

    workspace: Path
    """The workspace that trains; no result depends on it."""

    parameters: dict[str, JsonValue]
    """Sections of them, as in params.yaml."""

    inputs: dict[str, str]
    """Hash of each folder that is read, by its name."""

    code: dict[str, str]
    """Hash of each file of the library, by its path."""

    @classmethod
    def here(cls, stage: str, params: Params, root: Path, inputs: Mapping[str, str]) -> "Origin":
        """The origin of a training in the workspace ``root``, with the library as it is now.

        Parameters and code are those that dvc.yaml declares for the stage.
        """
        declared = read_mapping(_PROJECT / "dvc.yaml")["stages"][stage]
        values = params.model_dump(mode="json")
        return cls(
            workspace=root.resolve(),
            parameters={key: _value(values, key) for key in declared["params"]},
            inputs=dict(inputs),
            code=_code([dep for dep in declared["deps"] if dep.startswith("dsd/")]),
        )

    @classmethod
    def read(cls, folder: Path) -> "Origin | None":
        """The origin beside the states in ``folder``; None if it cannot be read."""
        try:
            return cls.model_validate_json((folder / _FILE).read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, folder: Path) -> None:
        """Write it beside the states in ``folder``."""
        with published(folder / _FILE) as file:
            file.write((self.model_dump_json(indent=1) + "\n").encode())

    @property
    def name(self) -> str:
        """A fingerprint of everything but the workspace."""
        parts = self.model_dump(mode="json", exclude={"workspace"})
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def changes_since(self, earlier: "Origin") -> str:
        """The differences from ``earlier``, in words."""
        old, new = dict(_leaves(earlier.parameters)), dict(_leaves(self.parameters))
        found = [
            f"{key} is {json.dumps(new.get(key))} and was {json.dumps(old.get(key))}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        for before, now in ((earlier.inputs, self.inputs), (earlier.code, self.code)):
            keys = sorted(before.keys() | now.keys())
            found += [f"{key} changed" for key in keys if before.get(key) != now.get(key)]
        more = len(found) - _MOST_SHOWN
        return ", ".join(found[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _leaves(values: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    """All values by dotted key."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(values: Mapping[str, Any], key: str) -> JsonValue:
    """The value of a dotted key."""
    found: Any = values
    for name in key.split("."):
        found = found[name]
    return cast(JsonValue, found)


def _code(folders: Sequence[str]) -> dict[str, str]:
    """Hash of the syntax tree of each file, whatever its comments and layout."""
    return {
        source.relative_to(_PROJECT).as_posix(): _digest(source)
        for folder in folders
        for source in sorted((_PROJECT / folder).rglob("*.py"))
    }


def _digest(source: Path) -> str:
    tree = _WithoutWords().visit(ast.parse(source.read_bytes()))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


class _WithoutWords(ast.NodeTransformer):
    """Drops docstrings, which are strings that stand alone; comments are in no tree."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        words = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if words else node
