"""Quality and diversity apart: precision and recall, density and coverage.

Each set stands for its manifold by balls around its vectors, which reach to the k-th nearest
neighbour in the same set. Precision and density ask how much of what is generated lies in balls of
the reference, recall and coverage how much of the reference is reached. A vector on the edge of a
ball is in it. All four depend on the numbers of images: compare at equal numbers only.

Reference:
    Kynkaanniemi et al. 2019, "Improved precision and recall metric" (arXiv:1904.06991), Eq. 1-2.
    Naeem et al. 2020, "Reliable fidelity and diversity metrics" (arXiv:2002.09797), Eq. 3-4.
"""

from typing import NamedTuple, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dsd.evaluation.neighbours import distance_chunks, nearest
from dsd.metrics.checks import checked_pair
from dsd.metrics.fewest import COVERAGE_K, MANIFOLD, PRECISION_K

__all__ = [
    "DensityCoverage",
    "Manifold",
    "PrecisionRecall",
    "density_coverage",
    "precision_recall",
]

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
    """Balls of the reference that hold a generated image, on average, divided by k: about 1 for
    two sets of one distribution, more where images crowd into dense regions."""

    coverage: float
    """Share of the reference's balls that hold a generated image."""


@final
class Manifold:
    """A set of feature vectors, whose balls are found once for any number of comparisons."""

    def __init__(self, features: Float[Tensor, " n d"]) -> None:
        self.features = features.detach().double()
        self._distances: Float64[Tensor, " n k"] = self.features[:, :0]

    def radii(self, k: int) -> Float64[Tensor, " n"]:
        """Radius of each ball: to the ``k``-th nearest other vector, or to a tie with it."""
        if k >= self._distances.shape[1]:
            # Enough for all measures. The nearest of all is the vector itself.
            count = min(max(k + 1, MANIFOLD), len(self.features))
            self._distances = nearest(self.features, self.features, count).distances
        size = torch.linalg.vector_norm(self.features - self.features.mean(dim=0), dim=1).max()
        return torch.add(self._distances[:, k], size, alpha=_TIE)


def precision_recall(
    generated: Float[Tensor, " n d"] | Manifold,
    reference: Float[Tensor, " m _"] | Manifold,
    *,
    k: int = PRECISION_K,
) -> PrecisionRecall:
    """Improved precision and recall; the paper's ``k`` is 3.

    Raises:
        DataError: A set has ``k`` vectors or fewer, a feature is NaN or infinite, lengths differ.
    """
    a, b = _checked(generated, reference, at_least=k + 1, metric="precision and recall")
    a_radii, b_radii = a.radii(k), b.radii(k)
    precise, recalled, done = 0, torch.zeros_like(b_radii, dtype=torch.bool), 0
    for distances in distance_chunks(a.features, b.features):
        precise += int((distances <= b_radii).any(dim=1).sum())
        own = a_radii[done : done + len(distances), None]
        recalled |= (distances <= own).any(dim=0)
        done += len(distances)
    return PrecisionRecall(precise / done, float(recalled.double().mean()))


def density_coverage(
    generated: Float[Tensor, " n d"] | Manifold,
    reference: Float[Tensor, " m _"] | Manifold,
    *,
    k: int = COVERAGE_K,
) -> DensityCoverage:
    """Density and coverage; the paper's ``k`` is 5.

    Raises:
        DataError: A set has ``k`` vectors or fewer, a feature is NaN or infinite, lengths differ.
    """
    a, b = _checked(generated, reference, at_least=k + 1, metric="density and coverage")
    radii = b.radii(k)
    held = torch.zeros_like(radii, dtype=torch.int64)
    for distances in distance_chunks(a.features, b.features):
        held += (distances <= radii).sum(dim=0)
    density = held.double().mean() / (k * len(a.features)) * len(held)
    return DensityCoverage(float(density), float(held.gt(0).double().mean()))


def _checked(
    generated: Tensor | Manifold, reference: Tensor | Manifold, *, at_least: int, metric: str
) -> tuple[Manifold, Manifold]:
    a, b = (x if isinstance(x, Manifold) else Manifold(x) for x in (generated, reference))
    a.features, b.features = checked_pair(a.features, b.features, at_least=at_least, metric=metric)
    return a, b
