"""What a TIFF file says that it holds, read from its directories and not from its pixels.

Pillow reads one picture for each directory. Scientific software also writes stacks whose frames
lie one behind the other after a single directory, channels beyond the third, volumes, and pictures
in sub-directories. All of these are found here, so that no part of a file is left out.
"""

import logging
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import IO, ClassVar, cast, final

import numpy as np
from tifffile import TiffFile, TiffPage

from dsd.sources.decoding import (
    ONE_MAP,
    Content,
    Encoding,
    PictureFile,
    Planes,
    encoding_of,
    objection_to,
    raw_mode_of,
)
from dsd.sources.formats.stack import UnusableError

__all__ = ["Page", "TiffPictures", "count_images", "promised_frames", "read_pages"]

MAX_FRAMES = 2**16
"""Frames of one file."""

MAX_SAMPLES = 2**31
"""Numbers in all frames of one file; a few hundred bytes can say that there are any number."""

_DEPTH, _EXIF, _GPS = 32997, 34665, 34853
_OFFSETS = (273, 324)
"""Tags of the offsets of strips and tiles."""

_REDUCED_OR_MASK = 0b101
"""Bits of the tag NewSubfileType."""

_COLOURS = {0: ("grey", 1), 1: ("grey", 1), 2: ("RGB", 3), 3: ("palette", 1)}
"""Name and usual number of channels, by the tag PhotometricInterpretation."""

# It logs what it finds odd in a file; what matters here is refused.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("tifffile").propagate = False


@final
class TiffPictures(PictureFile):
    """All pages of a TIFF file, and the frames behind them.

    Args:
        content: A whole file for which ``dsd.sources.formats.pictures.is_tiff`` holds.

    Raises:
        ValueError: It is damaged, or holds what would be lost or changed; says what.
    """

    formats: ClassVar[tuple[str, ...]] = ("TIFF",)
    unknown = "is TIFF of a compression or colours that are not read; save it as grey or RGB"

    def __init__(self, content: bytes) -> None:
        self._pages = read_pages(content)
        self.count = sum(page.frames for page in self._pages)
        super().__init__(content)

    def read(self, number: int) -> tuple[Planes, Encoding]:
        """Decode a page, or a frame behind it, as :meth:`PictureFile.read` does."""
        place = 0
        while number >= self._pages[place].frames:
            number -= self._pages[place].frames
            place += 1
        page, image, objection, raw_mode = self._pages[place], self._image, None, ""
        with self.decoding():
            if place > 0:
                image.seek(place)
                objection = objection_to(image)
            raw_mode = raw_mode_of(image)
        if objection is not None:
            raise ValueError(objection)
        if page.frames == 1:
            return super().read(number)
        start = page.start + number * page.frame_size
        pixels = np.frombuffer(self._content, np.uint8, page.frame_size, start)
        planes = pixels.reshape(image.height, image.width, -1).transpose(2, 0, 1)
        encoding = encoding_of(image, raw_mode, self._content)
        return (255 - planes if raw_mode == "L;I" else planes), encoding


@final
@dataclass(frozen=True)
class Page:
    """One directory of a file.

    Attributes:
        frames: Pictures that lie one behind the other from its first strip on; 1 for usual pages.
        start: Where the pixels of the first of several frames begin, in bytes.
        frame_size: Numbers in one picture.
    """

    frames: int
    start: int
    frame_size: int


def count_images(content: Content) -> int:
    """Images in a whole file; ValueError as for :func:`read_pages`."""
    return sum(page.frames for page in read_pages(content))


def read_pages(content: Content) -> list[Page]:
    """List all pages of a file, with the frames behind them.

    Args:
        content: A whole file for which :func:`dsd.sources.formats.pictures.is_tiff` holds.

    Raises:
        ValueError: The file is damaged, or holds what would be lost or changed; says what.
    """
    try:
        file = BytesIO(content) if isinstance(content, bytes) else cast("IO[bytes]", content)
        with TiffFile(file) as tif:
            pages = list(_pages(tif))
            return _with_frames(tif, pages)
    except UnusableError:
        raise
    # On damaged bytes the library raises nearly anything.
    except Exception as error:
        msg = f"cannot be decoded ({error})"
        raise ValueError(msg) from error


