"""Between images as saved (8 bit) and images as computed with ([-1, 1])."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid, save_image

from dsd.utils.errors import NonFiniteError
from dsd.utils.files import published
from dsd.utils.shapes import Pixels

__all__ = ["enlarged", "from_uint8", "magnitude", "save_grid", "save_rows", "to_uint8"]

_SHOWN_SIZE = 64
"""Pixels of an enlarged image, about."""

_GAP = 2
_LABEL_WIDTH = 150


def to_uint8(x: Float[Tensor, " b c h w"]) -> Pixels:
    """Images as they are saved: clamped to [-1, 1] and quantised.

    Raises:
        NonFiniteError: A pixel is NaN or infinite. As a saved image it would look like any other.

    Reference:
        The convention of Karras et al. 2022 (arXiv:2206.00364), which FID values of this field
        assume.
    """
    # One number to wait for; it is not finite if any pixel is not, or if the sum is too large.
    if not x.sum(dtype=torch.float32).isfinite():
        _refuse_non_finite(x)
    return (x * 127.5 + 128).clip(0, 255).to(torch.uint8)


def _refuse_non_finite(x: Float[Tensor, " b c h w"]) -> None:
    """Raise an error that counts the images with such pixels, if there are any."""
    broken = (~x.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        msg = (
            f"{len(broken)} of {len(x)} images hold NaN or infinite pixels, the first of them is "
            f"number {broken[0]}: the network that made them has diverged; train it again with a "
            "lower learning rate"
        )
        raise NonFiniteError(msg)


def from_uint8(pixels: Pixels) -> Float[Tensor, " b c h w"]:
    """Saved images in data units, [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1


def magnitude(pixels: UInt8[Tensor, " b 2 h w"]) -> Float[Tensor, " b 1 h w"]:
    """Brightness in [0, 255] of saved complex images: channels are real and imaginary part.

    The phase is lost, and what is brighter than white is white.
    """
    length: Tensor = torch.linalg.vector_norm(from_uint8(pixels), dim=1, keepdim=True)
    return 255 * length.clamp(max=1)


def enlarged(pixels: Pixels, zoom: int) -> UInt8[Tensor, " b c v u"]:
    """Each pixel as ``zoom`` x ``zoom`` pixels."""
    return pixels.repeat_interleave(zoom, dim=-1).repeat_interleave(zoom, dim=-2)


def _shown(pixels: Pixels, zoom: int) -> Float[Tensor, " b _ v u"]:
    """Images for a picture, in [0, 1], enlarged; of complex ones the brightness."""
    visible = magnitude(pixels).round().to(torch.uint8) if pixels.shape[1] == 2 else pixels
    return enlarged(visible, zoom).float() / 255


def save_grid(pixels: Pixels, path: Path, *, columns: int, zoom: int = 1) -> None:
    """Publish images side by side as one PNG, each pixel shown as ``zoom`` x ``zoom``."""
    grid = make_grid(_shown(pixels, zoom), nrow=columns, padding=2, pad_value=0.5)
    with published(path) as file:
        save_image(grid, file, format="png")


def save_rows(rows: Mapping[str, Pixels], path: Path) -> None:
    """Publish a picture with one labelled row of images for each entry, to judge by eye.

    Smaller images are shown as large as the largest, whose size theirs must divide. A row of fewer
    images than another one ends in white.
    """
    largest = max(pixels.shape[-1] for pixels in rows.values())
    width = largest * max(1, _SHOWN_SIZE // largest)
    lines = [_shown(pixels, width // pixels.shape[-1]) for pixels in rows.values()]
    columns = max(map(len, lines))
    filled = [torch.cat([x, x.new_ones(columns - len(x), *x.shape[1:])]) for x in lines]
    grid = make_grid(torch.cat(filled), nrow=columns, padding=_GAP, pad_value=1.0)
    strip = Image.new("RGB", (grid.shape[2] + _LABEL_WIDTH, grid.shape[1]), "white")
    strip.paste(to_pil_image(grid), (_LABEL_WIDTH, 0))
    draw, height = ImageDraw.Draw(strip), lines[0].shape[-2] + _GAP
    font = ImageFont.load_default(size=15)
    for number, label in enumerate(rows):
        draw.text((6, number * height + height // 2), label, "black", font=font, anchor="lm")
    with published(path) as file:
        strip.save(file, format="png")
