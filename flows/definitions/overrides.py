"""Values that replace those of params.yaml for one run: from the command line or Prefect's form.

The form shows the few keys that people change, each with its value in params.yaml; all others are
settings like ``pretrain.batch_size=64``. The server checks a form against the JSON schema of
:class:`pipeline.params.model.Params` with every key optional; what needs all values at once (a
level above another one) is checked by :func:`pipeline.params.reader.preview_params`, as everything
else is again.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, TypeAlias

from prefect.utilities.schema_tools.validation import preprocess_schema
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from dsd.utils.errors import ParamsError
from flows.runtime.environment import ROOT
from pipeline.params.differences import as_text, value_name
from pipeline.params.model import Params
from pipeline.params.presets import load_preset, preset_names
from pipeline.params.reader import load_params, parse_value
from pipeline.params.schema import all_keys

__all__ = [
    "AS_IT_IS",
    "CHECKED",
    "SHOWN",
    "Overrides",
    "Preset",
    "Settings",
    "SweepParam",
    "chosen_values",
    "differences",
    "expand_grid",
    "flatten_overrides",
    "parse_settings",
    "parse_sweep_param",
    "to_overrides",
]

_NULL = "null"
"""The word for an empty value, because leaving a key out means the value of params.yaml."""

_NAMED = 3
"""Values that the name of a run has."""

_Schema: TypeAlias = dict[str, Any]


def _has_kinds(key: str) -> bool:
    """Whether a section is one of several kinds, or null, and so given as a whole."""
    section, kind = all_keys().get(key), all_keys().get(f"{key}.kind")
    if section is not None and section.nullable:
        return True
    return kind is not None and "enum" in (kind.schema or {})


def _form(schema: _Schema, definitions: Mapping[str, _Schema]) -> _Schema:
    """The schema without references and ``oneOf``, which Prefect's form does not know.

    The server itself takes null wherever a key may be left out.
    """
    kinds = [*_alternatives(schema, definitions)]
    text = schema.get("description") or (kinds[0].get("description", "") if kinds else "")
    found: list[_Schema] = []
    words: list[str] = []
    for kind in kinds:
        if kind.get("type") == "string" and ("enum" in kind or "const" in kind):
            words += kind.get("enum") or [kind["const"]]
        elif "properties" in kind:
            found.append(_section(kind, definitions, whole=len(kinds) > 1))
        elif kind.get("type") == "null":
            text = f"{text} The word null stands for an empty value."
        else:
            left_out = ("title", "default", "description")
            found.append({name: kind[name] for name in kind if name not in left_out})
    if any(kind.get("type") == "null" for kind in kinds):
        words.append(_NULL)
    if words:
        found.append({"type": "string", "enum": words})
    merged = found[0] if len(found) == 1 else {"anyOf": found}
    own = {"title": schema.get("title"), "description": " ".join(text.replace("``", "`").split())}
    return merged | {name: value for name, value in own.items() if value}


def _alternatives(schema: _Schema, definitions: Mapping[str, _Schema]) -> Iterator[_Schema]:
    """What a value may be, unions within unions laid flat."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    union = schema.get("anyOf") or schema.get("oneOf")
    if union is None:
        yield schema
    for one in union or ():
        yield from _alternatives(one, definitions)


def _section(schema: _Schema, definitions: Mapping[str, _Schema], *, whole: bool) -> _Schema:
    """A section; its keys may be left out unless it is given as a ``whole``."""
    inner = {name: _form(one, definitions) for name, one in schema["properties"].items()}
    required = {"required": schema["required"]} if whole and "required" in schema else {}
    return {
        "type": "object",
        "title": schema["title"],
        "properties": inner,
        "additionalProperties": False,
        **required,
    }


SHOWN = (
    "data.source",
    "data.path",
    "corrupt.sigma",
    "pretrain.kimg",
    "distill.divergence",
    "distill.kimg",
    "seed",
)
"""Keys that the form shows: they fit on two screens."""

_PARAMS = Params.model_json_schema()
CHECKED = _section(_PARAMS, _PARAMS["$defs"], whole=False)
"""Schema of all keys, each of which may be left out."""


def _shown_form() -> _Schema:
    """The form of the keys that people change, by section, with their present values.

    The form knows nothing of ``if`` and ``then``, by which the server checks all keys.
    """
    try:
        present = load_params(ROOT).model_dump(mode="json")
    except ParamsError:  # whoever starts a run hears it; a form without values is still one
        present = {}
    form: _Schema = {"type": "object", "title": "Values", "properties": {}}
    for key in SHOWN:
        place, whole, values = form, CHECKED, present
        *sections, name = key.split(".")
        for section in sections:
            whole, values = whole["properties"][section], values.get(section, {})
            empty = {"type": "object", "title": section, "properties": {}}
            place = place["properties"].setdefault(section, empty)
        place["properties"][name] = {
            **whole["properties"][name],
            "title": key,
            "description": re.split(r"\.(?: |$)", whole["properties"][name]["description"])[0],
            "position": SHOWN.index(key),
            **({"default": _with_null_words(values[name])} if name in values else {}),
        }
    return {**form, "if": {}, "then": preprocess_schema(CHECKED)}


def _with_null_words(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _with_null_words(inner) for name, inner in value.items()}
    return _NULL if value is None else value


Overrides: TypeAlias = Annotated[dict[str, Any], WithJsonSchema(_shown_form())]
"""Nested values instead of those of params.yaml; what is left out stays as it is there."""

