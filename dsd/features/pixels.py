"""What the built-in extractors make of channels.

| channels | taken for | colour network (``to_rgb``) | grey network (``to_grey``) |
|---|---|---|---|
| 1 | grey | repeated three times | as it is |
| 2 | complex: real and imaginary part | the magnitude, as grey | the magnitude |
| 3 | red, green, blue | as they are | luma |

Other images are refused. Complex ones are judged by their magnitude alone, as is usual for
magnetic resonance. A user's own extractor gets all channels as they are.
"""

from jaxtyping import Float
from torch import Tensor

from dsd.features.config import KNOWN_CHANNELS
from dsd.utils.errors import DataError
from dsd.utils.images import magnitude, require_pixels
from dsd.utils.shapes import Pixels

__all__ = ["to_grey", "to_rgb"]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in ITU-R BT.601, as in most image libraries."""


def to_grey(images: Pixels) -> Float[Tensor, " b 1 h w"]:
    """One float32 channel in [0, 255].

    Raises:
        DataError: The images are not 8-bit, or have more than three channels.
    """
    values = _values(images)
    if values.shape[1] == 1:
        return values
    return (values * values.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)


def to_rgb(images: Pixels) -> Float[Tensor, " b 3 h w"]:
    """Three float32 channels in [0, 255].

    Raises:
        DataError: The images are not 8-bit, or have more than three channels.
    """
    return _values(images).expand(-1, 3, -1, -1)


def _values(images: Pixels) -> Float[Tensor, " b _ h w"]:
    require_pixels(images)
    channels = images.shape[1]
    if channels == 2:
        return magnitude(images)
    if channels not in KNOWN_CHANNELS:
        msg = (
            f"images have {channels} channels but the built-in feature extractors know 1 (grey), "
            "2 (complex) and 3 (RGB); name an extractor of your own (package.module:function) "
            "or prepare the images with fewer channels"
        )
        raise DataError(msg)
    return images.float()
