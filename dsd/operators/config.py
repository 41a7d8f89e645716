"""Kinds of observation operators: ``corrupt.operator``."""

from typing import Annotated, Literal

from pydantic import Field

from dsd.utils.config import Section


class IdentityOperator(Section):
    """The whole image is observed."""

    kind: Literal["identity"]


class MaskOperator(Section):
    """Random inpainting: each observation lacks other pixels, in all channels alike."""

    kind: Literal["mask"]

    keep_prob: Annotated[float, Field(gt=0, lt=1)]
    """Probability that a pixel is observed."""

    further_mask_prob: Annotated[float, Field(gt=0, lt=1)]
    """Probability that training hides an observed pixel (fourier: an observed column outside the
    centre) from the denoiser, which thereby learns to fill in; the reference uses 0.1."""


class BlurOperator(Section):
    """A Gaussian blur, the same for all images, with reflection at the borders."""

    kind: Literal["blur"]

    std: Annotated[float, Field(ge=0.2, allow_inf_nan=False)]
    """Standard deviation of the kernel, in pixels; the reference uses 2 for images of 64. Below
    0.2 a kernel would blur nothing."""

    radius: Annotated[int, Field(ge=1, le=64)]
    """The kernel covers 2 radius + 1 pixels a side; the reference uses 4."""


class DownsampleOperator(Section):
    """Smaller images: each pixel is the mean of a square of pixels."""

    kind: Literal["downsample"]

    factor: Annotated[int, Field(ge=2, le=16)]
    """Side of the square, a divisor of the images' height and width."""


class FourierOperator(Section):
    """Accelerated magnetic resonance: random columns of the complex image's Fourier transform."""

    kind: Literal["fourier"]

    acceleration: Annotated[float, Field(gt=1, le=64)]
    """Mean number of columns for each one that is observed."""

    center: Annotated[float, Field(gt=0, lt=1)]
    """Fraction of the columns, those of the lowest frequencies, that are always observed."""

    further_mask_prob: Annotated[float, Field(gt=0, lt=1)]
    """As for a mask: the probability that training hides an observed column outside the
    centre."""


OperatorChoice = Annotated[
    IdentityOperator | MaskOperator | BlurOperator | DownsampleOperator | FourierOperator,
    Field(discriminator="kind"),
]


PARTIAL_OPERATORS = ("mask", "fourier")
"""Kinds of operators whose observations lack pixels or frequencies."""
