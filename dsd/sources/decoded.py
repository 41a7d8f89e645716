"""From items of a source to images with channels, height and width, as they are stored there."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeAlias, final

import numpy as np

from dsd.sources.decoding import ONE_MAP, Encoding, Planes
from dsd.sources.formats.pictures import open_file, stack_in
from dsd.sources.formats.stack import OpenStack, axes_of, pages
from dsd.sources.source import Item, Reading, read_file, require_regular

__all__ = ["Bytes", "Image", "Kind", "Refused", "decoded", "kind_of"]

Bytes: TypeAlias = bytes | memoryview

_PIXELS = Encoding("pixels", "none")
"""Of images that need no decoding."""


@final
@dataclass(frozen=True)
class Refused:
    """An image that could not be used, and why."""

    name: str
    reason: str


class Image(NamedTuple):
    """One decoded image, its name and how it was encoded."""

    name: str
    pixels: Planes
    encoding: Encoding
    is_complex: bool = False
    """Whether channels are real and imaginary parts."""


class Kind(NamedTuple):
    """What the images of a set have in common."""

    shape: tuple[int, ...]
    """Channels, height and width."""

    dtype: str

    def __str__(self) -> str:
        channels, height, width = self.shape
        colour = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
        numbers = "" if self.dtype == "uint8" else f" {self.dtype}"
        return f"{width} x {height} {colour}{numbers}"


def kind_of(pixels: Planes) -> Kind:
    """Size, channels and type of numbers of an image."""
    return Kind(pixels.shape, str(pixels.dtype))


def decoded(
    items: Iterable[Item],
    reading: Reading,
    refuse: Callable[[Refused], None],
    digest: Callable[[Bytes], None],
) -> Iterator[Image]:
    """All images that can be decoded.

    Args:
        items: What holds them.
        reading: How numbers are read.
        refuse: Hears of what cannot be used.
        digest: Is called with the bytes of each item, or the numbers of each page.
    """
    for item in items:
        try:
            stack = _stack_of(item, reading)
            if stack is None:
                yield from _pictures(item, reading, refuse, digest)
            else:
                yield from _from_stack(item, stack, reading, refuse, digest)
        except ValueError as error:
            refuse(Refused(item.name, str(error)))


def _stack_of(item: Item, reading: Reading) -> OpenStack | None:
    """What opens an item as an array; None if it holds pictures of 8 bits."""
    content = item.content
    if callable(content):
        return content
    if not reading.measured or content is None or isinstance(content, np.ndarray):
        return None
    if isinstance(content, Path):
        require_regular(content)
    return stack_in(content)


def _pictures(
    item: Item,
    reading: Reading,
    refuse: Callable[[Refused], None],
    digest: Callable[[Bytes], None],
) -> Iterator[Image]:
    if item.content is None:
        msg = "has no bytes"
        raise ValueError(msg)
    content = read_file(item.content) if isinstance(item.content, Path) else item.content
    assert not callable(content)
    data = content if isinstance(content, bytes) else content.tobytes()
    digest(len(data).to_bytes(8, "little") + data)
    if not isinstance(content, bytes):
        yield Image(item.name, content, _PIXELS)
        return
    file = open_file(content, deep=reading.measured)
    for number in range(file.count):
        name = item.name if file.count == 1 else f"{item.name}, frame {number}"
        try:
            pixels, encoding = file.read(number)
        except ValueError as error:
            refuse(Refused(name, str(error)))
            continue
        yield Image(name, pixels, encoding)


def _from_stack(
    item: Item,
    opener: OpenStack,
    reading: Reading,
    refuse: Callable[[Refused], None],
    digest: Callable[[Bytes], None],
) -> Iterator[Image]:
    with opener() as stack:
        axes, _ = axes_of(stack.data.shape, reading.axes, stack.axes)
        encoding = Encoding(stack.kind, stack.harm)
        lengths = zip(axes, stack.data.shape, strict=True)
        channels = math.prod(length for letter, length in lengths if letter in "CS")
        for number, page in enumerate(islice(pages(stack, axes), reading.pages)):
            name = f"{item.name}, frame {number}" if len(axes) > 2 else item.name
            flat = np.ascontiguousarray(page)
            digest(f"{page.shape} {page.dtype.str}".encode())
            digest(flat.reshape(-1).view(np.uint8).data)
            complaint = _complaint(flat, reading)
            if complaint is None:
                yield Image(name, flat, encoding, is_complex=len(page) == 2 * channels)
            else:
                refuse(Refused(name, complaint))


def _complaint(numbers: np.ndarray, reading: Reading) -> str | None:
    """Why an array cannot be used as an image."""
    if not reading.measured:
        channels = len(numbers)
        if numbers.dtype != np.uint8:
            return f"holds numbers of type {numbers.dtype}, {ONE_MAP}"
        if channels not in {1, 3}:
            return f"has {channels} channels, and pictures have 1 or 3; set data.intensity"
    if numbers.dtype.kind != "f":
        return None
    # One number tells of all, unless it overflows.
    if np.isfinite(numbers.sum(dtype=np.float64)):
        return None
    count = int((~np.isfinite(numbers)).sum())
    if count == 0 or (reading.gaps and count < numbers.size):
        return None
    return (
        f"has {count} pixels of {numbers.size} that are NaN or infinite; repair it, crop it to "
        "what was measured, or (noisy images alone) set data.invalid to mask"
    )