def walk_pages(tif: TiffFile, most: int) -> Iterator[TiffPage]:
    """Go through all directories of a file.

    Args:
        tif: The open file.
        most: How many there may be.

    Raises:
        ValueError: There are more, one comes twice, or one lies outside of the file.
    """
    seen = set[int]()
    for page in tif.pages:
        assert isinstance(page, TiffPage)
        if page.offset in seen or len(seen) >= most:
            msg = f"holds more than {most} pages, or the same page twice; split it"
            raise UnusableError(msg)
        seen.add(page.offset)
        yield page
    _check_end(tif, page.offset)


def _pages(tif: TiffFile) -> Iterator[TiffPage]:
    """All directories, each of one picture that can be read."""
    for page in walk_pages(tif, MAX_FRAMES):
        _check_picture(page)
        yield page


def _check_end(tif: TiffFile, last: int) -> None:
    """Raise UnusableError unless the directory at ``last`` says that none follows.

    The library takes one that lies outside of the file for the end.
    """
    file, form = tif.filehandle, tif.tiff
    file.seek(last)
    (entries,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    file.seek(last + form.tagnosize + entries * form.tagsize)
    (following,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))
    if following:
        msg = "cannot be decoded (a TIFF directory points outside of the file)"
        raise UnusableError(msg)


def _check_picture(page: TiffPage) -> None:
    """Raise UnusableError unless all of a page can be read as it is."""
    if min(page.imagewidth, page.imagelength, page.samplesperpixel) < 1:
        msg = "cannot be decoded (TIFF of 0 pixels or 0 channels)"
        raise UnusableError(msg)
    for objection in (_parts, _type_of_numbers, _channels):
        complaint = objection(page)
        if complaint is not None:
            raise UnusableError(complaint)


def _parts(page: TiffPage) -> str | None:
    """What a page holds besides one picture."""
    if _DEPTH in page.tags and page.tags[_DEPTH].value > 1:
        return f"holds a volume of {page.tags[_DEPTH].value} planes; save each plane as a page"
    if page.subifds:
        return (
            "holds further pictures inside a page (SubIFDs: often copies of lower resolution); "
            "save those that you mean as separate pages or files"
        )
    if page.subfiletype & _REDUCED_OR_MASK:
        return "holds a page that is a reduced copy or a mask; save it without that page"
    found = max(page.tags[tag].count if tag in page.tags else 0 for tag in _OFFSETS)
    needed = math.prod(page.chunked)
    if found > needed:
        return (
            f"has {found} strips or tiles for a page of which one picture needs {needed}; save "
            "each frame as a page"
        )
    return None


def _type_of_numbers(page: TiffPage) -> str | None:
    """Why the numbers are no unsigned ones of 8 bits."""
    deepest = max(_numbers(page.bitspersample))
    names = {2: "signed whole numbers", 3: "floating-point numbers"}
    for kind in _numbers(page.sampleformat):
        if kind != 1:
            name = names.get(kind, "complex or unknown numbers")
            return f"holds {name} of {deepest} bits, {ONE_MAP}"
    return f"has {deepest} bits a channel, {ONE_MAP}" if deepest > 8 else None


