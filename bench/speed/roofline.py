"""The least time that a work could take on this machine, from what it does and what can be done.

There are three such limits. The first counts products and convolutions alone, as if all else were
free. The others are those of PyTorch without compiling, which does one operation after the other:
in the second each takes as long as its arithmetic at the fastest product's speed, or as its inputs
and outputs at a copy's. In the third only those with products do, and all others take as long as
PyTorch's own code for them did.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import log2
from typing import Any, NamedTuple, final

import numpy as np

from bench.speed.operations import Operation

__all__ = ["Least", "Peaks", "least"]


@final
class Peaks(NamedTuple):
    """The most that the machine did."""

    flops: Mapping[str, float]
    """Floating-point operations a second, by precision."""

    copies: Mapping[float, float]
    """Bytes a second, read and written, by how many bytes a copy read and wrote in all.

    Caches make small copies faster than large ones.
    """

    @classmethod
    def among(cls, turns: Sequence[Mapping[str, Any]]) -> "Peaks":
        """The fastest of what ``machine.Limits`` measured in some turns."""
        flops = {name: max(turn["flops"][name] for turn in turns) for name in turns[0]["flops"]}
        copies = {size: max(turn["copies"][size] for turn in turns) for size in turns[0]["copies"]}
        return cls(flops, {float(size): rate for size, rate in copies.items()})

    def bandwidth(self, moved: float) -> float:
        """Bytes a second of an operation that moves so many, between those of the copies.

        That is as if all of them were in the cache that they fit into when it begins.
        """
        sizes = sorted(self.copies)
        rates = [self.copies[size] for size in sizes]
        return float(np.interp(log2(moved), [log2(size) for size in sizes], rates))


@final
class Least(NamedTuple):
    """Least seconds of doing something once."""

    products: float
    """If its arithmetic were done at the peak, and all else took no time."""

    operations: dict[str, float]
    """If each operation were done at the peak or at a copy's speed: by name, the largest first."""

    with_own_code: float
    """The same, where what has no products takes what PyTorch needed for it."""


def least(
    done: Mapping[Operation, float], took: Mapping[str, float], peaks: Peaks, precision: str
) -> Least:
    """The three limits.

    Args:
        done: How often each operation is done.
        took: Seconds of all calls of an operator, by its name.
        peaks: Of the machine.
        precision: Of the arithmetic.
    """
    peak = peaks.flops[precision]
    operations = defaultdict[str, float](float)
    own_code = dict(took)
    for operation, times in done.items():
        moving = operation.moved / peaks.bandwidth(operation.moved)
        operations[operation.name] += times * max(operation.flops / peak, moving)
        if operation.flops:
            own_code.pop(operation.name, None)
    computing = sum(operations[name] for name in operations.keys() - own_code.keys())
    return Least(
        sum(times * operation.flops for operation, times in done.items()) / peak,
        dict(sorted(operations.items(), key=lambda item: -item[1])),
        computing + sum(own_code.values()),
    )
