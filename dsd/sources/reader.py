"""Images as users have them, from pictures of 8 bits to stacks of micrographs.

``find_images`` says what there is; ``Reader`` decodes it in order, refuses what is broken or
mixed, cuts patches, and brings everything to one size. Numbers stay as the source has them. Only a
block of images is in memory at a time.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice, takewhile
from typing import Literal, final

import numpy as np
from jaxtyping import Shaped

from dsd.sources.config import Data, Patches
from dsd.sources.decoded import Bytes, Image, Kind, Refused, decoded, kind_of
from dsd.sources.decoding import Encoding, Planes, area_average
from dsd.sources.finders.kinds import find_images
from dsd.sources.fingerprint import Fingerprint
from dsd.sources.patches import count_patches, cut_patches, with_contrast
from dsd.sources.source import PICTURES, Item, Reading, Source
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


def _central_square(pixels: Planes) -> Shaped[np.ndarray, " c s s"]:
    height, width = pixels.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[:, top : top + side, left : left + side]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@final
class Reader:
    """Decodes a source, once, and remembers what happened.

    Attributes:
        refused: Images that were skipped, complete when all blocks are read.
        count: Images used so far.
        pictures: How many images each of the pictures gave that were cut into patches, in order.
        encodings: How the images used so far were encoded.
        averaged: Pixels in a row of noisy images that become one; None where they are kept.
        is_complex: Whether the channels used so far are real and imaginary parts.

    Args:
        source: The images.
        pad: Black pixels around each.
        resolution: Height and width to average them down to.
        on_error: What becomes of an image that is broken or of another size or colour.
        max_images: Usable images to read.
        noisy: Whether their noise must stay what it is; what would change it is refused.
        reading: How numbers are read.
        patches: How images are cut from pictures; None takes these whole.
        scale: Data units in a raw unit, for the contrast of patches.
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
        reading: Reading = PICTURES,
        patches: Patches | None = None,
        scale: float = 1 / 127.5,
    ) -> None:
        self.refused: list[Refused] = []
        self.count = 0
        self.pictures: list[int] = []
        self.encodings: Counter[Encoding] = Counter()
        self.averaged: int | None = None
        self.is_complex = False
        self._source = source
        self._pad = pad
        self._resolution = resolution
        self._skips = on_error == "skip"
        self._max_images = max_images
        self._noisy = noisy
        self._reading = reading
        self._patches = patches
        self._scale = scale
        self._digest = Fingerprint()
        self._kind: Kind | None = None
        self._others: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Images to come at most; of patches, pictures to come."""
        if self._patches is not None:
            return self._source.count
        return min(self._source.count, self._max_images or self._source.count)

    @property
    def done(self) -> int:
        """Of these, used so far."""
        return self.count if self._patches is None else len(self.pictures)

    @property
    def dtype(self) -> str:
        """Type of the source's numbers, once the first block was read."""
        return "uint8" if self._kind is None else self._kind.dtype

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the source's bytes, in order, as far as they were read."""
        return self._digest.hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        """Short sentences on what was skipped by kind, and on what was done to noise before."""
        lines = []
        if self._others and self._kind is not None:
            parts = [f"{count} of {kind}" for kind, count in self._others.most_common(_KINDS)]
            rest = len(self._others) - len(parts)
            lines.append(
                f"kept images of {self._kind}, the most common kind (of up to {COUNTED} "
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

    def blocks(self) -> Iterator[Shaped[np.ndarray, " n c h w"]]:
        """Yield all usable images, brought to one size, some at a time.

        Raises:
            DataError: An image is broken or of another kind than the others (unless these are
                skipped), none is usable, or the size does not allow the resolution.
        """
        block: list[np.ndarray] = []
        for images in self._usable():
            block.append(images)
            if sum(part.nbytes for part in block) >= BLOCK_BYTES:
                yield self._resized(_joined(block))
                block = []
        if block:
            yield self._resized(_joined(block))
        if self.count == 0:
            raise self._none_usable(str(len(self.refused)))

    def _usable(self) -> Iterator[Shaped[np.ndarray, " n c h w"]]:
        """Images of one kind, those of a picture together; the others refused or noted."""
        if self._skips:
            kinds, _ = self._survey()
            self._kind = max(kinds, key=lambda kind: len(kinds[kind]), default=None)
        for image in self._images(self._source.items, self._refuse, self._digest.update):
            if self._is_kept(image):
                images = self._cut(image.pixels)
                self.is_complex = image.is_complex
                if self._max_images is not None:
                    images = images[: self._max_images - self.count]
                self.count += len(images)
                self.encodings[image.encoding] += len(images)
                if len(images):
                    yield images
            if self.count == self._max_images:
                return

    def _cut(self, pixels: Planes) -> Shaped[np.ndarray, " n c y x"]:
        """A picture as it is, or its patches."""
        if self._patches is None:
            return pixels[None]
        images = cut_patches(pixels, self._patches, len(self.pictures))
        if self._patches.min_contrast > 0:
            images = images[with_contrast(images, self._patches.min_contrast, self._scale)]
        if self._reading.gaps:
            images = images[np.isfinite(images).any((1, 2, 3))]
        rest = len(images) if self._max_images is None else self._max_images - self.count
        self.pictures.append(min(len(images), rest))
        return images

    def _kind_of(self, pixels: Planes) -> Kind:
        """Kind of the images that a picture gives."""
        kind = kind_of(pixels)
        if self._patches is None:
            return kind
        size = self._patches.size
        return kind._replace(shape=(kind.shape[0], size, size))

    def _images(
        self,
        items: Iterable[Item],
        refuse: Callable[[Refused], None],
        digest: Callable[[Bytes], None],
    ) -> Iterator[Image]:
        """Decoded images whose noise, if they are noisy, is still there."""
        for image in decoded(items, self._reading, refuse, digest):
            if self._noisy and image.encoding.harm == "reduced":
                reason = (
                    f"is {image.encoding.name}, to whose few levels its noise was rounded; use "
                    "the original of 8 bits"
                )
                refuse(Refused(image.name, reason))
            elif self._is_too_small(image.pixels):
                reason = (
                    f"is {kind_of(image.pixels)}, smaller than data.patches.size; lower that, or "
                    "remove it"
                )
                refuse(Refused(image.name, reason))
            elif self._source.square:
                yield image._replace(pixels=_central_square(image.pixels))
            else:
                yield image

    def _is_too_small(self, pixels: Planes) -> bool:
        patches = self._patches
        return patches is not None and count_patches(patches, *pixels.shape[1:]) == 0

    def _survey(self) -> tuple[dict[Kind, list[str]], list[Refused]]:
        """What the first images are: names of the usable ones by kind, and the others."""
        kinds: dict[Kind, list[str]] = {}
        refused: list[Refused] = []
        read: Counter[str] = Counter()
        some = islice(self._source.items, COUNTED)
        items = takewhile(lambda _: read["bytes"] < COUNTED_BYTES, some)
        images = self._images(items, refused.append, lambda data: read.update(bytes=len(data)))
        for image in islice(images, min(COUNTED, self._max_images or COUNTED)):
            kinds.setdefault(self._kind_of(image.pixels), []).append(image.name)
        return kinds, refused

    def _is_kept(self, image: Image) -> bool:
        """Whether an image is of the kind that is kept; else refuses or notes it."""
        kind = self._kind_of(image.pixels)
        if self.count == 0 and self._kind in {None, kind}:
            self._kind = kind
            self._check_resolution(image)
        if kind == self._kind:
            return True
        if not self._skips:
            raise self._mixture(image)
        self.refused.append(Refused(image.name, f"is {kind}, and {self._kind or kind} are kept"))
        self._others[str(kind)] += 1
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

    def _mixture(self, odd: Image) -> DataError:
        """What images of several kinds there are, ``odd`` among them."""
        kinds, _ = self._survey()
        kinds.setdefault(self._kind_of(odd.pixels), [odd.name])
        largest = sorted(kinds, key=lambda kind: -len(kinds[kind]))
        parts = [f"{len(kinds[largest[0]])} are {largest[0]}"]
        for kind in largest[1:_KINDS]:
            parts.append(f"{len(kinds[kind])} are {kind} (the first: {kinds[kind][0]})")
        if len(largest) > _KINDS:
            parts.append(f"others are of {len(largest) - _KINDS} further kinds")
        return DataError(
            f"images differ: of {self._of(sum(map(len, kinds.values())))}, {', '.join(parts)}; "
            "bring all to one size and one kind of colour, or set data.on_error to skip to leave "
            "out all but the most common kind"
        )

    def _check_resolution(self, image: Image) -> None:
        """Raise DataError unless images of this size can be averaged as asked."""
        height, width = image.pixels.shape[1:]
        size, resolution = width + 2 * self._pad, self._resolution
        if resolution is None:
            return
        if height != width:
            msg = (
                f"{image.name} is {kind_of(image.pixels)}, not square as data.resolution "
                "needs: crop all images to squares, or set it to null"
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

    def _resized(self, pixels: Shaped[np.ndarray, " n c h w"]) -> Shaped[np.ndarray, " n c h2 w2"]:
        border = (self._pad, self._pad)
        padded = np.pad(pixels, ((0, 0), (0, 0), border, border)) if self._pad else pixels
        if self._resolution is None or self._resolution == padded.shape[-1]:
            return padded
        return area_average(padded, self._resolution)


def reader_for(
    data: Data, source: Source, *, scale: float = 1 / 127.5, pages: int | None = None
) -> Reader:
    """Read a source as the section ``data`` says.

    Args:
        data: The section.
        source: The images.
        scale: Data units in a raw unit.
        pages: First pages of each array to read; None reads all.
    """
    return Reader(
        source,
        pad=data.pad,
        resolution=data.resolution,
        on_error=data.on_error,
        max_images=data.max_images,
        noisy=data.content == "noisy",
        reading=replace(Reading.of(data), pages=pages),
        patches=data.patches,
        scale=scale,
    )
