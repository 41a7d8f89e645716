"""The only reader of ``params.yaml``: text to parameters, or one message for each mistake."""

import difflib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    NodeEvent,
)

from dsd.utils.errors import ParamsError, one_line
from dsd.utils.files import published
from pipeline.params.model import Params
from pipeline.params.renamed import RENAMED
from pipeline.params.schema import all_keys, describe_value

__all__ = [
    "flatten",
    "leaves",
    "load_params",
    "parse_value",
    "preview_params",
    "read_mapping",
    "update_params",
]

Scalar = str | int | float | bool | None

_MAX_BYTES = 64 * 1024
_MAX_DEPTH = 12
_MAX_SHOWN = 60


def load_params(root_or_file: Path) -> Params:
    """Read and check a file of parameters, or the ``params.yaml`` of a folder.

    Raises:
        ParamsError: The file cannot be read or is no plain YAML 1.2 mapping, or values are
            wrong; one line for each mistake names the key, its value and what it may be.
    """
    file = root_or_file / "params.yaml" if root_or_file.is_dir() else root_or_file
    return _validated(read_mapping(file), file.name)


def read_mapping(file: Path) -> dict[Any, Any]:
    """The content of a YAML file of parameters, not checked against any schema.

    Raises:
        ParamsError: The file cannot be read or is no plain YAML 1.2 mapping.
    """
    return _parse(_read(file), file.name)


def update_params(root: Path, values: Mapping[str, Any]) -> None:
    """Set dotted keys in ``root``'s params.yaml, keeping comments and order.

    Raises:
        ParamsError: The result would not be valid; the file stays as it was.
    """
    file = root / "params.yaml"
    text = _with_values(file, values)
    _validated(_parse(text, file.name), file.name)
    with published(file) as stream:
        stream.write(text.encode())


def preview_params(root: Path, values: Mapping[str, Any]) -> Params:
    """The parameters that :func:`update_params` would write; the file stays as it is.

    Raises:
        ParamsError: They would not be valid.
    """
    file = root / "params.yaml"
    return _validated(_parse(_with_values(file, values), file.name), file.name)


def parse_value(text: str) -> object:
    """A value as it would be read from params.yaml: a number, a word, a list, ``null``, ...

    Raises:
        ParamsError: It is no plain YAML 1.2.
    """
    name = "value"
    return _parse(f"{name}: {text}", shorten(text, _MAX_SHOWN))[name]


def _with_values(file: Path, values: Mapping[str, Any]) -> str:
    """The text of a file of parameters with dotted keys set, its comments and order kept."""
    text = _read(file)
    _parse(text, file.name)
    editor = YAML(pure=True)
    editor.width = 200
    # The word, which ruamel would leave out.
    editor.representer.add_representer(
        type(None), lambda by, _: by.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    document = editor.load(text)
    for key, value in values.items():
        *sections, name = key.split(".")
        section = document
        for part in sections:
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                msg = f"{file.name}: {key} is not a known key: {part} is a value, not a section"
                raise ParamsError(msg)
        section[name] = value
        if isinstance(value, list):  # on one line, as the file writes lists
            section[name] = CommentedSeq(value)
            section[name].fa.set_flow_style()
    edited = io.StringIO()
    editor.dump(document, edited)
    return edited.getvalue()


def _validated(document: Mapping[Any, Any], name: str) -> Params:
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        lines = [one_line(f"{name}: {line}") for line in _explain(error, document)]
    raise ParamsError("\n".join(lines))


def flatten(params: Params) -> dict[str, Scalar]:
    """All values by dotted key, in the order of the file; lists as JSON text."""
    values = leaves(params.model_dump(mode="json"))
    return {
        key: json.dumps(value) if isinstance(value, list) else value
        for key, value in values.items()
    }


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted key, in their order."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        msg = (
            f"{file.name}: cannot be read ({error.strerror}) in {file.parent.resolve()}; "
            "run the command in the folder that holds it"
        )
        raise ParamsError(msg) from error
    if len(raw) > _MAX_BYTES:
        msg = (
            f"{file.name}: larger than {_MAX_BYTES // 1024} KiB, so it is not a file of parameters"
        )
        raise ParamsError(msg)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{file.name}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        raise ParamsError(msg) from error


def _parse(text: str, name: str) -> dict[Any, Any]:
    try:
        _refuse_exotic(text, name)
        document = _yaml().load(text)
    except (YAMLError, ValueError, RecursionError, OverflowError) as error:
        msg = one_line(f"{name}: {_where(error)}")
        raise ParamsError(msg) from error
    if not isinstance(document, dict):
        what = "is empty" if document is None else "is not a mapping of sections"
        msg = f"{name}: the file {what}; it needs the sections {', '.join(Params.model_fields)}"
        raise ParamsError(msg)
    return document


def _yaml() -> YAML:
    # The pure parser: libyaml's C parser follows YAML 1.1, while DVC reads 1.2.
    return YAML(typ="safe", pure=True)


