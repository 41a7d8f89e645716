"""The manual of ``params.yaml``: ``python -m pipeline.params.docs`` writes ``docs/params.md``."""

from pathlib import Path
from textwrap import fill

from dsd.utils.files import published
from pipeline.params.schema import Key, all_keys, describe_value

__all__ = ["main", "render"]

_FRAME = Path(__file__).with_name("manual.txt")
"""The page around the tables of keys, which stand in place of its line KEYS."""


def render() -> str:
    """The whole page."""
    sections: dict[str, list[str]] = {"": []}
    for key in all_keys().values():
        if key.schema is None:
            sections[key.name] = []
        else:
            sections[key.name.rpartition(".")[0]].append(_row(key))
    parts = ["\n".join([*_heading(name), *rows]) for name, rows in sections.items()]
    return _FRAME.read_text(encoding="utf-8").replace("\nKEYS\n", "\n" + "\n\n".join(parts) + "\n")


def _heading(section: str) -> list[str]:
    table = ["| key | value | meaning |", "|---|---|---|"]
    if not section:
        return ["## At the top", "", *table]
    text = fill(_flat(all_keys()[section].text), 99, break_on_hyphens=False)
    return [f"## {section}", "", text, "", *table]


def _row(key: Key) -> str:
    assert key.schema is not None
    allowed = describe_value(key.schema).replace("|", "\\|")
    return f"| `{key.name}` | {allowed} | {_flat(key.text)} |"


def _flat(text: str) -> str:
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())


def main() -> None:
    """Write ``docs/params.md`` below the current folder."""
    page = Path("docs") / "params.md"
    with published(page) as file:
        file.write(render().encode())


if __name__ == "__main__":
    main()
