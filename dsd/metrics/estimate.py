"""Numbers that say how sure they are."""

from typing import NamedTuple

__all__ = ["Estimate", "Interval"]


class Estimate(NamedTuple):
    """A value with its standard error."""

    value: float
    standard_error: float


class Interval(NamedTuple):
    """What probably holds the truth."""

    low: float
    high: float
