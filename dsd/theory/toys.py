"""Distributions on curves in the plane: data whose noiseless support is known exactly.

Each is uniform along the length of its curves, centred, with a standard deviation of 0.5 in a
coordinate (the root of the mean of both variances). Curves are fine polygons.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["Points", "Toy", "ToyName", "make_toy", "sliced_wasserstein"]

ToyName = Literal["moons", "rings", "spirals"]

Points: TypeAlias = Float[Tensor, " n 2"]
"""Points in the plane, in data units."""

Curves: TypeAlias = Float[Tensor, " k v 2"]
"""``k`` polygons of ``v`` corners each."""

_STD = 0.5
_CORNERS = 129


class _Places(NamedTuple):
    """Nearest places on the curves to some points."""

    distance: Float[Tensor, " n"]
    segment: Int64[Tensor, " n"]
    fraction: Float[Tensor, " n"]
    """From the segment's start, 0, to its end, 1."""


@final
@dataclass(frozen=True)
class Toy:
    """The uniform distribution on the segments from ``start`` to ``end``.

    Neighbours along a curve are neighbours in the list.
    """

    start: Points
    end: Points

    def sample(self, count: int, *, generator: torch.Generator) -> Points:
        """Draw ``count`` clean points."""
        chosen = torch.multinomial(self._lengths, count, replacement=True, generator=generator)
        fraction = torch.rand(count, 1, generator=generator)
        return torch.lerp(self.start[chosen], self.end[chosen], fraction)

    def distance(self, points: Points) -> Float[Tensor, " n"]:
        """Distance from each point to the nearest point of the curves, in data units."""
        return self._nearest(points).distance

    def coverage(self, points: Points, *, parts: int = 64) -> float:
        """How evenly points lie along the curves, whatever their distance: 1 for perfectly.

        The curves are cut into ``parts`` of equal length, and each point counts for the part that
        it is nearest to. The result is 1 minus the total variation distance between the shares of
        the parts and equal shares. For n clean points it is about 1 - sqrt(parts / (2 pi n)).
        """
        lengths = self._lengths
        places = self._nearest(points)
        before = lengths.cumsum(0) - lengths
        along = before[places.segment] + places.fraction * lengths[places.segment]
        part = (along / lengths.sum() * parts).long().clamp(max=parts - 1)
        shares = torch.bincount(part, minlength=parts) / len(points)
        return 1 - float((shares - 1 / parts).abs().sum()) / 2

    @property
    def _lengths(self) -> Float[Tensor, " s"]:
        lengths: Tensor = (self.end - self.start).norm(dim=1)
        return lengths

    def _nearest(self, points: Points) -> _Places:
        direction = self.end - self.start
        offset = points[:, None] - self.start
        fraction = ((offset * direction).sum(2) / direction.square().sum(1)).clamp(0, 1)
        distances = (offset - fraction[:, :, None] * direction).norm(dim=2)
        distance, segment = distances.min(dim=1)
        return _Places(distance, segment, fraction.gather(1, segment[:, None])[:, 0])


def make_toy(name: ToyName) -> Toy:
    """Two moons, two rings around one centre, or two spirals in one another."""
    curves = _CURVES[name]()
    start, end = curves[:, :-1].reshape(-1, 2), curves[:, 1:].reshape(-1, 2)
    share = (end - start).norm(dim=1, keepdim=True)
    share = share / share.sum()
    mean = (share * (start + end) / 2).sum(0)
    start, end = start - mean, end - mean
    # The second moment of the uniform distribution from a to b is (a^2 + a b + b^2) / 3.
    variance = (share * (start**2 + start * end + end**2) / 3).sum(0).mean()
    scale = _STD / variance.sqrt()
    return Toy((start * scale).float(), (end * scale).float())


def sliced_wasserstein(a: Points, b: Points, *, directions: int = 64) -> float:
    """Sliced 2-Wasserstein distance of two samples of equal size, in data units.

    The root of the mean square, over evenly spaced directions and over ranks, of the difference
    of the sorted projections: for two samples of one distribution their sampling error, not 0.

    Reference:
        Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters of measures.
    """
    angles = torch.arange(directions, dtype=a.dtype) * (math.pi / directions)
    axes = torch.stack([angles.cos(), angles.sin()])
    difference = (a @ axes).sort(dim=0).values - (b @ axes).sort(dim=0).values
    return float(difference.square().mean().sqrt())


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def _parameter() -> Tensor:
    return torch.linspace(0, 1, _CORNERS, dtype=torch.float64)


def _moons() -> Curves:
    """Two half circles, each with an end inside the other."""
    upper = _polar(torch.ones_like(_parameter()), math.pi * _parameter())
    return torch.stack([upper, torch.tensor([1.0, 0.5]) - upper])


def _rings() -> Curves:
    radii = torch.tensor([1.0, 2.5], dtype=torch.float64)[:, None]
    return _polar(radii, 2 * math.pi * _parameter().expand(2, -1))


def _spirals() -> Curves:
    """Two arms of one turn, half a turn apart."""
    angle = 2 * math.pi * _parameter()
    radius = 0.4 * math.pi + angle
    return _polar(radius.expand(2, -1), torch.stack([angle, angle + math.pi]))


_CURVES: dict[ToyName, Callable[[], Curves]] = {
    "moons": _moons,
    "rings": _rings,
    "spirals": _spirals,
}
