"""From the bytes of a picture file to pixels, and to fewer pixels."""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias, final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from dsd.sources.tiff import ONE_MAP, Page, is_tiff, read_pages

__all__ = ["MAX_BYTES", "Encoding", "PictureFile", "Planes", "area_average"]

Planes: TypeAlias = UInt8[np.ndarray, " c h w"]
"""One picture: 8 bit, one channel (grey) or three (RGB)."""

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
"""The only decoders that foreign bytes may reach."""

MAX_PIXELS = 2**26
"""Larger pictures are taken for decompression bombs."""

MAX_BYTES = 2**28
"""Of an encoded picture: more than ``MAX_PIXELS`` of RGB need without any compression."""

_LOSSY_TIFF = {"tiff_jpeg": "JPEG", "jpeg": "JPEG", "webp": "WebP"}
"""Compressions inside TIFF that change pixels: Pillow's name and that for people."""

_ONE_PAGE = [Page(1, 0, 0)]
"""Of every file that is no TIFF."""

_FEW_BITS = re.compile(r";(1|2|4|15|16)(?!\d)")
"""In Pillow's names of layouts: fewer bits a pixel than 8 a channel."""

_FEW_LEVELS = 16
"""Palettes of no more colours hold what was reduced to them."""


class Encoding(NamedTuple):
    """How the pixels of a picture were kept, as far as it matters to noise in them."""

    name: str
    """For people: the format, and what is unusual about it."""

    harm: Literal["none", "lossy", "reduced"]
    """``lossy`` compression removes and correlates noise; ``reduced`` pixels were rounded to few
    levels or to a palette, and their noise with them."""


@final
class PictureFile:
    """A picture file whose headers were read and found usable.

    Attributes:
        count: Pictures in it: the pages of a TIFF file, and the frames behind them; else 1.
    """

    def __init__(self, content: bytes) -> None:
        """Read the headers.

        Args:
            content: The whole file.

        Raises:
            ValueError: It is damaged, of another format, or not 8-bit grey or RGB; says which.
        """
        if len(content) > MAX_BYTES:
            msg = f"has {len(content)} bytes, more than {MAX_BYTES}; split or crop it"
            raise ValueError(msg)
        self._content = content
        self._pages = read_pages(io.BytesIO(content)) if is_tiff(content) else _ONE_PAGE
        self.count = sum(page.frames for page in self._pages)
        with _decoding(content):
            self._image = Image.open(io.BytesIO(content), formats=FORMATS)
            objection = _objection(self._image) or _fourth_channel(self._image, content)
        if objection is not None:
            raise ValueError(objection)

    def read(self, number: int) -> tuple[Planes, Encoding]:
        """Decode a picture, turned upright where its EXIF says that it lies on its side.

        Args:
            number: Which, from 0 on; each once, in order.

        Raises:
            ValueError: It is damaged, or not 8-bit grey or RGB; says which.
        """
        page, frame = self._place(number)
        image, objection, raw_mode = self._image, None, ""
        with _decoding(self._content):
            if page > 0:
                image.seek(page)
                objection = _objection(image)
            raw_mode = _raw_mode(image)
            if objection is None and self._pages[page].frames == 1:
                image.load()
                # Pillow does so for TIFF unasked; the same picture must not depend on its format.
                # What says that it lies on its side is in ``info``, which most pictures lack.
                if image.info:
                    ImageOps.exif_transpose(image, in_place=True)
        if objection is not None:
            raise ValueError(objection)
        encoding = _encoding(image, raw_mode, self._content)
        if self._pages[page].frames > 1:
            return self._behind(self._pages[page], frame, inverted=raw_mode == "L;I"), encoding
        return _planes(image), encoding

    def _place(self, number: int) -> tuple[int, int]:
        """The page of a picture, and which of that page's frames it is."""
        page = 0
        while number >= self._pages[page].frames:
            number -= self._pages[page].frames
            page += 1
        return page, number

    def _behind(self, page: Page, frame: int, *, inverted: bool) -> Planes:
        """A picture of several that lie one behind the other."""
        width, height = self._image.size
        start = page.start + frame * page.frame_size
        pixels = np.frombuffer(self._content, np.uint8, page.frame_size, start)
        planes = pixels.reshape(height, width, -1).transpose(2, 0, 1)
        return 255 - planes if inverted else planes


