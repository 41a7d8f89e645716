"""Quality and diversity apart: precision and recall, density and coverage.

Each set stands for its manifold by balls around its vectors, which reach to the k-th nearest
neighbour in the same set. Precision and density ask how much of what is generated lies in balls of
the reference, recall and coverage how much of the reference is reached. A vector on the edge of a
ball is in it. All four depend on the numbers of images: compare at equal numbers only.

Reference:
    Kynkaanniemi et al. 2019, "Improved precision and recall metric" (arXiv:1904.06991), Eq. 1-2.
    Naeem et al. 2020, "Reliable fidelity and diversity metrics" (arXiv:2002.09797), Eq. 3-4.
"""

from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Bool, Float, Float64
from torch import Tensor

from dsd.metrics.checks import checked_pair
from dsd.metrics.neighbours import distance_chunks, own_radii

__all__ = ["DensityCoverage", "PrecisionRecall", "density_coverage", "precision_recall"]

_TIE = 1e-7
"""Differences of distances, relative to the features' size, that rounding may cause."""


class PrecisionRecall(NamedTuple):
    """Shares between 0 and 1."""

    precision: float
    """Of generated images in a ball of the reference."""

    recall: float
    """Of reference images in a ball of the generated ones."""


class DensityCoverage(NamedTuple):
    """Like precision and recall, but robust to outliers of either set."""

    density: float
    """Balls of the reference that hold a generated image, on average, divided by k; about 1 for
    two sets of one law and above 1 where images crowd into dense regions."""

    coverage: float
    """Share of the reference's balls that hold a generated image."""


def precision_recall(
    generated: Float[Tensor, " n d"], reference: Float[Tensor, " m _"], *, k: int = 3
) -> PrecisionRecall:
    """Improved precision and recall; the paper's ``k`` is 3.

    Raises:
        DataError: A set has ``k`` vectors or fewer, a feature is NaN or infinite, lengths differ.
    """
    sets = checked_pair(generated, reference, at_least=k + 1, metric="precision and recall")
    precision, recall = (_share_inside(*pair, k) for pair in (sets, sets[::-1]))
    return PrecisionRecall(precision, recall)


def _share_inside(
    queries: Float64[Tensor, " n d"], centres: Float64[Tensor, " m d"], k: int
) -> float:
    found = (int(inside.any(dim=1).sum()) for inside in _inside(queries, centres, k))
    return sum(found) / len(queries)


def density_coverage(
    generated: Float[Tensor, " n d"], reference: Float[Tensor, " m _"], *, k: int = 5
) -> DensityCoverage:
    """Density and coverage; the paper's ``k`` is 5.

    Raises:
        DataError: A set has ``k`` vectors or fewer, a feature is NaN or infinite, lengths differ.
    """
    queries, centres = checked_pair(
        generated, reference, at_least=k + 1, metric="density and coverage"
    )
    held = sum(inside.sum(dim=0) for inside in _inside(queries, centres, k))
    assert isinstance(held, Tensor)
    density = held.double().mean() / (k * len(queries)) * len(centres)
    return DensityCoverage(float(density), float(held.gt(0).double().mean()))


def _inside(
    queries: Float64[Tensor, " n d"], centres: Float64[Tensor, " m d"], k: int
) -> Iterator[Bool[Tensor, " _ m"]]:
    """For consecutive queries, in which balls around ``centres`` each of them lies."""
    radii = own_radii(centres, k)
    size = (centres - centres.mean(dim=0)).norm(dim=1).max()
    for distances in distance_chunks(queries, centres):
        yield distances <= radii + _TIE * size
