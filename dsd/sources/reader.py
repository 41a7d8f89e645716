"""Images as users have them: Parquet files, a folder of picture files, or a torchvision set.

``find_images`` says what there is; ``Reader`` decodes it in order, refuses what is broken, mixed
or not 8-bit, and brings everything to one size. Only a block of images is in memory at a time.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np
from jaxtyping import UInt8

from dsd.sources.config import Data
from dsd.sources.decoding import Encoding, Planes, area_average
from dsd.sources.folders import find_pictures, remedy_for, suffix_of
from dsd.sources.formats import open_file
from dsd.sources.parquet import find_rows, is_parquet
from dsd.sources.source import CORRECT, Item, Source
from dsd.sources.torchvision_sets import find_set, preview_set
from dsd.utils.errors import DataError

__all__ = ["Item", "Reader", "Refused", "Source", "find_images", "reader_for"]

BLOCK_BYTES = 2**20
"""Decoded pixels in memory at a time, about."""

COUNTED = 10_000
"""First images that are counted by kind, to name all kinds or to keep the most common one."""

COUNTED_BYTES = 2**30
"""Encoded bytes that are read to count them, about."""

_KINDS = 5
"""Kinds that a message names."""


def _find_folder(path: Path) -> Source:
    if path.is_dir():
        return find_pictures(path)
    suffix = ".parquet" if is_parquet(path) else suffix_of(path.name)
    msg = f"{path} is a file {suffix}: {remedy_for(suffix, 'folder') or CORRECT}"
    raise DataError(msg)


FINDERS: dict[str, Callable[[Path], Source]] = {"parquet": find_rows, "folder": _find_folder}
"""What finds the images below a path, by the value of ``data.source``."""


def find_images(kind: str, path: Path, name: str | None, *, preview: bool = False) -> Source:
    """Find the images of a source without decoding any.

    Args:
        kind: A key of ``FINDERS``, or ``torchvision``.
        path: The Parquet file, or a folder of these; the folder of pictures; for torchvision its
            folder for downloads.
        name: Which torchvision set: cifar10, fashion-mnist or celeba, its training part.
        preview: Whether a black image may stand in for those that would have to be downloaded.

    Raises:
        DataError: There is nothing at ``path``, it is of another kind, or a download failed.
    """
    if kind == "torchvision":
        return preview_set(name or "") if preview else find_set(path, name or "")
    if not path.exists():
        msg = f"{path} does not exist: {CORRECT}"
        raise DataError(msg)
    if not (path.is_dir() or path.is_file()):
        msg = f"{path} is neither a file nor a folder: {CORRECT}"
        raise DataError(msg)
    return FINDERS[kind](path)


@final
@dataclass(frozen=True)
class Refused:
    """An image that could not be used, and why."""

    name: str
    reason: str


class _Image(NamedTuple):
    """One decoded image, its name and how it was encoded."""

    name: str
    pixels: Planes
    encoding: Encoding


_PIXELS = Encoding("pixels", "none")
"""Of images that need no decoding."""


def _kind(shape: tuple[int, ...]) -> str:
    """Size and channels in words."""
    channels, height, width = shape
    return f"{width} x {height} {'grey' if channels == 1 else 'RGB'}"


def _central_square(pixels: Planes) -> UInt8[np.ndarray, " c s s"]:
    height, width = pixels.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[:, top : top + side, left : left + side]


def _decoded(
    items: Iterable[Item], refuse: Callable[[Refused], None], digest: Callable[[bytes], None]
) -> Iterator[_Image]:
    """All images that can be decoded; ``digest`` is called with the bytes of each item."""
    for item in items:
        try:
            content = item.load()
            data = content if isinstance(content, bytes) else content.tobytes()
            digest(len(data).to_bytes(8, "little") + data)
            if not isinstance(content, bytes):
                yield _Image(item.name, content, _PIXELS)
                continue
            file = open_file(content)
        except ValueError as error:
            refuse(Refused(item.name, str(error)))
            continue
        for number in range(file.count):
            name = item.name if file.count == 1 else f"{item.name}, frame {number}"
            try:
                pixels, encoding = file.read(number)
            except ValueError as error:
                refuse(Refused(name, str(error)))
                continue
            yield _Image(name, pixels, encoding)


@final
class Reader:
    """Decodes a source, once, and remembers what happened.

    Attributes:
        refused: Images that were skipped, complete when all blocks are read.
        count: Images used so far.
        encodings: How the images used so far were encoded.
        averaged: Pixels in a row of noisy images that become one; None where they are kept.

    Args:
        source: The images.
        pad: Black pixels around each.
        resolution: Height and width to average them down to.
        on_error: What becomes of an image that is broken or of another size or colour.
        max_images: Usable images to read.
        noisy: Whether their noise must stay what it is; what would change it is refused.
    """

    def __init__(
        self,
        source: Source,
        *,
        pad: int,
        resolution: int | None,
        on_error: Literal["raise", "skip"],
        max_images: int | None,
        noisy: bool = False,
    ) -> None:
        self.refused: list[Refused] = []
        self.count = 0
        self.encodings: Counter[Encoding] = Counter()
        self.averaged: int | None = None
        self._source = source
        self._pad = pad
        self._resolution = resolution
        self._skips = on_error == "skip"
        self._max_images = max_images
        self._noisy = noisy
        self._digest = hashlib.sha256()
        self._shape: tuple[int, ...] | None = None
        self._others: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Images to come at most."""
        return min(self._source.count, self._max_images or self._source.count)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the source's bytes, in order, as far as they were read."""
        return self._digest.hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        """Short sentences on what was skipped by kind, and on what was done to noise before."""
        lines = []
        if self._others and self._shape is not None:
            parts = [f"{count} of {kind}" for kind, count in self._others.most_common(_KINDS)]
            rest = len(self._others) - len(parts)
            lines.append(
                f"kept images of {_kind(self._shape)}, the most common kind (of up to {COUNTED} "
                f"that were counted); skipped {', '.join(parts)}"
                + (f" and those of {rest} further kinds" if rest else "")
            )
        lossy = {one.name: n for one, n in self.encodings.items() if one.harm == "lossy"}
        if self._noisy and lossy:
            lines.append(
                f"{sum(lossy.values())} of {self.count} noisy images are {' or '.join(lossy)}: "
                "lossy compression removes and correlates noise, so that no level describes it; "
                "use the originals"
            )
        return tuple(lines)

    def blocks(self) -> Iterator[UInt8[np.ndarray, " n c h w"]]:
        """Yield all usable images, brought to one size, some at a time.

        Raises:
            DataError: An image is broken or of another kind than the others (unless these are
                skipped), none is usable, or the size does not allow the resolution.
        """
        block: list[Planes] = []
        for pixels in self._usable():
            block.append(pixels)
            if len(block) * pixels.size >= BLOCK_BYTES:
                yield self._resized(np.stack(block))
                block = []
        if block:
            yield self._resized(np.stack(block))
        if self.count == 0:
            raise self._none_usable(str(len(self.refused)))

    def _usable(self) -> Iterator[Planes]:
        """Decoded images of one kind, the others refused or noted."""
        if self._skips:
            kinds, _ = self._survey()
            self._shape = max(kinds, key=lambda shape: len(kinds[shape]), default=None)
        for image in self._images(self._source.items, self._refuse, self._digest.update):
            if self._is_kept(image):
                self.count += 1
                self.encodings[image.encoding] += 1
                yield image.pixels
            if self.count == self._max_images:
                return

    def _images(
        self,
        items: Iterable[Item],
        refuse: Callable[[Refused], None],
        digest: Callable[[bytes], None],
    ) -> Iterator[_Image]:
        """Decoded images whose noise, if they are noisy, is still there."""
        for image in _decoded(items, refuse, digest):
            if self._noisy and image.encoding.harm == "reduced":
                reason = (
                    f"is {image.encoding.name}, to whose few levels its noise was rounded; use "
                    "the original of 8 bits"
                )
                refuse(Refused(image.name, reason))
            elif self._source.square:
                yield image._replace(pixels=_central_square(image.pixels))
            else:
                yield image

    def _survey(self) -> tuple[dict[tuple[int, ...], list[str]], list[Refused]]:
        """What the first images are: names of the usable ones by shape, and the others."""
        kinds: dict[tuple[int, ...], list[str]] = {}
        refused: list[Refused] = []
        read: Counter[str] = Counter()
        some = islice(self._source.items, COUNTED)
        items = takewhile(lambda _: read["bytes"] < COUNTED_BYTES, some)
        images = self._images(items, refused.append, lambda data: read.update(bytes=len(data)))
        for image in islice(images, min(COUNTED, self._max_images or COUNTED)):
            kinds.setdefault(image.pixels.shape, []).append(image.name)
        return kinds, refused

    def _is_kept(self, image: _Image) -> bool:
        """Whether an image is of the kind that is kept; else refuses or notes it."""
        shape = image.pixels.shape
        if self.count == 0 and self._shape in {None, shape}:
            self._shape = shape
            self._check_resolution(image)
        if shape == self._shape:
            return True
        if not self._skips:
            raise self._mixture(image)
        kept = _kind(self._shape or shape)
        self.refused.append(Refused(image.name, f"is {_kind(shape)}, and {kept} are kept"))
        self._others[_kind(shape)] += 1
        return False

    def _refuse(self, refused: Refused) -> None:
        self.refused.append(refused)
        if self._skips:
            return
        kinds, others = self._survey()
        usable = sum(map(len, kinds.values()))
        if not usable:
            raise self._none_usable(self._of(len(others)))
        more, them = "", "it"
        if len(others) > 1:
            of = self._of(usable + len(others))
            more, them = f"; {len(others) - 1} more of {of} cannot be used", "them"
        msg = (
            f"{refused.name} {refused.reason}{more}; repair or remove {them}, or set "
            "data.on_error to skip"
        )
        raise DataError(msg)

    def _none_usable(self, of: str) -> DataError:
        first = f"{self.refused[0].name} {self.refused[0].reason}" if self.refused else "no image"
        return DataError(f"none of {of} images is usable; the first: {first}")

    def _of(self, count: int) -> str:
        """A number of images that were looked at, in words."""
        return f"{count}" if count >= self.total else f"the first {count}"

    def _mixture(self, odd: _Image) -> DataError:
        """What images of several kinds there are, ``odd`` among them."""
        kinds, _ = self._survey()
        kinds.setdefault(odd.pixels.shape, [odd.name])
        largest = sorted(kinds, key=lambda shape: -len(kinds[shape]))
        parts = [f"{len(kinds[largest[0]])} are {_kind(largest[0])}"]
        for shape in largest[1:_KINDS]:
            parts.append(f"{len(kinds[shape])} are {_kind(shape)} (the first: {kinds[shape][0]})")
        if len(largest) > _KINDS:
            parts.append(f"others are of {len(largest) - _KINDS} further kinds")
        return DataError(
            f"images differ: of {self._of(sum(map(len, kinds.values())))}, {', '.join(parts)}; "
            "bring all to one size and one kind of colour, or set data.on_error to skip to leave "
            "out all but the most common kind"
        )

    def _check_resolution(self, image: _Image) -> None:
        """Raise DataError unless images of this size can be averaged as asked."""
        height, width = image.pixels.shape[1:]
        size, resolution = width + 2 * self._pad, self._resolution
        if resolution is None:
            return
        if height != width:
            msg = (
                f"{image.name} is {_kind(image.pixels.shape)}, not square as data.resolution and "
                "the networks need: crop all images to squares"
            )
            raise DataError(msg)
        if resolution > size:
            msg = (
                f"data.resolution is {resolution}, but images of {width} pixels with "
                f"data.pad {self._pad} have only {size}: lower it"
                f"{'' if self._noisy else ', or pad more'}"
            )
            raise DataError(msg)
        if not self._noisy or resolution == size:
            return
        if size % resolution:
            divisors = [str(size // k) for k in range(1, size // 4 + 1) if size % k == 0]
            msg = (
                f"data.resolution is {resolution}, no divisor of the {size} pixels of noisy "
                "images: averages over parts of pixels correlate the noise; set it to one of "
                f"{', '.join(divisors)}, or to null to keep the pixels"
            )
            raise DataError(msg)
        self.averaged = size // resolution

    def _resized(self, pixels: UInt8[np.ndarray, " n c h w"]) -> UInt8[np.ndarray, " n c h2 w2"]:
        border = (self._pad, self._pad)
        padded = np.pad(pixels, ((0, 0), (0, 0), border, border))
        if self._resolution is None or self._resolution == padded.shape[-1]:
            return padded
        return area_average(padded, self._resolution)


def reader_for(data: Data, source: Source) -> Reader:
    """Read a source as the section ``data`` says."""
    return Reader(
        source,
        pad=data.pad,
        resolution=data.resolution,
        on_error=data.on_error,
        max_images=data.max_images,
        noisy=data.content == "noisy",
    )
