"""What a TIFF file says that it holds, read from its directories and not from its pixels.

Pillow reads one picture for each directory. Scientific software also writes stacks whose frames
lie one behind the other after a single directory, channels beyond the third, volumes, and pictures
in sub-directories. All of these are found here, so that no part of a file is left out.
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from typing import ClassVar, TypeAlias, final

import numpy as np

from dsd.sources.decoding import (
    ONE_MAP,
    Encoding,
    PictureFile,
    Planes,
    encoding_of,
    objection_to,
    raw_mode_of,
)

__all__ = ["Content", "Page", "TiffFile", "count_images", "is_tiff", "read_pages"]

Content: TypeAlias = bytes | mmap

MAX_FRAMES = 2**16
"""Frames of one file."""

MAX_SAMPLES = 2**31
"""Numbers in all frames of one file; a few hundred bytes can say that there are any number."""

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_FILL_ORDER, _DESCRIPTION, _STRIPS, _SAMPLES, _ROWS, _PLANAR = 266, 270, 273, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _SUB_DIRECTORIES, _EXTRA = 322, 323, 324, 330, 338
_SAMPLE_FORMAT, _DEPTH, _EXIF, _GPS = 339, 32997, 34665, 34853

_MAX_TEXT = 2**13
"""Bytes of a description that are looked at."""

_USED = frozenset(
    {_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _DESCRIPTION}
    | {_STRIPS, _SAMPLES, _ROWS, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _SUB_DIRECTORIES}
    | {_EXTRA, _SAMPLE_FORMAT, _DEPTH, _EXIF, _GPS}
)
"""Tags that are looked at."""

_MAX_ENTRIES = 2**21
"""Entries of directories; those of usual files are some twenty a page."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
          16: 8, 17: 8, 18: 8}  # fmt: skip
"""Bytes of one value, by its type."""

_WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""Codes of ``struct`` for the types that are whole numbers."""

_COLOURS = {0: ("grey", 1), 1: ("grey", 1), 2: ("RGB", 3), 3: ("palette", 1)}
"""Name and usual number of channels, by the tag PhotometricInterpretation."""


@final
class TiffFile(PictureFile):
    """All pages of a TIFF file, and the frames behind them.

    Args:
        content: A whole file for which ``is_tiff`` holds.

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


def is_tiff(content: Content) -> bool:
    """Whether a file begins as TIFF or BigTIFF do, in either order of bytes."""
    return content[:2] in {b"II", b"MM"} and content[2:4] in {b"*\0", b"\0*", b"+\0", b"\0+"}


def count_images(content: Content) -> int:
    """Images in a whole file; ValueError as for :func:`read_pages`."""
    return sum(page.frames for page in read_pages(content))


def read_pages(content: Content) -> list[Page]:
    """All pages of a file, with the frames behind them.

    Args:
        content: A whole file for which ``is_tiff`` holds.

    Raises:
        ValueError: The file is damaged, or holds what would be lost or changed; says what.
    """
    try:
        return _read_pages(content)
    except struct.error as error:
        msg = "cannot be decoded (a TIFF directory points outside of the file)"
        raise ValueError(msg) from error


def _read_pages(content: Content) -> list[Page]:
    """``read_pages``, or struct.error where something lies outside of the file."""
    directories = list(_directories(_File(content)))
    for directory in directories:
        _check_picture(directory)
    promised = [_promised(directory) for directory in directories]
    alone = len(directories) == 1
    pages = [_page(directory, promised[0] if alone else 1) for directory in directories]
    found = sum(page.frames for page in pages)
    if max(promised) > found:
        msg = f"says that it holds {max(promised)} frames, but has {found}; save it once more"
        raise ValueError(msg)
    numbers = sum(page.frames * page.frame_size for page in pages)
    if found > MAX_FRAMES or (found > 1 and numbers > MAX_SAMPLES):
        msg = f"holds {found} frames, more than {MAX_FRAMES} or {MAX_SAMPLES} numbers; split it"
        raise ValueError(msg)
    _check_rest(directories, pages)
    return pages


