"""Nearest neighbours in feature space, without holding all distances at once."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

__all__ = ["Neighbours", "distance_chunks", "nearest", "own_radii"]

_CHUNK_ENTRIES = 2**24
"""Distances at a time, 128 MiB."""


class Neighbours(NamedTuple):
    """For each query its nearest vectors, nearest first."""

    distances: Float64[Tensor, " n k"]
    indices: Int64[Tensor, " n k"]


def distance_chunks(
    queries: Float64[Tensor, " n d"], others: Float64[Tensor, " m d"]
) -> Iterator[Float64[Tensor, " _ m"]]:
    """Euclidean distances of consecutive queries to all other vectors."""
    # Distances do not see a shift, but their rounding errors do.
    centre = others.mean(dim=0)
    centred = others - centre
    for chunk in (queries - centre).split(max(1, _CHUNK_ENTRIES // len(others))):
        yield torch.cdist(chunk, centred)


def nearest(
    queries: Float64[Tensor, " n d"], others: Float64[Tensor, " m d"], k: int
) -> Neighbours:
    """The ``k`` vectors nearest to each query."""
    rows = distance_chunks(queries, others)
    indices = torch.cat([distances.topk(k, largest=False).indices for distances in rows])
    # Exactly 0 for copies, which products of many vectors at once do not give.
    exact = torch.stack([(queries - others[column]).norm(dim=1) for column in indices.T], dim=1)
    distances, order = exact.sort(dim=1)
    return Neighbours(distances, indices.gather(1, order))


def own_radii(features: Float64[Tensor, " n d"], k: int) -> Float64[Tensor, " n"]:
    """Distance of each vector to the ``k``-th nearest other one of its set."""
    # The nearest of all is the vector itself.
    return nearest(features, features, k + 1).distances[:, k]