AS_IT_IS = "as in params.yaml"

Preset: TypeAlias = Annotated[
    str, WithJsonSchema({"type": "string", "enum": [AS_IT_IS, *preset_names()]})
]
"""Name of a preset, or ``AS_IT_IS``."""

Settings: TypeAlias = list[Annotated[str, Field(pattern=r"^[A-Za-z_.]+ *=.+$")]]
"""Values of any keys, such as ``pretrain.batch_size=64``."""


def chosen_values(
    preset: str, overrides: Mapping[str, Any], settings: Sequence[str], params: Params
) -> dict[str, Any]:
    """What a form changes, by dotted key: settings before fields before the preset.

    A field that has the value of ``params``, as those have that nobody touched, changes nothing.

    Raises:
        ParamsError: There is no such preset, or a setting is none.
    """
    touched = {
        key: value
        for key, value in flatten_overrides(overrides).items()
        if _present(key, params) != value
    }
    given = parse_settings(settings)
    return (load_preset(preset) if preset != AS_IT_IS else {}) | touched | given


class SweepParam(BaseModel):
    """One parameter of a sweep and the values that it takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    key: Annotated[
        str,
        Field(
            json_schema_extra={
                "enum": [n for n, key in all_keys().items() if key.schema or _has_kinds(n)]
            }
        ),
    ]
    """Its dotted name, such as corrupt.sigma."""

    values: Annotated[list[str], Field(min_length=1)]
    """Its values, each as it would be written in params.yaml."""


def flatten_overrides(overrides: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The overridden values by dotted key, as params.yaml would hold them."""
    found: dict[str, Any] = {}
    for name, value in overrides.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not _has_kinds(key):
            found |= flatten_overrides(value, f"{key}.")
        elif value is not None:
            found[key] = None if value == _NULL else value
    return found


def differences(values: Mapping[str, Any]) -> str:
    """What a run changes, in words for its name: ``sigma 0.3, dmd``."""
    words = [value_name(key, text) for key, text in as_text(values).items()]
    more = [f"{len(words) - _NAMED} more"] if len(words) > _NAMED + 1 else []
    return ", ".join([*(words[:_NAMED] if more else words), *more])


def to_overrides(keys: Iterable[str], params: Params) -> dict[str, Any]:
    """Overrides of dotted ``keys`` by their values in ``params``."""
    found: dict[str, Any] = {}
    for key in keys:
        target, value, path = found, params.model_dump(mode="json"), ""
        for name in key.split("."):
            path, value, section = f"{path}.{name}".lstrip("."), value[name], target
            if path == key or _has_kinds(path):
                section[name] = _with_null_words(value)
                break
            target = section.setdefault(name, {})
    return found


def _present(key: str, params: Params) -> object:
    """The value, or section, of ``params`` at a dotted key; the key itself where there is none."""
    found: object = params.model_dump(mode="json")
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return key
        found = found[name]
    return found


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Keys and values of settings such as ``corrupt.sigma=0.3``.

    Raises:
        ParamsError: One of them is none, or two are about the same key.
    """
    settings = [(key, _value(key, text)) for key, text in map(_split, texts)]
    _refuse_repetition([key for key, _ in settings], "the command line")
    return dict(settings)


def parse_sweep_param(text: str) -> SweepParam:
    """Key and values of ``corrupt.sigma=0.2,0.4``; commas within brackets do not separate.

    Raises:
        ParamsError: It is not of this form.
    """
    key, values = _split(text)
    return SweepParam(key=key, values=re.split(r",(?![^\[{]*[\]}])", values))


def _split(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not (key.strip() and sign and value.strip()):
        msg = f"{text!r} is no setting; write KEY=VALUE, for example corrupt.sigma=0.3"
        raise ParamsError(msg)
    return key.strip(), value.strip()


def _value(key: str, text: str) -> object:
    """A value as params.yaml would hold it; the error names its key."""
    if not text.strip():
        msg = f"{key}: a value is empty; write null for an empty value"
        raise ParamsError(msg)
    try:
        return parse_value(text)
    except ParamsError as error:
        raise ParamsError(f"{key}={error}") from None


def expand_grid(grid: Sequence[SweepParam]) -> list[dict[str, Any]]:
    """All combinations of a grid's values by dotted key.

    Parameters of early stages change fastest: workers that take the first combinations at the same
    time have then different stages to compute, and later combinations find theirs computed.

    Raises:
        ParamsError: The grid is empty, or names a parameter or one of its values twice.
    """
    if not grid:
        msg = "a sweep needs a parameter to vary, for example corrupt.sigma with 0.2 and 0.4"
        raise ParamsError(msg)
    _refuse_repetition([param.key for param in grid], "the sweep")
    values = {param.key: [_value(param.key, text) for text in param.values] for param in grid}
    for key, several in values.items():
        _refuse_repetition([repr(value) for value in several], key)
    order = [*all_keys()]
    late_first = sorted(values, key=lambda key: order.index(key) if key in order else -1)[::-1]
    found = [
        dict(zip(late_first, one, strict=True))
        for one in product(*(values[key] for key in late_first))
    ]
    return [{key: one[key] for key in values} for one in found]


def _refuse_repetition(items: Sequence[str], where: str) -> None:
    for item in items:
        if items.count(item) > 1:
            msg = f"{where} has {item} more than once; give it once"
            raise ParamsError(msg)
