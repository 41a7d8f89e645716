"""The keys of ``params.yaml`` in words, for error messages and for the manual."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, final

from pipeline.params.model import Params

__all__ = ["Key", "all_keys", "describe_bounds", "describe_value"]

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


@cache
def all_keys() -> dict[str, Key]:
    """Every section and key by its dotted name, in the order of the file."""
    schema = Params.model_json_schema()
    return {key.name: key for key in _walk(schema, schema["$defs"], prefix="")}


def describe_value(schema: dict[str, Any]) -> str:
    """What a value may be, such as ``a number >= 0 and <= 10``."""
    if "anyOf" in schema:
        return f"{describe_value(_without_null(schema))} or null"
    if "oneOf" in schema:
        return " or ".join(describe_value(one) for one in schema["oneOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(str(choice) for choice in schema["enum"])
    if schema.get("type") == "array":
        return f"a list of {_length(schema)}, each {describe_value(schema['items'])}"
    noun = {"number": "a number", "integer": "a whole number", "boolean": "true or false"}
    return f"{noun.get(schema.get('type', ''), 'a text')} {describe_bounds(schema)}".strip()


def describe_bounds(schema: dict[str, Any]) -> str:
    """The range of a value alone, such as ``>= 0 and <= 10``; empty when there is none."""
    if "anyOf" in schema:
        return f"{describe_bounds(_without_null(schema))}, or null"
    if "oneOf" in schema:
        first, *others = schema["oneOf"]
        return " or ".join([describe_bounds(first), *map(describe_value, others)])
    if "minLength" in schema:
        return "that is not empty"
    present = [f"{sign}{_plain(schema[name])}" for name, sign in _COMPARISONS if name in schema]
    return " and ".join(present)


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def _walk(section: dict[str, Any], definitions: dict[str, Any], prefix: str) -> Iterator[Key]:
    for name, schema in section["properties"].items():
        dotted = prefix + name
        if "$ref" in schema:
            inner = definitions[schema["$ref"].rpartition("/")[2]]
            yield Key(dotted, schema.get("description") or inner["description"], None)
            yield from _walk(inner, definitions, f"{dotted}.")
        elif "discriminator" in schema:
            yield Key(dotted, schema["description"], None)
            yield from _walk(_merged(schema, definitions), definitions, f"{dotted}.")
        else:
            yield Key(dotted, schema.get("description", ""), schema)


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


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    inner: dict[str, Any] = next(one for one in schema["anyOf"] if one.get("type") != "null")
    return inner


def _length(schema: dict[str, Any]) -> str:
    low, high = schema.get("minItems", 0), schema.get("maxItems")
    if high is None:
        return f"{low} or more entries"
    return f"{low} entries" if low == high else f"{low} to {high} entries"
