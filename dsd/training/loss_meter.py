"""Means over many steps, kept on the device so that training does not wait for them."""

from typing import NamedTuple, final

import torch
from torch import nn

from dsd.utils.shapes import Level, PerSample

__all__ = ["BinnedMean", "Means", "step_line"]

_EDGES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Borders of the noise levels' bins, in data units."""


class Means(NamedTuple):
    """Means since the last reading."""

    mean: float
    by_level: dict[str, float]
    """Means of the samples up to each border of the noise level that have samples."""


@final
class BinnedMean(nn.Module):
    """Mean of a value, overall and by noise level; a module so that states save it."""

    edges: torch.Tensor
    totals: torch.Tensor
    counts: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        bins = len(_EDGES) + 1
        self.register_buffer("edges", torch.tensor(_EDGES), persistent=False)
        self.register_buffer("totals", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.float64))

    def add(self, values: PerSample, sigma: Level) -> None:
        """Count one value for each sample, at that sample's noise level."""
        bins = torch.bucketize(sigma, self.edges)
        self.totals.index_add_(0, bins, values.double())
        self.counts.index_add_(0, bins, torch.ones_like(values, dtype=torch.float64))

    def read(self) -> Means:
        """Return the means since the last reading, and start again."""
        totals, counts = self.totals.tolist(), self.counts.tolist()
        names = [f"<={edge:g}" for edge in _EDGES] + [f">{_EDGES[-1]:g}"]
        bins = zip(names, totals, counts, strict=True)
        by_level = {name: total / count for name, total, count in bins if count}
        mean = sum(totals) / max(sum(counts), 1.0)
        self.totals.zero_()
        self.counts.zero_()
        return Means(mean, by_level)


def step_line(name: str, images_seen: int, sigma: Level, **losses: PerSample | None) -> str:
    """Return one line on a step of a training: means of its losses, and the range of its levels.

    Args:
        name: Of the step.
        images_seen: After the step.
        sigma: Level of each sample.
        **losses: Loss of each sample; None where there is none.
    """
    means = [f"{key}={float(x.mean()):.4g}" for key, x in losses.items() if x is not None]
    levels = f"sigma={float(sigma.min()):.3g}..{float(sigma.max()):.3g}"
    return f"{name}({', '.join([f'images_seen={images_seen}', *means, levels])})"
