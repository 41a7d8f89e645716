"""What every metric asks of features, each with one message."""

from jaxtyping import Float, Float64
from torch import Tensor

from dsd.utils.errors import DataError

__all__ = ["checked_pair", "require_count", "require_finite", "require_same_space"]


def require_count(count: int, *, at_least: int, metric: str) -> None:
    """Raise DataError if a set has fewer images than ``metric``, named with its article, needs."""
    if count < at_least:
        msg = (
            f"{metric} needs at least {at_least} images in each set but one has {count}; "
            "raise the number of samples"
        )
        raise DataError(msg)


def require_finite(features: Float[Tensor, " b d"]) -> None:
    """Raise DataError if a feature is NaN or infinite."""
    if features.sum().isfinite():  # far cheaper than a look at each, and never so by mistake
        return
    finite = features.isfinite().all(dim=1)
    if not finite.all():
        msg = (
            f"features of {int((~finite).sum())} of {len(features)} images are NaN or infinite; "
            "the images or the feature extractor's weights are broken"
        )
        raise DataError(msg)


def require_same_space(
    a: int, b: int, protocols: tuple[str | None, str | None] = (None, None)
) -> None:
    """Raise DataError if lengths of features, or protocols that are known, differ."""
    if a != b:
        sides = f"of {a} and of {b} numbers"
    elif None not in protocols and protocols[0] != protocols[1]:
        sides = f"made by {protocols[0]!r} and by {protocols[1]!r}"
    else:
        return
    msg = f"features {sides} cannot be compared; measure both sets with the same feature extractor"
    raise DataError(msg)


def checked_pair(
    a: Float[Tensor, " n d"], b: Float[Tensor, " m _"], *, at_least: int, metric: str
) -> tuple[Float64[Tensor, " n d"], Float64[Tensor, " m d"]]:
    """Two comparable sets of features in float64, both on the device of ``a``.

    Raises:
        DataError: A set is too small, a feature is NaN or infinite, or lengths differ.
    """
    require_same_space(a.shape[1], b.shape[1])
    for features in (a, b):
        require_count(len(features), at_least=at_least, metric=metric)
        require_finite(features)
    return a.detach().double(), b.detach().double().to(a.device)