@final
class _File:
    """Reads numbers of a file in its order of bytes."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.large = 43 in content[2:4]
        self._order = "<" if content[:2] == b"II" else ">"

    def unpack(self, form: str, at: int) -> tuple[int, ...]:
        size = struct.calcsize("<" + form)
        return struct.unpack(self._order + form, self.content[at : at + size])


@final
@dataclass(frozen=True)
class _Directory:
    """The entries of a directory: type, number of values and where these are, by tag."""

    file: _File
    entries: dict[int, tuple[int, int, int]]
    count: int
    """Entries of all tags; ``entries`` holds those that are looked at."""

    following: int
    extents: list[tuple[int, int]]
    """Where the directory itself, and then the values that it points at, begin and end."""

    @classmethod
    def at(cls, file: _File, at: int) -> "_Directory":
        head, entry, link, inline = ("Q", "HHQQ", "Q", 8) if file.large else ("H", "HHII", "I", 4)
        (count,) = file.unpack(head, at)
        if count > _MAX_ENTRIES:
            msg = f"cannot be decoded (a TIFF directory of {count} entries)"
            raise ValueError(msg)
        first, step = at + struct.calcsize("<" + head), struct.calcsize("<" + entry)
        # Read before the entries, so that a wrong count is found before they are gone through.
        (following,) = file.unpack(link, first + count * step)
        entries, extents = {}, [(at, first + count * step + inline)]
        for place in range(first, first + count * step, step):
            tag, kind, number, value = file.unpack(entry, place)
            length = number * _SIZES.get(kind, 1)
            if tag in _USED:
                entries[tag] = kind, number, value if length > inline else place + step - inline
            if length > inline:
                extents.append((value, value + length))
        return cls(file, entries, count, following, extents)

    def numbers(self, tag: int, most: int = 16) -> list[int]:
        """The first values of a tag; none where it is missing."""
        kind, count, at = self.entries.get(tag, (3, 0, 0))
        return list(self.file.unpack(f"{min(count, most)}{_WHOLE.get(kind, 'B')}", at))

    def number(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        return next(iter(self.numbers(tag, 1)), default)

    def last(self, tag: int) -> int:
        """The last value of a tag that is there."""
        kind, count, at = self.entries[tag]
        code = _WHOLE.get(kind, "B")
        return self.file.unpack(code, at + (count - 1) * struct.calcsize(code))[0]

    @property
    def text(self) -> str:
        """The beginning of the description, empty where there is none."""
        _, count, at = self.entries.get(_DESCRIPTION, (2, 0, 0))
        return self.file.content[at : at + min(count, _MAX_TEXT)].decode("latin-1")

    @property
    def samples(self) -> int:
        return self.number(_SAMPLES, 1)

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height."""
        return self.number(_WIDTH, 0), self.number(_HEIGHT, 0)

    @property
    def cell(self) -> tuple[int, int]:
        """Width and height of a tile; a strip is a tile as wide as the picture."""
        width, height = self.sides
        if _TILES in self.entries:
            return self.number(_TILE_WIDTH, width), self.number(_TILE_HEIGHT, height)
        return width, min(self.number(_ROWS, height), height)

    @property
    def cells(self) -> int:
        """Strips or tiles that one picture needs."""
        (width, height), (columns, rows) = self.sides, self.cell
        planes = self.samples if self.number(_PLANAR, 1) == 2 else 1
        return math.ceil(width / columns) * math.ceil(height / rows) * planes

    @property
    def cell_bytes(self) -> int:
        """Bytes of a strip or tile without compression."""
        columns, rows = self.cell
        samples = 1 if self.number(_PLANAR, 1) == 2 else self.samples
        return rows * math.ceil(columns * samples * self.number(_BITS, 1) / 8)


def _directories(file: _File) -> Iterator[_Directory]:
    """The directories in the order of the file."""
    seen, entries = set[int](), 0
    (at,) = file.unpack("Q", 8) if file.large else file.unpack("I", 4)
    while (at and at not in seen) or not seen:
        seen.add(at)
        directory = _Directory.at(file, at)
        yield directory
        at = directory.following
        entries += directory.count
        if len(seen) > MAX_FRAMES or entries > _MAX_ENTRIES:
            msg = f"holds more than {MAX_FRAMES} pages, or {_MAX_ENTRIES} tags; split it"
            raise ValueError(msg)


def _check_picture(page: _Directory) -> None:
    """Raise ValueError unless all of a page can be read as it is."""
    if min(*page.sides, *page.cell, page.samples) < 1:
        msg = "cannot be decoded (TIFF of 0 pixels or 0 channels)"
        raise ValueError(msg)
    for objection in (_parts, _type_of_numbers, _channels):
        complaint = objection(page)
        if complaint is not None:
            raise ValueError(complaint)


def _parts(page: _Directory) -> str | None:
    """What a page holds besides one picture."""
    if page.number(_DEPTH, 1) > 1:
        return f"holds a volume of {page.number(_DEPTH, 1)} planes; save each plane as a page"
    if _SUB_DIRECTORIES in page.entries:
        return (
            "holds further pictures inside a page (SubIFDs: often copies of lower resolution); "
            "save those that you mean as separate pages or files"
        )
    if page.number(_SUBFILE, 0) & 0b101:
        return "holds a page that is a reduced copy or a mask; save it without that page"
    found = page.entries.get(_TILES, page.entries.get(_STRIPS, (0, 0, 0)))[1]
    if found > page.cells:
        return (
            f"has {found} strips or tiles for a page of which one picture needs {page.cells}; "
            "save each frame as a page"
        )
    return None


def _type_of_numbers(page: _Directory) -> str | None:
    """Why the numbers are no unsigned ones of 8 bits."""
    deepest = max(page.numbers(_BITS), default=1)
    names = {2: "signed whole numbers", 3: "floating-point numbers"}
    for kind in page.numbers(_SAMPLE_FORMAT):
        if kind != 1:
            name = names.get(kind, "complex or unknown numbers")
            return f"holds {name} of {deepest} bits, {ONE_MAP}"
    return f"has {deepest} bits a channel, {ONE_MAP}" if deepest > 8 else None


