"""Inception score: are images of one kind each, and of all kinds together?

    IS = exp( mean_i KL( p(class | x_i) || mean_j p(class | x_j) ) )

It means something only where the classes are those of the data, so here it takes the ten kinds of
clothes of the ``fashion-classifier`` alone; ImageNet's thousand classes say nothing about small
or grey images. It never looks at the data: a generator with one perfect image of each kind gets
the best score.

Reference:
    Salimans et al. 2016, "Improved techniques for training GANs" (arXiv:1606.03498), section 4.
"""

from jaxtyping import Float
from torch import Tensor

from dsd.metrics.checks import require_count, require_finite

__all__ = ["inception_score"]


def inception_score(probabilities: Float[Tensor, " n k"]) -> float:
    """The score, from 1 (all images alike or undecided) to the number of classes.

    Args:
        probabilities: Of each class for each image, as ``FashionClassifier.probabilities`` gives
            them; all images are one split.

    Raises:
        DataError: There are fewer than 2 images, or a probability is NaN.
    """
    require_count(len(probabilities), at_least=2, metric="an inception score")
    require_finite(probabilities)
    p = probabilities.double()
    return float((_entropy(p.mean(dim=0, keepdim=True)) - _entropy(p).mean()).exp())


def _entropy(p: Float[Tensor, " n k"]) -> Float[Tensor, " n"]:
    return -p.xlogy(p).sum(dim=1)
