"""Fewest images for each measure; without torch, which a check of parameters need not load."""

__all__ = ["COVERAGE_K", "FRECHET", "KERNEL", "MANIFOLD", "PRECISION_K"]

FRECHET = 2
"""Images in each set for a Frechet distance: a covariance needs two."""

KERNEL = 2
"""Images in each set for a kernel distance: a pair."""

PRECISION_K = 3
"""Neighbours that give the radius of a ball for precision and recall, as in the paper."""

COVERAGE_K = 5
"""Neighbours that give the radius of a ball for density and coverage, as in the paper."""

MANIFOLD = 1 + max(PRECISION_K, COVERAGE_K)
"""Images in each set for all four shares: an image is no neighbour to itself."""
