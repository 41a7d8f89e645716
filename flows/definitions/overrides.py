"""Values that replace those of params.yaml for one run, as a type: Prefect's form is made of it.

The type is derived from :class:`pipeline.params.model.Params`: the same keys, bounds, words and
explanations, each of them optional. Only what needs all values at once (a level above another one)
is checked later, by :func:`pipeline.params.reader.preview_params`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from types import NoneType
from typing import Annotated, Any, Literal, Optional, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
)
from pydantic.fields import FieldInfo

from dsd.utils.config import Section
from dsd.utils.errors import ParamsError
from pipeline.params.model import Params
from pipeline.params.reader import parse_value
from pipeline.params.schema import all_keys

__all__ = [
    "Axis",
    "Overrides",
    "combinations",
    "parse_axis",
    "parse_setting",
    "parse_settings",
    "to_overrides",
    "values_of",
]

_NULL = "null"
"""The word for an empty value, because leaving a key out means the value of params.yaml."""


def _for_the_form(schema: dict[str, Any]) -> None:
    """Say the same in words that Prefect's form knows: no ``oneOf``, an empty field for no value.

    The server itself takes null wherever a key may be left out.
    """
    for name, found in schema.get("properties", {}).items():
        found.pop("default", None)
        kinds = _with_words_together(_alternatives(found))
        own = {key: value for key, value in found.items() if key not in ("anyOf", "oneOf")}
        merged = {**kinds[0], **own} if len(kinds) == 1 else {**own, "anyOf": kinds}
        schema["properties"][name] = merged


def _alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What a value may be, unions within unions laid flat."""
    inner = schema.get("anyOf") or schema.get("oneOf")
    if inner is None:
        return [{key: value for key, value in schema.items() if key not in ("title", "default")}]
    return [one for each in inner for one in _alternatives(each) if one.get("type") != "null"]


def _with_words_together(kinds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, with all words that may be chosen in one list."""
    words: list[str] = []
    others = []
    for kind in kinds:
        if kind.get("type") == "string" and ("enum" in kind or "const" in kind):
            words += kind["enum"] if "enum" in kind else [kind["const"]]
        else:
            others.append(kind)
    return [*others, {"type": "string", "enum": words}] if words else others


class _Partial(BaseModel):
    """Base of all sections whose keys may be left out."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, json_schema_extra=_for_the_form
    )

    @model_serializer(mode="wrap")
    def _without_what_is_left_out(self, serialize: SerializerFunctionWrapHandler) -> object:
        return {key: value for key, value in serialize(self).items() if value is not None}


@cache  # one type, and so one name in the form's schema, where a section occurs twice
def _partial(section: type[Section]) -> type[_Partial]:
    """The section with every key optional, and its sections likewise."""
    fields: dict[str, Any] = {
        name: (_optional(field), Field(default=None, description=_explained(field)))
        for name, field in section.model_fields.items()
    }
    return create_model(section.__name__, __base__=_Partial, __doc__=section.__doc__, **fields)


def _optional(field: FieldInfo) -> object:
    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, Section):
        return Optional[_partial(kind)]  # noqa: UP045 - the type is known at run time only
    value = field.rebuild_annotation()
    if NoneType in get_args(kind):
        return Optional[value | Literal["null"]]  # noqa: UP045
    return Optional[value]  # noqa: UP045


def _explained(field: FieldInfo) -> str | None:
    text = field.description or getattr(field.annotation, "__doc__", None)
    if NoneType in get_args(field.annotation):
        text = f"{text or ''} The word null stands for an empty value."
    return None if text is None else " ".join(text.replace("``", "`").split())


_AllOptional: Any = _partial(Params)


class Overrides(_AllOptional):  # type: ignore[misc]  # a type that mypy cannot know
    """Values instead of those of params.yaml; what is left out stays as it is there."""


def _section_of(kind: type[BaseModel], name: str) -> type[_Partial] | None:
    """The section that a field is, or None for a value."""
    kinds = get_args(kind.model_fields[name].annotation)
    sections = (one for one in kinds if isinstance(one, type) and issubclass(one, _Partial))
    return next(sections, None)


