"""Does a generator repeat its training images? Nearest neighbours in feature space.

A generated image next to a training image says little: images of one kind are near each other.
What tells is whether generated images lie nearer to the training set than held-out images, which
were never trained on, do.

Reference:
    Meehan et al. 2020, "A non-parametric test to detect data-copying" (arXiv:2004.05675), the
    global form of its test.
"""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Float64, Int64
from scipy.stats import mannwhitneyu
from torch import Tensor

from dsd.errors import DataError
from dsd.metrics.checks import checked_pair
from dsd.metrics.neighbours import nearest

__all__ = ["Memorisation", "memorisation"]


@final
@dataclass(frozen=True, eq=False)
class Memorisation:
    """How near generated images come to training images, beside what held-out images do."""

    indices: Int64[Tensor, " n k"]
    """Training images nearest to each generated image, nearest first."""

    distances: Float64[Tensor, " n k"]
    """Their distances, in the units of the features."""

    ratio: float
    """Mean distance to the nearest training image, divided by that of held-out images."""

    nearer: float
    """Probability that a generated image lies nearer to the training set than a held-out image:
    about 0.5 for a generator that knows the law of the data, 1 for one that copies."""

    p_value: float
    """Of ``nearer`` being this large by chance (Mann and Whitney's one-sided test, which takes
    images for independent, given the training set)."""

    def most_suspicious(self, count: int) -> Int64[Tensor, " c"]:
        """The generated images that are nearest to a training image, nearest first."""
        return self.distances[:, 0].argsort()[:count]


def memorisation(
    generated: Float[Tensor, " n d"],
    training: Float[Tensor, " m _"],
    heldout: Float[Tensor, " h _"],
    *,
    k: int = 3,
) -> Memorisation:
    """Compare distances to the training set of generated and of held-out images.

    All three sets must be made alike, for example all with the noise of the data.

    Args:
        generated: Features of generated images.
        training: Features of the images that the generator learned from.
        heldout: Features of images of the same law that it did not learn from.
        k: Neighbours to find for each generated image.

    Raises:
        DataError: There are fewer than ``k`` training images, a feature is NaN or infinite,
            lengths differ, or all held-out images have a copy in the training set.
    """
    metric = "a search for memorised images"
    generated, training = checked_pair(generated, training, at_least=k, metric=metric)
    heldout, _ = checked_pair(heldout, training, at_least=1, metric=metric)
    found = nearest(generated, training, k)
    usual = nearest(heldout.to(training.device), training, 1).distances[:, 0]
    own = found.distances[:, 0]
    if not usual.any():
        msg = (
            "all held-out images have a copy among the training images, so what lies near by "
            "chance unknown; hold out other images"
        )
        raise DataError(msg)
    test = mannwhitneyu(own.cpu().numpy(), usual.cpu().numpy(), alternative="less")
    return Memorisation(
        found.indices,
        found.distances,
        ratio=float(own.mean() / usual.mean()),
        nearer=1 - float(test.statistic) / (len(own) * len(usual)),
        p_value=float(test.pvalue),
    )
