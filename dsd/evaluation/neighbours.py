"""Nearest neighbours in feature space, in bounded memory."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

__all__ = ["Neighbours", "distance_chunks", "nearest"]

_CHUNK_ENTRIES = 2**21
"""Distances at a time, 16 MiB."""


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
    squares = centred.square().sum(dim=1)
    for chunk in (queries - centre).split(max(1, _CHUNK_ENTRIES // len(others))):
        # torch.cdist would copy all others for each chunk.
        products = torch.addmm(squares, chunk, centred.T, alpha=-2)
        yield products.add_(chunk.square().sum(dim=1, keepdim=True)).clamp_(min=0).sqrt_()


def nearest(
    queries: Float64[Tensor, " n d"], others: Float64[Tensor, " m d"], k: int
) -> Neighbours:
    """The ``k`` vectors nearest to each query."""
    rows = distance_chunks(queries, others)
    indices = torch.cat([distances.topk(k, largest=False).indices for distances in rows])
    # Exactly 0 for copies, which products of matrices do not give.
    exact = torch.stack([(queries - others[column]).norm(dim=1) for column in indices.T], dim=1)
    distances, order = exact.sort(dim=1)
    return Neighbours(distances, indices.gather(1, order))
