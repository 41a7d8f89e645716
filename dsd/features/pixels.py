"""What extractors do to 8-bit images first: grey to colour, colour to grey, complex to grey.

Complex images (two channels, real and imaginary part) are judged by their magnitude alone, as is
usual for magnetic resonance: a distance says nothing of their phase.
"""

from jaxtyping import Float
from torch import Tensor

from dsd.errors import DataError
from dsd.images import magnitude
from dsd.shapes import Pixels

__all__ = ["to_grey", "to_rgb"]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in ITU-R BT.601, as in most image libraries."""


def to_grey(images: Pixels) -> Float[Tensor, " b 1 h w"]:
    """One float32 channel in [0, 255]; three channels are weighed by luma.

    Raises:
        DataError: The images have more than three channels.
    """
    values = _values(images)
    if values.shape[1] == 1:
        return values
    return (values * values.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)


def to_rgb(images: Pixels) -> Float[Tensor, " b 3 h w"]:
    """Three float32 channels in [0, 255]; a grey one is repeated.

    Raises:
        DataError: The images have more than three channels.
    """
    return _values(images).expand(-1, 3, -1, -1)


def _values(images: Pixels) -> Float[Tensor, " b _ h w"]:
    """One or three channels in [0, 255]."""
    channels = images.shape[1]
    if channels == 2:
        return magnitude(images)
    if channels not in (1, 3):
        msg = (
            f"images have {channels} channels but feature extractors know 1 (grey), 2 (complex) "
            "and 3 (RGB); prepare the images with one of these"
        )
        raise DataError(msg)
    return images.float()