def _channels(page: _Directory) -> str | None:
    """Why the channels are neither grey nor RGB, alone or with an alpha channel."""
    colour, usual = _COLOURS.get(page.number(_PHOTOMETRIC, 0), ("", 0))
    extra = page.numbers(_EXTRA)
    if not colour or page.samples == usual:
        return None
    # The values 1 and 2 say that it is alpha; Pillow takes it so where nothing is said of RGB.
    if page.samples == usual + 1 and (extra in ([1], [2]) or (colour == "RGB" and not extra)):
        return None
    return (
        f"has {page.samples} channels, declared as {colour}, and only grey and RGB are read; save "
        "the channels that you mean as grey or RGB pictures, those of a kind in a folder"
    )


def _promised(page: _Directory) -> int:
    """Frames that a description of ImageJ or tifffile speaks of; 1 where there is none."""
    text = page.text
    listed = re.search(r"shape\"?\s*[:=]\s*[\[(]([\d,\s]{1,200})[\])]", text)
    shape = [int(side) for side in re.findall(r"\d{1,9}", listed[1])] if listed else []
    axes = re.search(r'"axes":\s*"([A-Z]{1,20})"', text)
    channels = [int(found) for found in re.findall(r"^channels=(\d{1,9})", text, re.MULTILINE)]
    channels += [int(found) // page.samples for found in re.findall(r'SizeC="(\d{1,9})"', text)]
    if axes and len(axes[1]) == len(shape) and "C" in axes[1]:
        channels.append(shape[axes[1].index("C")] // page.samples)
    if max(channels, default=1) > 1:
        msg = (
            f"holds {max(channels)} channels as separate pages or frames; save each channel "
            "as a separate file, with one folder for each channel"
        )
        raise ValueError(msg)
    if text.startswith("ImageJ="):
        images = re.search(r"^images=(\d{1,9})", text, re.MULTILINE)
        return max(int(images[1]) if images else 1, 1)
    width, height = page.sides
    return max(math.prod(shape) // (width * height * page.samples), 1)


def _page(page: _Directory, frames: int) -> Page:
    """A page whose frames can be read."""
    width, height = page.sides
    size = width * height * page.samples
    if frames == 1:
        return Page(1, 0, size)
    starts = page.numbers(_STRIPS, min(page.cells, 2**16))
    step = page.cell[1] * width * page.samples
    plain = page.number(_COMPRESSION, 1) == page.number(_PLANAR, 1) == 1
    plain = plain and set(page.numbers(_BITS)) == {8} and _TILES not in page.entries
    if not (plain and starts and page.number(_FILL_ORDER, 1) == 1) or any(
        place != starts[0] + number * step for number, place in enumerate(starts)
    ):
        msg = f"says that it holds {frames} frames, but has one page; save each frame as a page"
        raise ValueError(msg)
    there = (len(page.file.content) - starts[0]) // size
    if there < frames:
        msg = f"says that it holds {frames} frames, but its bytes are those of {there}"
        raise ValueError(f"{msg}; save it once more, each frame as a page")
    return Page(frames, starts[0], size)


def _check_rest(directories: list[_Directory], pages: list[Page]) -> None:
    """Raise ValueError where a frame may lie between, or behind, all that is known."""
    if any(directory.number(_COMPRESSION, 1) != 1 for directory in directories):
        return
    end = len(directories[0].file.content)
    known = [(0, 16), (end, end)]
    for directory, page in zip(directories, pages, strict=True):
        known += directory.extents + _pixels(directory, page)
        known += [part for tag in (_EXIF, _GPS) for part in _linked(directory, tag)]
    smallest = min(directory.cells * directory.cell_bytes for directory in directories)
    reached = 0
    for begin, stop in sorted(known):
        if begin - reached >= smallest and reached < end:
            msg = (
                f"has {min(begin, end) - reached} bytes that belong to none of its {len(pages)} "
                "pages and may be further frames; save it once more, each frame as a page"
            )
            raise ValueError(msg)
        reached = max(reached, stop)


def _pixels(directory: _Directory, page: Page) -> list[tuple[int, int]]:
    """Where the pixels of a page begin and end, of strips or tiles in order."""
    if page.frames > 1:
        return [(page.start, page.start + page.frames * page.frame_size)]
    tag = _TILES if _TILES in directory.entries else _STRIPS
    if not directory.numbers(tag, 1):
        return []
    ends = directory.number(tag, 0), directory.last(tag)
    return [(min(ends), max(ends) + directory.cell_bytes)]


def _linked(directory: _Directory, tag: int) -> list[tuple[int, int]]:
    """Where data about the picture lie, which a tag points at."""
    at = directory.number(tag, 0)
    try:
        return _Directory.at(directory.file, at).extents if at else []
    except struct.error:
        return []
