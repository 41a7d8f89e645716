"""What extractors do to 8-bit images first: grey to colour, colour to grey."""

from jaxtyping import Float
from torch import Tensor

from dsd.errors import DataError
from dsd.shapes import Pixels

__all__ = ["to_grey", "to_rgb"]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in ITU-R BT.601, as in most image libraries."""


def to_grey(images: Pixels) -> Float[Tensor, " b 1 h w"]:
    """One float32 channel in [0, 255]; three channels are weighed by luma.

    Raises:
        DataError: The images have neither one nor three channels.
    """
    _check_channels(images)
    values = images.float()
    if values.shape[1] == 1:
        return values
    return (values * values.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)


def to_rgb(images: Pixels) -> Float[Tensor, " b 3 h w"]:
    """Three float32 channels in [0, 255]; a grey one is repeated.

    Raises:
        DataError: The images have neither one nor three channels.
    """
    _check_channels(images)
    return images.float().expand(-1, 3, -1, -1)


def _check_channels(images: Pixels) -> None:
    if (channels := images.shape[1]) not in (1, 3):
        msg = (
            f"images have {channels} channels but feature extractors know 1 (grey) and 3 (RGB); "
            "prepare the images with one or three"
        )
        raise DataError(msg)
