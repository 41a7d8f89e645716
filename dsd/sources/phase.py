r"""Complex images from grey ones, as magnetic resonance sees them: x = brightness exp(i phi).

The phase phi varies slowly over the image: a random polynomial of the position. Real and imaginary
part are two channels in [-1, 1]; where the picture is black, both are 0.
"""

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from dsd.utils.errors import ParamsError

__all__ = ["to_complex"]

_KEY_WORD = 0x9A5E
"""Keeps phases independent of other draws for the same image."""

_DEGREE = 2
"""Total degree of the polynomial: a slope and a curvature, as field inhomogeneities leave."""

_STD = np.pi / 2
"""Standard deviation of each coefficient beside the constant, in radians at the image's border."""


def to_complex(
    grey: UInt8[np.ndarray, " n _ h w"], indices: Int64[np.ndarray, " n"]
) -> Float32[np.ndarray, " n 2 h w"]:
    """Complex images with the brightness of ``grey`` and a phase of each image's own.

    Args:
        grey: 8-bit images of one channel.
        indices: Their numbers in the whole set, which alone decide the phase.

    Raises:
        ParamsError: The images are not grey.
    """
    channels = grey.shape[1]
    if channels != 1:
        msg = (
            f"data.phase is smooth, but the images have {channels} channels, and only grey "
            "ones become complex: set it to none, or choose another source"
        )
        raise ParamsError(msg)
    brightness = grey[:, 0].astype(np.float64) / 255
    height, width = grey.shape[2:]
    phase = np.stack([_smooth_phase(int(index), height, width) for index in indices])
    parts = np.stack([brightness * np.cos(phase), brightness * np.sin(phase)], axis=1)
    return parts.astype(np.float32)


def _smooth_phase(index: int, height: int, width: int) -> np.ndarray:
    """The phase in radians: a uniform constant and normal coefficients of the higher monomials."""
    random = np.random.Generator(np.random.Philox(key=np.array([_KEY_WORD, index], np.uint64)))
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    phase = np.full((height, width), random.uniform(-np.pi, np.pi))
    for degree in range(1, _DEGREE + 1):
        for power in range(degree + 1):
            phase += random.normal(0, _STD) * x**power * y ** (degree - power)
    return phase