def _leaves(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All keys that hold a value, dotted."""
    for name in kind.model_fields:
        section = _section_of(kind, name)
        if section is None:
            yield prefix + name
        else:
            yield from _leaves(section, f"{prefix}{name}.")


_AXES = [name for name, key in all_keys().items() if key.schema or name in set(_leaves(Overrides))]


class Axis(BaseModel):
    """One parameter of a sweep and the values that it takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    key: Annotated[str, Field(json_schema_extra={"enum": _AXES})]
    """Its dotted name, such as corrupt.sigma."""

    values: Annotated[list[str], Field(min_length=1)]
    """Its values, each as it would be written in params.yaml."""


def values_of(overrides: BaseModel) -> dict[str, Any]:
    """The overridden values by dotted key, as params.yaml would hold them."""
    found: dict[str, Any] = {}
    for name in type(overrides).model_fields:
        value = getattr(overrides, name)
        if isinstance(value, _Partial):
            found |= {f"{name}.{key}": inner for key, inner in values_of(value).items()}
        elif isinstance(value, BaseModel):
            found[name] = value.model_dump(mode="json")
        elif value is not None:
            found[name] = None if value == _NULL else value
    return found


def to_overrides(keys: Iterable[str], params: Params) -> Overrides:
    """Overrides of dotted ``keys`` by their values in ``params``."""
    picked: dict[str, Any] = {}
    for key in keys:
        _pick(Overrides, key.split("."), params.model_dump(mode="json"), picked)
    return Overrides(**picked)


def _pick(
    kind: type[BaseModel], parts: Sequence[str], source: Mapping[str, Any], target: dict[str, Any]
) -> None:
    """Copy one value, or all of a section, from nested mappings into others."""
    name, *rest = parts
    section = _section_of(kind, name)
    if section is None:
        target[name] = _NULL if source[name] is None else source[name]
        return
    for path in [rest] if rest else [[inner] for inner in section.model_fields]:
        _pick(section, path, source[name], target.setdefault(name, {}))


def parse_setting(text: str) -> tuple[str, Any]:
    """Key and value of ``corrupt.sigma=0.3``.

    Raises:
        ParamsError: It is not of this form.
    """
    key, value = _split(text)
    return key, _value(key, value)


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Keys and values of several settings.

    Raises:
        ParamsError: One of them is none, or two are about the same key.
    """
    settings = [parse_setting(text) for text in texts]
    _refuse_repetition([key for key, _ in settings], "the command line")
    return dict(settings)


def parse_axis(text: str) -> Axis:
    """Key and values of ``corrupt.sigma=0.2,0.4``; commas within brackets do not separate.

    Raises:
        ParamsError: It is not of this form.
    """
    key, values = _split(text)
    return Axis(key=key, values=re.split(r",(?![^\[{]*[\]}])", values))


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


def combinations(grid: Sequence[Axis]) -> list[dict[str, Any]]:
    """All combinations of a grid's values by dotted key.

    Parameters of early stages change fastest: workers that take the first combinations at the same
    time have then different stages to compute, and later combinations find theirs computed.

    Raises:
        ParamsError: The grid is empty, or names a parameter or one of its values twice.
    """
    if not grid:
        msg = "a sweep needs a parameter to vary, for example corrupt.sigma with 0.2 and 0.4"
        raise ParamsError(msg)
    _refuse_repetition([axis.key for axis in grid], "the sweep")
    values = {axis.key: [_value(axis.key, text) for text in axis.values] for axis in grid}
    for key, several in values.items():
        _refuse_repetition([repr(value) for value in several], key)
    order = [*all_keys()]
    late_first = sorted(values, key=lambda key: order.index(key) if key in order else -1)[::-1]
    found = (
        dict(zip(late_first, one, strict=True))
        for one in product(*(values[key] for key in late_first))
    )
    return [{key: one[key] for key in values} for one in found]


def _refuse_repetition(items: Sequence[str], where: str) -> None:
    for item in items:
        if items.count(item) > 1:
            msg = f"{where} has {item} more than once; give it once"
            raise ParamsError(msg)
