"""What repeated turns say, and how sure that is."""

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import quantiles
from typing import Any

__all__ = ["quartiles", "ratios", "seconds_each", "uncertainty"]


def seconds_each(entry: Mapping[str, Any]) -> list[float]:
    """Seconds for one image, megabyte, ..., of each turn."""
    return [taken / (entry["times"] * entry["items"]) for taken in entry["seconds"]]


def ratios(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[float]:
    """How many times faster the first is than another, turn by turn."""
    pairs = zip(seconds_each(other), seconds_each(first), strict=True)
    return [theirs / ours for theirs, ours in pairs]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The first, the median and the third."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high


def uncertainty(values: Sequence[float]) -> float:
    """Of the median, relative to it: half the width of a box plot's notch.

    Two medians whose notches do not overlap differ, with 95 % confidence or so.

    Reference:
        McGill, Tukey and Larsen 1978, "Variations of box plots": 1.57 quartile ranges over the
        root of the number of values.
    """
    low, middle, high = quartiles(values)
    return 1.57 * (high - low) / sqrt(len(values)) / middle