@contextlib.contextmanager
def _decoding(content: bytes) -> Iterator[None]:
    """Whatever Pillow raises, as a ValueError that says what is wrong; its warnings go nowhere.

    One of these is that of decompression bombs, whose sizes ``_objection`` refuses.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except UnidentifiedImageError as error:
        msg = "is no PNG, JPEG, BMP, WebP or TIFF picture"
        if is_tiff(content):
            msg = "is TIFF of a compression or colours that are not read; save it as grey or RGB"
        raise ValueError(msg) from error
    # On damaged bytes, Pillow's decoders raise nearly anything.
    except Exception as error:
        msg = f"cannot be decoded ({error})"
        raise ValueError(msg) from error


def _objection(image: ImageFile.ImageFile) -> str | None:
    """Why a picture cannot be used, judged by its header alone."""
    if image.width * image.height > MAX_PIXELS:
        return f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS}; crop it"
    frames = 1 if image.format == "TIFF" else getattr(image, "n_frames", 1)
    if frames > 1 and image.format == "MPO":
        return (
            f"holds {frames} pictures (MPO: a stereo pair, or a photograph and its preview); save "
            "the one that you mean as a single picture"
        )
    if frames > 1:
        return f"is an animation of {frames} frames; save those that you mean as pictures"
    raw_mode = _raw_mode(image)
    if image.mode[0] in "IF" or (";16" in raw_mode and raw_mode != "BGR;16"):
        return f"has more than 8 bits a channel, {ONE_MAP}"
    if image.mode not in {"1", "L", "P", "RGB", "LA", "PA", "RGBA"}:
        return f"has colour mode {image.mode}; convert it to grey or RGB"
    return None


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's name for the layout of the pixels in the file, of a picture not loaded yet."""
    arguments = image.tile[0][3] if image.tile else None
    return str(arguments[0]) if isinstance(arguments, tuple) else str(arguments)


def _fourth_channel(image: ImageFile.ImageFile, content: bytes) -> str | None:
    """Whether a BMP of 32 bits holds something in the byte that Pillow leaves out."""
    if image.format != "BMP" or _raw_mode(image) != "BGRX":
        return None
    spare = np.frombuffer(content, np.uint8, offset=image.tile[0][2])[3::4]
    spare = spare[: image.width * image.height]
    if len(spare) == 0 or spare.min() == spare.max():
        return None
    return "has a fourth channel that varies; save it as RGB, or as several grey pictures"


def _encoding(image: ImageFile.ImageFile, raw_mode: str, content: bytes) -> Encoding:
    """How the pixels of a loaded picture were kept."""
    name = {"WEBP": "WebP", "MPO": "JPEG"}.get(str(image.format), str(image.format))
    few = _FEW_BITS.search(raw_mode)
    if image.mode in {"P", "PA"}:
        return Encoding(f"palette {name}", "none" if _is_grey_ramp(image) else "reduced")
    if image.mode == "1" or few:
        return Encoding(f"{few[1] if few else 1}-bit {name}", "reduced")
    if name == "WebP":
        lossy = _webp_is_lossy(content)
        return Encoding("lossy WebP", "lossy") if lossy else Encoding("lossless WebP", "none")
    inner = _LOSSY_TIFF.get(image.info.get("compression", "")) if name == "TIFF" else None
    if inner:
        return Encoding(f"{inner} in TIFF", "lossy")
    return Encoding(name, "lossy" if name == "JPEG" else "none")


def _webp_is_lossy(content: bytes) -> bool:
    """Whether the pixels lie in a chunk of the lossy kind."""
    at = 12
    while at + 8 <= len(content) and content[at : at + 4] not in {b"VP8 ", b"VP8L"}:
        at += 8 + (int.from_bytes(content[at + 4 : at + 8], "little") + 1) // 2 * 2
    return content[at : at + 4] == b"VP8 "


def _is_grey_ramp(image: Image.Image) -> bool:
    """Whether a palette holds most greys between two, so that nothing was rounded to it."""
    palette = np.array(image.getpalette("RGB") or [], np.int64).reshape(-1, 3)
    levels = np.unique(palette)
    return bool(
        len(levels) > _FEW_LEVELS
        and (palette == palette[:, :1]).all()
        and 2 * len(levels) > levels[-1] - levels[0]
    )


def _planes(image: Image.Image) -> Planes:
    """Pixels of a loaded picture, channels first."""
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in {"1", "L", "LA"} else "RGBA")
        if image.getextrema()[-1] != (255, 255):
            msg = (
                "is partly transparent: its alpha channel is not 255 everywhere; flatten it onto "
                "a background, or save the channel as a separate picture where it holds data"
            )
            raise ValueError(msg)
        image = image.convert(image.mode[:-1])
    elif image.mode in {"1", "P"}:
        grey = image.mode == "1" or _is_grey_ramp(image)
        image = image.convert("L" if grey else "RGB")
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
