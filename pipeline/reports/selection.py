"""Which runs ``python -m pipeline compare`` shows, from the words that a person gives it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

from dsd.utils.errors import DataError, ParamsError
from pipeline.params.differences import as_text

if TYPE_CHECKING:
    from pipeline.tracking.evaluations import Evaluation

__all__ = ["Selection", "parse_selection"]

_SHOWN = 6
"""Names that a message lists."""


@final
@dataclass
class Selection:
    """Runs in folders, and those of MLflow that all of the other words choose."""

    folders: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Beginnings of ids, parts of names, or DVC experiments; a run has one of them."""

    values: dict[str, str] = field(default_factory=dict)
    """Tags or parameters and their values; a run has all of them."""

    protocol: str | None = None
    last: int | None = None

    def of(self, runs: Sequence["Evaluation"]) -> list["Evaluation"]:
        """The runs that are chosen.

        Raises:
            DataError: A name or a value belongs to none.
        """
        if not runs:
            msg = "MLflow has no finished evaluation yet; run `dvc repro`, or name folders of runs"
            raise DataError(msg)
        for name in self.names:
            if not any(_is_named(run, name) for run in runs):
                msg = (
                    f"{name!r} is no folder, and no finished evaluation in MLflow is called so. "
                    f"There are {_listed(runs)}"
                )
                raise DataError(msg)
        chosen = [
            run
            for run in runs
            if not self.names or any(_is_named(run, name) for name in self.names)
        ]
        for key, value in self.values.items():
            chosen = [run for run in chosen if _has(run, key, value)]
            if not chosen:
                msg = f"{key}={value}: no such run among {_listed(runs)}; choose another value"
                raise DataError(msg)
        return chosen


def parse_selection(words: Sequence[str]) -> Selection:
    """Read the words.

    Args:
        words: Folders; beginnings of MLflow runs' ids, parts of their names, or names of DVC
            experiments; ``KEY=VALUE`` of a tag or a parameter (its last part will do); ``last=N``
            for the newest runs; ``protocol=ID``.

    Raises:
        ParamsError: A choice is made twice, or ``last`` is no positive number.
    """
    found = Selection()
    for word in words:
        key, sign, value = word.partition("=")
        if Path(word).is_dir():
            found.folders.append(Path(word))
        elif not sign:
            found.names.append(word)
        elif key in found.values or (getattr(found, key, None) is not None and key in _ONCE):
            msg = f"{word}: {key} is given twice. Give it once"
            raise ParamsError(msg)
        elif key == "protocol":
            found.protocol = value
        elif key == "last":
            if not (value.isdecimal() and int(value) > 0):
                msg = f"{word}: not a number of runs. Write for example last=5"
                raise ParamsError(msg)
            found.last = int(value)
        else:
            found.values[key] = value
    return found


_ONCE = ("protocol", "last")


def _is_named(run: "Evaluation", name: str) -> bool:
    return (
        run.run_id.startswith(name)
        or name.lower() in run.name.lower()
        or run.tags.get("dvc.exp") == name
    )


def _has(run: "Evaluation", key: str, value: str) -> bool:
    if run.tags.get(key) == value:
        return True
    (wanted,) = as_text({key: value}).values()
    return any(
        text == wanted and (name == key or name.endswith(f".{key}"))
        for name, text in as_text(run.params).items()
    )


def _listed(runs: Sequence["Evaluation"]) -> str:
    names = [*dict.fromkeys(f"{run.name!r} ({run.run_id[:8]})" for run in reversed(runs))]
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