def _numbers(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _channels(page: TiffPage) -> str | None:
    """Why the channels are neither grey nor RGB, alone or with an alpha channel."""
    samples, extra = page.samplesperpixel, tuple(map(int, page.extrasamples))
    colour, usual = _COLOURS.get(int(page.photometric), ("", 0))
    if not colour or samples == usual:
        return None
    # The values 1 and 2 say that it is alpha; Pillow takes it so where nothing is said of RGB.
    if samples == usual + 1 and (extra in ((1,), (2,)) or (colour == "RGB" and not extra)):
        return None
    return (
        f"has {samples} channels, declared as {colour}, and only grey and RGB are read; save "
        "the channels that you mean as grey or RGB pictures, those of a kind in a folder"
    )


def _with_frames(tif: TiffFile, pages: list[TiffPage]) -> list[Page]:
    """The pages, and the frames behind a single one."""
    _check_channels(tif, pages[0])
    promised = promised_frames(tif)
    found = promised if len(pages) == 1 else len(pages)
    if promised > found:
        msg = f"says that it holds {promised} frames, but has {found}; save it once more"
        raise UnusableError(msg)
    numbers = sum(_size(page) for page in pages) if len(pages) > 1 else found * _size(pages[0])
    if found > MAX_FRAMES or (found > 1 and numbers > MAX_SAMPLES):
        msg = f"holds {found} frames, more than {MAX_FRAMES} or {MAX_SAMPLES} numbers; split it"
        raise UnusableError(msg)
    listed = [Page(1, 0, _size(page)) for page in pages]
    if found > len(pages):
        listed = [_stack(tif, pages[0], found)]
    _check_rest(tif, pages, listed)
    return listed


def _size(page: TiffPage) -> int:
    """Numbers in one picture."""
    return page.imagewidth * page.imagelength * page.samplesperpixel


def promised_frames(tif: TiffFile) -> int:
    """Frames of which a description of ImageJ or tifffile speaks; 1 where there is none."""
    page = tif.pages[0]
    assert isinstance(page, TiffPage)
    frames = [1]
    if tif.imagej_metadata:
        frames.append(int(tif.imagej_metadata.get("images", 1)))
    shape, _ = _described(page)
    if shape:
        frames.append(math.prod(shape) // _size(page))
    return max(frames)


def _described(page: TiffPage) -> tuple[list[int], str]:
    """Shape and axes that tifffile has left; it raises itself for a damaged description."""
    listed = re.search(r"^(?:{.*\"shape\": \[|shape=\()([\d, ]{1,200})[\])]", page.description)
    if listed is None:
        return [], ""
    axes = re.search(r'"axes": "([A-Z]{1,20})"', page.description)
    return [int(side) for side in re.findall(r"\d{1,9}", listed[1])], axes[1] if axes else ""


def _check_channels(tif: TiffFile, page: TiffPage) -> None:
    """Raise UnusableError where pages or frames are channels of one picture."""
    samples, channels = page.samplesperpixel, [1]
    if tif.imagej_metadata:
        channels.append(int(tif.imagej_metadata.get("channels", 1)))
    shape, axes = _described(page)
    if len(axes) == len(shape) and "C" in axes:
        channels.append(shape[axes.index("C")] // samples)
    found = re.findall(r'SizeC="(\d{1,9})"', tif.ome_metadata or "")
    channels += [int(count) // samples for count in found]
    if max(channels) > 1:
        msg = (
            f"holds {max(channels)} channels as separate pages or frames; set data.intensity, "
            "with which they are read, or save each channel as a separate file"
        )
        raise UnusableError(msg)


def _stack(tif: TiffFile, page: TiffPage, frames: int) -> Page:
    """The frames behind a page.

    Raises:
        UnusableError: They are not there as plain bytes, or not all.
    """
    plain = page.compression == page.planarconfig == page.fillorder == 1
    if not plain or page.bitspersample != 8 or page.is_tiled or not page.is_contiguous:
        msg = f"says that it holds {frames} frames, but has one page; save each frame as a page"
        raise UnusableError(msg)
    size, start = _size(page), page.dataoffsets[0]
    there = (tif.filehandle.size - start) // size
    if there < frames:
        msg = f"says that it holds {frames} frames, but its bytes are those of {there}"
        raise UnusableError(f"{msg}; save it once more, each frame as a page")
    return Page(frames, start, size)


def _check_rest(tif: TiffFile, pages: list[TiffPage], listed: list[Page]) -> None:
    """Raise UnusableError where a frame may lie between, or behind, all that is known.

    Where cameras have left notes, whose place only they know, nothing is said.
    """
    if any(page.compression != 1 or {*page.tags.keys()} & {_EXIF, _GPS} for page in pages):
        return
    end, reached = tif.filehandle.size, 0
    known = [(0, 16), (end, end)]
    for page, one in zip(pages, listed, strict=True):
        known += _extents(tif, page)
        known.append((page.dataoffsets[0], page.dataoffsets[0] + one.frames * one.frame_size))
    smallest = min(page.nbytes for page in pages)
    for begin, stop in sorted(known):
        if begin - reached >= smallest and reached < end:
            msg = (
                f"has {min(begin, end) - reached} bytes that belong to none of its {len(pages)} "
                "pages and may be further frames; save it once more, each frame as a page"
            )
            raise UnusableError(msg)
        reached = max(reached, stop)


def _extents(tif: TiffFile, page: TiffPage) -> Iterator[tuple[int, int]]:
    """Where a directory, the values that it points at, and its pixels begin and end."""
    form = tif.tiff
    yield (
        page.offset,
        page.offset + form.tagnosize + len(page.tags) * form.tagsize + form.offsetsize,
    )
    for tag in page.tags:
        yield tag.valueoffset, tag.valueoffset + tag.valuebytecount
    for begin, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        yield begin, begin + count
