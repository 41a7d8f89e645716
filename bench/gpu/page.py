"""The result of ``python -m bench.gpu`` as a page: each figure beside what is aimed at."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bench.common import markdown
from bench.gpu.worker import Figures

__all__ = ["render"]


class _Target(NamedTuple):
    """A bound of a figure, or of its ratio to the same figure of another row."""

    row: str
    figure: str
    aim: float
    of: str = ""

    most: bool = False
    """Whether the figure may be at most that; otherwise at least."""


_TEACHER, _DISTILLATION = "paper: teacher, bfloat16", "paper: distillation, bfloat16"
_RATE, _MEMORY = "images_per_second", "peak_gib"

TARGETS = (
    _Target(_TEACHER, _RATE, 3000),
    _Target(_TEACHER, _RATE, 8, of="paper: EDM, float32"),
    _Target(_TEACHER, _MEMORY, 20, most=True),
    _Target("paper: teacher, float32", _RATE, 1.2, of="paper: EDM, float32"),
    _Target("paper: teacher, bfloat16, checkpointing", _MEMORY, 8, most=True),
    _Target(_TEACHER, "first_call_s", 60, most=True),
    _Target("paper: teacher, bfloat16, again", "first_call_s", 10, most=True),
    _Target(_DISTILLATION, _RATE, 900),
    _Target(_DISTILLATION, _RATE, 8, of="paper: SiD, float32"),
    _Target(_DISTILLATION, _MEMORY, 30, most=True),
    _Target("paper: distillation, bfloat16, checkpointing", _MEMORY, 8, most=True),
    _Target("default: teacher, bfloat16", _RATE, 40_000),
    _Target("default: distillation, bfloat16", _RATE, 10_000),
    _Target("paper: one step, bfloat16", _RATE, 10_000),
    _Target("paper: Heun 18, bfloat16", _RATE, 280),
    _Target("stage pretrain", "s", 300, most=True),
    _Target("stage distill", "s", 300, most=True),
)


def render(document: Mapping[str, Any]) -> str:
    """The page of a document, whose parts may be missing."""
    machine = document["machine"]
    versions = machine["versions"]
    rows = {name: row for part in document["parts"].values() for name, row in part.items()}
    lines = [
        f"# {machine['gpu'] or machine['processor']}",
        "",
        f"`{document['command']}` at commit `{document['commit']}`"
        f"{' with changes' if document['dirty'] else ''}, {document['date']}: torch "
        f"{versions['torch']}, CUDA {machine['cuda']}, Python {machine['python']}, "
        f"{machine['cores']} cores, seed 0, {document['seconds']:.0f} s in all.",
        "",
        "## Targets",
        "",
        _targets(rows),
    ]
    for part, found in document["parts"].items():
        lines += [f"## Part {part}", "", _table(found)]
    return "\n".join(lines)


def _targets(rows: Mapping[str, Figures]) -> str:
    cells = []
    for target in TARGETS:
        relation = f"{'<=' if target.most else '>='} {target.aim:,g}"
        aimed = f"{relation} x {target.of}" if target.of else relation
        found, verdict = "not measured", ""
        with_figures = [rows.get(name, {}) for name in (target.row, target.of) if name]
        values = [row.get(target.figure) for row in with_figures]
        if None not in values:
            value = values[0] / values[1] if target.of else values[0]
            found = f"{value:,.4g}"
            met = value <= target.aim if target.most else value >= target.aim
            verdict = "yes" if met else "no"
        cells.append((target.row, target.figure, aimed, found, verdict))
    return markdown(("row", "figure", "aim", "measured", "met"), cells)


def _table(rows: Mapping[str, Figures]) -> str:
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    show: Callable[[object], str] = _shown
    cells = [[title, *(show(row.get(name)) for name in names)] for title, row in rows.items()]
    return markdown(("", *names), cells)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    return "" if value is None else str(value).replace("|", "/")
