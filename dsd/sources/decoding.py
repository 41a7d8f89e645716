"""From the bytes of a picture file to pixels, and to fewer pixels."""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from mmap import mmap
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

__all__ = [
    "MAX_BYTES",
    "ONE_MAP",
    "Content",
    "Encoding",
    "Frames",
    "PictureFile",
    "Planes",
    "area_average",
    "encoding_of",
    "objection_to",
    "raw_mode_of",
]

Content: TypeAlias = bytes | mmap
"""A whole file."""

Planes: TypeAlias = Shaped[np.ndarray, " c h w"]
"""One picture: channels first. Of 8 bits, one channel (grey) or three (RGB), where a format of
pictures gave it."""

ONE_MAP = (
    "which need one linear map for all images, because one noise level needs one unit: set "
    "data.intensity, such as {percentiles: [0.1, 99.9]}"
)
"""What to do with numbers other than unsigned ones of 8 bits."""

MAX_PIXELS = 2**26
"""Larger pictures are taken for decompression bombs."""

MAX_BYTES = 2**28
"""Of an encoded picture: more than ``MAX_PIXELS`` of RGB need without any compression."""

_LOSSY_TIFF = {"tiff_jpeg": "JPEG", "jpeg": "JPEG", "webp": "WebP"}
"""Compressions inside TIFF that change pixels: Pillow's name and that for people."""

_FEW_BITS = re.compile(r";(1|2|4|15|16)(?!\d)")
"""In Pillow's names of layouts: fewer bits a pixel than 8 a channel."""

_DEEP_RGB = "RGB;16B"
"""Pillow's name for colours of 16 bits in PNG, of which it keeps 8."""

_FEW_LEVELS = 16
"""Palettes of no more colours hold what was reduced to them."""


class Encoding(NamedTuple):
    """How the pixels of a picture were kept, as far as it matters to noise in them."""

    name: str
    """For people: the format, and what is unusual about it."""

    harm: Literal["none", "lossy", "reduced"]
    """``lossy`` compression removes and correlates noise; ``reduced`` pixels were rounded to few
    levels or to a palette, and their noise with them."""


@runtime_checkable
class Frames(Protocol):
    """An image file whose headers were read and found usable."""

    @property
    def count(self) -> int:
        """Images in it."""

    def read(self, number: int) -> tuple[Planes, Encoding]:
        """Decode an image.

        Args:
            number: Which, from 0 on; each once, in order.

        Raises:
            ValueError: It is damaged, or not 8-bit grey or RGB; says which.
        """


class PictureFile:
    """A file of one picture that Pillow decodes.

    Args:
        content: The whole file.
        deep: Whether grey pictures may have 16 bits.

    Raises:
        ValueError: It is damaged, of another format, or not 8-bit grey or RGB; says which.
    """

    count = 1
    formats: ClassVar[tuple[str, ...]] = ("PNG", "JPEG", "BMP", "WEBP")
    """The only decoders that foreign bytes may reach."""

    unknown = "is no PNG, JPEG, BMP, WebP or TIFF picture"

    def __init__(self, content: bytes, *, deep: bool = False) -> None:
        self._content = content
        with self.decoding():
            self._image = Image.open(io.BytesIO(content), formats=self.formats)
            objection = objection_to(self._image, deep=deep) or _fourth_channel(
                self._image, content
            )
        if objection is not None:
            raise ValueError(objection)

    def read(self, _: int) -> tuple[Planes, Encoding]:
        """Decode the picture, turned upright where its EXIF says that it lies on its side."""
        image = self._image
        with self.decoding():
            raw_mode = raw_mode_of(image)
            if raw_mode == _DEEP_RGB:
                return _deep_colours(self._content), Encoding("16-bit PNG", "none")
            image.load()
            # Pillow does so for TIFF unasked; the same picture must not depend on its format.
            # What says that it lies on its side is in ``info``, which most pictures lack.
            if image.info:
                ImageOps.exif_transpose(image, in_place=True)
        return _planes(image), encoding_of(image, raw_mode, self._content)

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """Turn whatever Pillow raises into a ValueError that says what is wrong.

        Its warnings go nowhere; ``objection_to`` refuses what they say of decompression bombs.
        """
        try:
            with warnings.catch_warnings(action="ignore"):
                yield
        except UnidentifiedImageError as error:
            raise ValueError(self.unknown) from error
        # On damaged bytes, Pillow's decoders raise nearly anything.
        except Exception as error:
            msg = f"cannot be decoded ({error})"
            raise ValueError(msg) from error


def objection_to(image: ImageFile.ImageFile, *, deep: bool = False) -> str | None:
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
    raw_mode = raw_mode_of(image)
    if deep and (image.mode == "I;16" or raw_mode == _DEEP_RGB):
        return None
    if image.mode[0] in "IF" or (";16" in raw_mode and raw_mode != "BGR;16"):
        return f"has more than 8 bits a channel, {ONE_MAP}"
    if image.mode not in {"1", "L", "P", "RGB", "LA", "PA", "RGBA"}:
        return f"has colour mode {image.mode}; convert it to grey or RGB"
    return None


def raw_mode_of(image: ImageFile.ImageFile) -> str:
    """Pillow's name for the layout of the pixels in the file, of a picture not loaded yet."""
    arguments = image.tile[0][3] if image.tile else None
    return str(arguments[0]) if isinstance(arguments, tuple) else str(arguments)


def _fourth_channel(image: ImageFile.ImageFile, content: bytes) -> str | None:
    """Whether a BMP of 32 bits holds something in the byte that Pillow leaves out."""
    if image.format != "BMP" or raw_mode_of(image) != "BGRX":
        return None
    spare = np.frombuffer(content, np.uint8, offset=image.tile[0][2])[3::4]
    spare = spare[: image.width * image.height]
    if len(spare) == 0 or spare.min() == spare.max():
        return None
    return "has a fourth channel that varies; save it as RGB, or as several grey pictures"


def encoding_of(image: ImageFile.ImageFile, raw_mode: str, content: bytes) -> Encoding:
    """How the pixels of a loaded picture were kept."""
    name = {"WEBP": "WebP", "MPO": "JPEG"}.get(str(image.format), str(image.format))
    if image.mode == "I;16":
        return Encoding(f"16-bit {name}", "none")
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


def _deep_colours(content: bytes) -> Planes:
    """Decode a PNG file of 16 bits and three channels."""
    from imagecodecs import png_decode

    return np.asarray(png_decode(content)).transpose(2, 0, 1)


def _planes(image: Image.Image) -> Planes:
    """Pixels of a loaded picture, channels first."""
    if image.mode == "I;16":
        return np.asarray(image)[None]
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
    pixels: Shaped[np.ndarray, " n c s s"], resolution: int
) -> Shaped[np.ndarray, " n c r r"]:
    """Square images made smaller: each new pixel is the exact mean over its area.

    Of 8-bit images the mean is rounded half up to 8 bits; sums are whole numbers below 2**53, so
    that no rounding depends on the machine. Of others it is float64.
    """
    size = pixels.shape[-1]
    overlaps = _overlaps(size, resolution)
    sums = overlaps @ pixels.astype(np.float64) @ overlaps.T
    if pixels.dtype != np.uint8:
        means: np.ndarray = sums / size**2
        return means
    means = (2 * sums.astype(np.int64) + size**2) // (2 * size**2)
    return means.astype(np.uint8)
