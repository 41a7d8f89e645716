"""Between images as saved (8 bit) and images as computed with ([-1, 1])."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dsd.utils.errors import DataError, NonFiniteError
from dsd.utils.files import published
from dsd.utils.shapes import Pixels

__all__ = [
    "enlarged",
    "from_uint8",
    "magnitude",
    "require_data_units",
    "require_pixels",
    "save_grid",
    "save_rows",
    "to_uint8",
    "visible",
]

_SHOWN_SIZE = 64
"""Pixels of an enlarged image, about."""

_COLOURS = 3
_GAP = 2
_LABEL_WIDTH = 150


def require_pixels(images: Tensor) -> None:
    """Refuse images that are not 8-bit.

    Raises:
        DataError: Their type is another one.
    """
    if images.dtype != torch.uint8:
        msg = (
            f"images: their type is {_type(images)}, not uint8. "
            "Convert images in data units with dsd.utils.images.to_uint8"
        )
        raise DataError(msg)


def require_data_units(images: Tensor) -> None:
    """Refuse images that are not floating-point numbers, such as 8-bit images.

    Raises:
        DataError: Their type is another one.
    """
    if not images.is_floating_point():
        msg = (
            f"images: their type is {_type(images)}, not floating-point numbers in data units, "
            "[-1, 1]. Convert 8-bit images with dsd.utils.images.from_uint8"
        )
        raise DataError(msg)


def _type(images: Tensor) -> str:
    return str(images.dtype).removeprefix("torch.")


def to_uint8(x: Float[Tensor, " b c h w"]) -> Pixels:
    """Images as they are saved: clamped to [-1, 1] and quantised.

    Raises:
        DataError: The images are no floating-point numbers.
        NonFiniteError: A pixel is NaN or infinite. As a saved image it would look like any other.

    Reference:
        The convention of Karras et al. 2022 (arXiv:2206.00364), which FID values of this field
        assume.
    """
    require_data_units(x)
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
    """Saved images in data units, [-1, 1].

    Raises:
        DataError: The images are not 8-bit.
    """
    require_pixels(pixels)
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


def visible(pixels: Pixels, *, is_complex: bool = False) -> UInt8[Tensor, " b _ h v"]:
    """Images of any channels as grey or RGB pictures; every picture of images is made by this.

    Of complex ones the brightness. Two channels, such as those of two dyes, are green and magenta:
    where both are bright the picture is white, also for the colour-blind. Three are red, green and
    blue. More are grey pictures side by side.
    """
    channels = pixels.shape[1]
    if is_complex:
        return magnitude(pixels).round().to(torch.uint8)
    if channels == 2:
        return pixels[:, [1, 0, 1]]
    if channels > _COLOURS:
        return torch.cat([*pixels.split(1, dim=1)], dim=-1)
    return pixels


def _grid(pixels: Pixels, *, columns: int, gap: int) -> Image.Image:
    """Images side by side, row by row, with borders of the grey level ``gap``.

    A single image has no border.
    """
    tiles = pixels.expand(-1, max(3, pixels.shape[1]), -1, -1).permute(0, 2, 3, 1).cpu().numpy()
    count, height, width, channels = tiles.shape
    if count == 1:
        return Image.fromarray(tiles[0])
    columns = min(columns, count)
    down, right = height + _GAP, width + _GAP
    shape = (-(-count // columns) * down + _GAP, columns * right + _GAP, channels)
    grid = np.full(shape, gap, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * down + _GAP, number % columns * right + _GAP
        grid[top : top + height, left : left + width] = tile
    return Image.fromarray(grid)


def save_grid(
    pixels: Pixels, path: Path, *, columns: int, zoom: int = 1, is_complex: bool = False
) -> None:
    """Publish images side by side as one PNG, each pixel shown as ``zoom`` x ``zoom``."""
    shown = enlarged(visible(pixels, is_complex=is_complex), zoom)
    grid = _grid(shown, columns=columns, gap=128)
    with published(path) as file:
        grid.save(file, format="png")


def save_rows(rows: Mapping[str, Pixels], path: Path, *, is_complex: bool = False) -> None:
    """Publish a picture with one labelled row of images for each entry, to judge by eye.

    Smaller images are shown as large as the largest, whose size theirs must divide. A row of fewer
    images than another one ends in white.
    """
    largest = max(pixels.shape[-1] for pixels in rows.values())
    width = largest * max(1, _SHOWN_SIZE // largest)
    lines = [
        enlarged(visible(pixels, is_complex=is_complex), width // pixels.shape[-1])
        for pixels in rows.values()
    ]
    columns = max(map(len, lines))
    filled = [torch.cat([x, x.new_full((columns - len(x), *x.shape[1:]), 255)]) for x in lines]
    grid = _grid(torch.cat(filled), columns=columns, gap=255)
    strip = Image.new("RGB", (grid.width + _LABEL_WIDTH, grid.height), "white")
    strip.paste(grid, (_LABEL_WIDTH, 0))
    draw, height = ImageDraw.Draw(strip), lines[0].shape[-2] + _GAP
    font = ImageFont.load_default(size=15)
    for number, label in enumerate(rows):
        draw.text((6, number * height + height // 2), label, "black", font=font, anchor="lm")
    with published(path) as file:
        strip.save(file, format="png")
