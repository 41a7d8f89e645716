"""From the bytes of a picture file to pixels, and to fewer pixels."""

import io
import warnings
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["MAX_BYTES", "Planes", "area_average", "decode"]

Planes: TypeAlias = UInt8[np.ndarray, " c h w"]
"""One picture: 8 bit, one channel (grey) or three (RGB)."""

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
"""The only decoders that foreign bytes may reach."""

MAX_PIXELS = 2**26
"""Larger pictures are taken for decompression bombs."""

MAX_BYTES = 2**28
"""Of an encoded picture: more than ``MAX_PIXELS`` of RGB need without any compression."""

_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339
"""Tags of TIFF."""


def decode(content: bytes) -> Planes:
    """The pixels of an encoded picture: 8-bit grey or RGB; palettes and 1 bit are converted.

    A picture whose EXIF says that it lies on its side is turned upright, as viewers show it.

    Raises:
        ValueError: It is damaged, of another format, or not 8-bit grey or RGB; says which.
    """
    if len(content) > MAX_BYTES:
        msg = f"has {len(content)} bytes, more than {MAX_BYTES}"
        raise ValueError(msg)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            objection = _objection(image)
            if objection is None:
                image.load()
                # Pillow does so for TIFF unasked; the same picture must not depend on its format.
                ImageOps.exif_transpose(image, in_place=True)
    except UnidentifiedImageError as error:
        msg = "is no PNG, JPEG, BMP, WebP or TIFF picture"
        raise ValueError(msg) from error
    # On damaged bytes, Pillow's decoders raise nearly anything.
    except Exception as error:
        msg = f"cannot be decoded ({error})"
        raise ValueError(msg) from error
    if objection is not None:
        raise ValueError(objection)
    return _planes(image)


def _objection(image: Image.Image) -> str | None:
    """Why a picture cannot be used, judged by its header alone."""
    if image.width * image.height > MAX_PIXELS:
        return f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS}"
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        return f"holds {frames} frames; save each as a file of its own"
    if _is_deep(image):
        return "has more than 8 bits a channel; convert it to 8 bits"
    if image.mode not in {"1", "L", "P", "RGB", "LA", "PA", "RGBA"}:
        return f"has colour mode {image.mode}; convert it to grey or RGB"
    return None


def _is_deep(image: Image.Image) -> bool:
    """Whether a channel holds anything but whole numbers of 8 bits, which Pillow may not tell.

    It would cut 16-bit RGB down to 8 bits, and take channel planes of 16 bits and signed numbers
    for unsigned bytes, all in silence.
    """
    tags = getattr(image, "tag_v2", {})
    deep = max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8
    unusual = set(tags.get(_SAMPLE_FORMAT, (1,))) != {1}
    return image.mode[0] in "IF" or ";16" in str(getattr(image, "tile", "")) or deep or unusual


def _planes(image: Image.Image) -> Planes:
    """Pixels of a loaded picture, channels first."""
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in {"1", "L", "LA"} else "RGBA")
        if image.getextrema()[-1] != (255, 255):
            msg = "is partly transparent; flatten it onto a background"
            raise ValueError(msg)
        image = image.convert(image.mode[:-1])
    elif image.mode in {"1", "P"}:
        image = image.convert("L" if image.mode == "1" else "RGB")
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _overlaps(size: int, resolution: int) -> np.ndarray:
    """Length that new pixel [row] shares with old pixel [column], in units of 1/resolution."""
    new = np.arange(resolution)[:, None] * size
    old = np.arange(size)[None, :] * resolution
    shared = np.minimum(new + size, old + resolution) - np.maximum(new, old)
    return shared.clip(min=0).astype(np.float64)


def area_average(
    pixels: UInt8[np.ndarray, " n c s s"], resolution: int
) -> UInt8[np.ndarray, " n c r r"]:
    """Square images made smaller: each new pixel is the exact mean over its area, rounded half up.

    Sums are whole numbers below 2**53, so that no rounding depends on the machine.
    """
    size = pixels.shape[-1]
    overlaps = _overlaps(size, resolution)
    sums = (overlaps @ pixels.astype(np.float64) @ overlaps.T).astype(np.int64)
    means: np.ndarray = (2 * sums + size**2) // (2 * size**2)
    return means.astype(np.uint8)
