"""What the numbers of a model's images mean: kept with the model, so that it knows raw units."""

from typing import Literal, TypeAlias, TypeVar

import numpy as np
from torch import Tensor

from dsd.utils.config import NonNegative, Section
from dsd.utils.intensity import Intensity

__all__ = ["AnyPicture", "ImageUnits", "Unit", "require_unit"]

AnyPicture = TypeVar("AnyPicture", np.ndarray, Tensor)
"""Numbers [h, w], [c, h, w] or [n, c, h, w]."""

Unit: TypeAlias = Literal["raw", "data"]
"""``raw``: of the source's files; ``data``: in which networks compute."""


class ImageUnits(Section):
    """Units, noise and channels of the images that a model was learned from."""

    intensity: Intensity
    """The map between data units and raw numbers, and the type of these."""

    sigma: NonNegative
    """Highest noise level of the images that were learned from, in data units."""

    is_complex: bool
    """Whether channels are real and imaginary parts, in turn."""

    suffix: str
    """Of files like those of the source, with the dot."""


def require_unit(unit: str) -> None:
    """Refuse what is no unit.

    Raises:
        ValueError: It is neither ``raw`` nor ``data``.
    """
    if unit not in {"raw", "data"}:
        msg = f"unit: {unit!r} is no unit. Name raw or data"
        raise ValueError(msg)
