"""Choosing the generator: ``distill.selection``."""

from typing import Annotated

from pydantic import Field

from dsd.features.config import FeatureSpace
from dsd.utils.config import Count, Positive, Section


class Selection(Section):
    """Choosing the generator by Proximal FID, without clean images."""

    features: FeatureSpace
    """Feature space of the Frechet distance; see ``evaluate.features``. ``teacher`` has seen
    nothing but the noisy images."""

    every_kimg: Positive
    """Interval of measurements; there is one at the beginning and one at the end in any case."""

    num_samples: Annotated[int, Field(ge=2)]
    """Generated images in each measurement, always from the same latents."""

    save_top_k: Count
    """How many of the best generators to keep; the last one is kept besides."""