def _refuse_exotic(text: str, name: str) -> None:
    """Refuse what parameters never need and what costs time or changes the meaning of a file."""
    depth = 0
    for event in _yaml().parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _MAX_DEPTH:
            found = f"nesting deeper than {_MAX_DEPTH} levels"
        elif isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            found = "an anchor or alias (& or *)"
        elif isinstance(event, NodeEvent) and getattr(event, "ctag", None):
            found = "a tag (!)"
        elif isinstance(event, DocumentStartEvent) and (event.version or event.tags):
            found = "a directive (%)"
        else:
            continue
        line = event.start_mark.line + 1
        msg = f"{name}: line {line}: {found} is not allowed here; write the values out"
        raise ParamsError(msg)


def _where(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return f"not valid YAML: {str(error).partition(chr(10))[0]}"


def _explain(error: ValidationError, document: Mapping[Any, Any]) -> list[str]:
    details = [_as_in_the_file(detail, document) for detail in error.errors(include_url=False)]
    unknown = [detail.name for detail in details if detail.kind == "extra_forbidden"]
    new = [RENAMED.get(name, "").partition(" ")[0] for name in unknown]
    meant = {name: _near_miss(name) for name in unknown}
    # A misspelt key is one mistake, though pydantic reports the right name as missing as well.
    twice = [*meant.values(), *new]
    return [
        _message(detail, meant.get(detail.name))
        for detail in details
        if detail.kind != "missing" or detail.name not in twice
    ]


class _Mistake(NamedTuple):
    name: str
    """Dotted key, with the position in a list."""

    key: str
    """Dotted key alone."""

    kind: str
    """Pydantic's type of error."""

    value: Any
    text: str


def _as_in_the_file(detail: ErrorDetails, document: Mapping[Any, Any]) -> _Mistake:
    """A mistake at its place in the file: pydantic puts the kinds of unions among the keys."""
    kind, value, location = detail["type"], detail["input"], [*detail["loc"]]
    if kind.startswith("union_tag"):
        location.append("kind")
        kind = "missing" if kind == "union_tag_not_found" else kind
        value = value.get("kind")
    place: Any = document
    path: list[int | str] = []
    for at, part in enumerate(location):
        try:
            place = place[part]
        except (KeyError, TypeError):
            if at < len(location) - 1 or not isinstance(place, Mapping):
                continue
        path.append(part)
    if kind == "value_error" and path and _dotted(path) not in all_keys():
        path.pop()
    if kind not in {"extra_forbidden", "invalid_key", "value_error"}:
        while _dotted(path) not in all_keys():
            path.pop()
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return _Mistake(name.removeprefix("."), _dotted(path), kind, value, detail["msg"])


def _dotted(path: list[int | str]) -> str:
    return ".".join(part for part in path if isinstance(part, str))


def _message(mistake: _Mistake, meant: str | None) -> str:
    name, value = mistake.name, mistake.value
    if mistake.kind == "extra_forbidden":
        return _unknown(name, meant)
    if mistake.kind == "invalid_key":
        return f"{name.rpartition('.')[0] or 'top level'}: the key {value!r} must be a text"
    if mistake.kind == "value_error":
        text = mistake.text.removeprefix("Value error, ")
        return text if not name or f"{name}." in text else f"{name}: {text}"
    schema = all_keys()[mistake.key].schema
    if schema is None:
        allowed = f"a section with the keys {', '.join(_children(name))}"
        allowed += " or null" if all_keys()[mistake.key].nullable else ""
    else:
        allowed = describe_value(schema.get("items", schema) if name != mistake.key else schema)
    if mistake.kind == "missing":
        return f"{name} is missing; add it: {allowed}"
    quoted = isinstance(value, str) and _is_number(value) and "number" in allowed
    hint = "; it is a text now, so remove the quotes" if quoted else ""
    return f"{name} = {_shown(value)} must be {allowed}{hint}"


def _unknown(name: str, meant: str | None) -> str:
    if name in RENAMED:
        return f"{name} was renamed to {RENAMED[name]}"
    section = name.rpartition(".")[0]
    if name in all_keys():
        return f"{name} does not go with this {section}.kind; remove it"
    if meant is not None:
        return f"{name} is not a known key; did you mean {meant}?"
    return f"{name} is not a known key; known here: {', '.join(_children(section))}"


def _near_miss(name: str) -> str | None:
    """The known key that an unknown one stands for: of the same section, or its name elsewhere."""
    section, _, last = name.rpartition(".")
    close = difflib.get_close_matches(last, _children(section), n=1)
    if close:
        return f"{section}.{close[0]}".removeprefix(".")
    return next((known for known in all_keys() if known.rpartition(".")[2] == last), None)


def _children(section: str) -> list[str]:
    parts = [name.rpartition(".") for name in all_keys()]
    return [last for parent, _, last in parts if parent == section]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError):  # keys that are no text, or an integer too long to print
        return f"<{type(value).__name__}>"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
