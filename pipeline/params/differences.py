"""What distinguishes runs: values that are not the defaults, and names of runs made of them."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pipeline.params.presets import load_preset, preset_names
from pipeline.params.reader import leaves, read_mapping

__all__ = ["IMMATERIAL", "as_text", "changed", "level_of", "run_name", "value_name"]

IMMATERIAL = (
    "compute.",
    "run.",
    "corrupt.workers",
    "data.shard_size",
    "evaluate.features",
    "evaluate.inception_statistics",
    "evaluate.inception_weights",
    "pretrain.sample_every_kimg",
)
"""Beginnings of parameters that change no image."""

_NAMED = 4
"""The most values that a name has besides noise level and divergence; more are counted."""

_OWN_PLACE = ("corrupt.sigma", "corrupt.sigma_hat", "distill.divergence")


def as_text(values: Mapping[str, object]) -> dict[str, str]:
    """Equal text for equal values, be they from YAML or from MLflow, which keeps text."""
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: object) -> str:
    if value is None or isinstance(value, list):
        return json.dumps(value)
    try:
        return f"{float(str(value)):g}"
    except ValueError:
        return str(value)


@cache
def _defaults() -> dict[str, str]:
    return as_text(leaves(read_mapping(Path(__file__).with_name("defaults.yaml"))))


def changed(values: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """Value and default of each parameter that is not the default, by dotted key.

    Args:
        values: All parameters by dotted key, as :func:`pipeline.params.reader.flatten` gives them.
    """
    now = as_text(values)
    return {
        key: (value, _defaults().get(key, "-"))
        for key, value in now.items()
        if value != _defaults().get(key)
    }


def run_name(values: Mapping[str, object]) -> str:
    """Name a run by noise level, divergence, and what else is not the default.

    A preset of which all values hold stands for them. ``values`` as in :func:`changed`.
    """
    now, others = as_text(values), changed(values)
    preset = _preset(now, {*others})
    known = {*load_preset(preset)} if preset else set[str]()
    words = [value_name(key, value) for key, (value, _) in others.items() if _counts(key, known)]
    shown = words if len(words) <= _NAMED else [f"{len(words)} other values"]
    name = ", ".join([level_of(now), now["distill.divergence"], *shown])
    return f"{name} ({preset})" if preset else name


def _counts(key: str, known: set[str]) -> bool:
    return key not in known and key not in _OWN_PLACE and not key.startswith(IMMATERIAL)


def _preset(now: Mapping[str, str], others: set[str]) -> str | None:
    """The preset that explains most differences and contradicts no value."""
    found = {name: as_text(load_preset(name)) for name in preset_names()} if others else {}
    whole = {
        name: len(others & {*values})
        for name, values in found.items()
        if all(now.get(key) == value for key, value in values.items())
    }
    best = max(whole, key=lambda name: whole[name], default=None)
    return best if best is not None and whole[best] > 1 else None


def level_of(values: Mapping[str, object]) -> str:
    """The noise level of the data, and the one assumed where it is another: ``sigma 0.5``."""
    text = as_text(values)
    given, assumed = text["corrupt.sigma"], text.get("corrupt.sigma_hat", "null")
    return f"sigma {given}" + ("" if assumed in ("null", given) else f" assumed {assumed}")


def value_name(key: str, value: str) -> str:
    """A word as it is, any other value with the last part of its key."""
    is_word = value.isalpha() and value not in ("null", "auto", "none", "True", "False")
    return value if is_word else f"{key.rpartition('.')[2]} {value}"
