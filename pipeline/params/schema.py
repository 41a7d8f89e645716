"""The keys of ``params.yaml`` in words, for error messages and for the manual."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, final

from pipeline.params.model import Params

__all__ = ["Key", "all_keys", "describe_value"]

_COMPARISONS = (
    ("minimum", ">= "),
    ("exclusiveMinimum", "> "),
    ("maximum", "<= "),
    ("exclusiveMaximum", "< "),
    ("multipleOf", "a multiple of "),
)


@final
@dataclass(frozen=True)
class Key:
    """A key by its dotted name, with its explanation and JSON schema (None for a section)."""

    name: str
    text: str
    schema: dict[str, Any] | None
    nullable: bool = False
    """Whether null may stand in place of a section."""


@cache
def all_keys() -> dict[str, Key]:
    """Every section and key by its dotted name, in the order of the file."""
    schema = Params.model_json_schema()
    return {key.name: key for key in _walk(schema, schema["$defs"], prefix="")}


def describe_value(schema: dict[str, Any]) -> str:
    """Words for a value, such as ``a number >= 0 and <= 10``."""
    if "anyOf" in schema:
        (inner,) = [one for one in schema["anyOf"] if one.get("type") != "null"]
        return f"{describe_value(inner)} or null"
    if "oneOf" in schema:
        return " or ".join(describe_value(one) for one in schema["oneOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(str(choice) for choice in schema["enum"])
    if schema.get("type") == "array":
        return f"a list of {_length(schema)}, each {describe_value(schema['items'])}"
    if "minLength" in schema:
        return "a text that is not empty"
    noun = {"number": "a number", "integer": "a whole number", "boolean": "true or false"}
    bounds = [f"{sign}{_plain(schema[name])}" for name, sign in _COMPARISONS if name in schema]
    return f"{noun.get(schema.get('type', ''), 'a text')} {' and '.join(bounds)}".strip()


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def _walk(section: dict[str, Any], definitions: dict[str, Any], prefix: str) -> Iterator[Key]:
    for name, schema in section["properties"].items():
        dotted = prefix + name
        if "$ref" in schema:
            inner = definitions[schema["$ref"].rpartition("/")[2]]
            yield Key(dotted, schema.get("description") or inner["description"], None)
            yield from _walk(inner, definitions, f"{dotted}.")
        elif options := _options(schema, definitions):
            yield Key(dotted, schema["description"], None, nullable=True)
            for option in options:
                yield from _walk(option, definitions, f"{dotted}.")
        elif "discriminator" in schema:
            yield Key(dotted, schema["description"], None)
            yield from _walk(_merged(schema, definitions), definitions, f"{dotted}.")
        else:
            yield Key(dotted, schema.get("description", ""), schema)


def _options(schema: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The sections that may stand where null may, too; empty for other values."""
    choices = [one for some in schema.get("anyOf", ()) for one in some.get("oneOf", [some])]
    names = [one["$ref"].rpartition("/")[2] for one in choices if "$ref" in one]
    return [definitions[name] for name in names]


def _merged(union: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """One section with the keys of all kinds, each saying which kinds have it."""
    tag, kinds = union["discriminator"]["propertyName"], {}
    for one in union["oneOf"]:
        section = definitions[one["$ref"].rpartition("/")[2]]
        kinds[section["properties"][tag]["const"]] = section
    meanings = [f"`{kind}`: {section['description']}" for kind, section in kinds.items()]
    merged: dict[str, Any] = {tag: {"enum": [*kinds], "description": " ".join(meanings)}}
    for name in (name for section in kinds.values() for name in section["properties"]):
        if name not in merged:
            having = [kind for kind, section in kinds.items() if name in section["properties"]]
            schema = kinds[having[0]]["properties"][name]
            only = "" if having == [*kinds] else f"With {', '.join(having)} only. "
            text = only + schema["description"]
            merged[name] = {**schema, "description": text}
    return {"properties": merged}


def _length(schema: dict[str, Any]) -> str:
    low, high = schema.get("minItems", 0), schema.get("maxItems")
    if high is None:
        return f"{low} or more entries"
    return f"{low} entries" if low == high else f"{low} to {high} entries"
