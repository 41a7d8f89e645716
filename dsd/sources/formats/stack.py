"""Arrays in files, read by pages: what every format of scientific data gives.

A format opens a file as a :class:`Stack`: something with a shape that gives a part of itself when
it is indexed, as NumPy's, h5py's and Zarr's arrays do, and what the file says of its axes. This
module goes through it page by page and brings each page to channels, height and width.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Shaped

__all__ = [
    "OpenStack",
    "RawFrames",
    "Sliceable",
    "Stack",
    "UnusableError",
    "axes_of",
    "count_pages",
    "pages",
    "plain",
]

MAX_NUMBERS = 2**27
"""Numbers in one page, all channels together."""

MAX_PAGES = 2**24
"""Pages of one array; a few hundred bytes can say that there are any number."""

_SLAB = 2**20
"""Numbers that are read at a time where pages are small, about."""

_SLAB_BYTES = 2**26
"""Of a slab of whole chunks, about."""

_MAX_CHANNELS = 4
"""An axis that is not longer, and stands first or last, is taken for channels."""


class UnusableError(ValueError):
    """A file, or an array in it, cannot be used as it is; says what is wrong and what helps."""


@runtime_checkable
class Sliceable(Protocol):
    """An array that is read where it is indexed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its length along each axis."""

    def __getitem__(self, where: Any, /) -> Any:  # noqa: ANN401 - NumPy's own indices
        """Read a part of it."""


@final
@dataclass(frozen=True)
class Stack:
    """An array in an open file."""

    data: Sliceable
    kind: str
    """Its format, for people."""

    axes: str | None = None
    """A letter for each axis, as the file names them: Y, X, C or S (channels), others."""

    harm: Literal["none", "lossy"] = "none"
    """Whether compression changed pixels."""

    chunk: int = 1
    """Steps along the first axis that are stored together."""


@runtime_checkable
class OpenStack(Protocol):
    """Opens an array; it is closed with the context."""

    def __call__(self) -> AbstractContextManager[Stack]:
        """Open it; a ValueError says what is wrong."""


@final
@dataclass(frozen=True)
class RawFrames:
    """Numbers that lie in a file one after the other, the last axis fastest.

    Each read maps its part alone, so that memory does not grow with the file.
    """

    path: Path
    start: int
    """Byte of the first number."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        needed = self.start + math.prod(self.shape) * self.dtype.itemsize
        there = self.path.stat().st_size
        if needed > there:
            msg = f"is cut off: it has {there} bytes of {needed}; fetch it again"
            raise UnusableError(msg)

    def __getitem__(self, where: tuple[int | slice, ...]) -> Shaped[np.ndarray, "..."]:
        first = where[0]
        if isinstance(first, int | np.integer):
            first = slice(int(first), int(first) + 1)
            rest: tuple[Any, ...] = (0, *where[1:])
        else:
            rest = (slice(None), *where[1:])
        begin, stop, _ = first.indices(self.shape[0])
        each = math.prod(self.shape[1:]) * self.dtype.itemsize
        part = np.memmap(
            self.path,
            self.dtype,
            "r",
            offset=self.start + begin * each,
            shape=(stop - begin, *self.shape[1:]),
        )
        asked: np.ndarray = np.asarray(part)[rest]
        return asked


def axes_of(shape: tuple[int, ...], given: str | None, known: str | None) -> tuple[str, bool]:
    """Name the axes of an array.

    Args:
        shape: Its lengths.
        given: What the user says.
        known: What the file says.

    Returns:
        A letter for each axis, and whether they are guessed from the shape.

    Raises:
        ValueError: They do not fit.
    """
    axes = given or known
    if axes is None:
        return _guessed(shape), True
    if len(axes) != len(shape):
        msg = (
            f"has {len(shape)} axes of lengths {_by(shape)}, but "
            f"{'data.axes' if given else 'its own description'} names {axes}; set data.axes to a "
            "letter for each axis"
        )
        raise UnusableError(msg)
    if len({*axes}) < len(axes) or not {"Y", "X"} <= {*axes}:
        msg = f"has the axes {axes}; set data.axes to different letters, Y and X among them"
        raise UnusableError(msg)
    return axes, False


def _guessed(shape: tuple[int, ...]) -> str:
    if not 2 <= len(shape) <= 5:
        msg = f"has {len(shape)} axes of lengths {_by(shape)}; set data.axes to name them"
        raise UnusableError(msg)
    others = "TZQ"
    if len(shape) > 2 and shape[-1] <= _MAX_CHANNELS < min(shape[-3:-1]):
        return others[: len(shape) - 3] + "YXC"
    if len(shape) > 2 and shape[-3] <= _MAX_CHANNELS < min(shape[-2:]):
        return others[: len(shape) - 3] + "CYX"
    return others[: len(shape) - 2] + "YX"


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _unrolled(axes: str) -> list[int]:
    return [place for place, letter in enumerate(axes) if letter not in "YXCS"]


def count_pages(shape: tuple[int, ...], axes: str) -> int:
    """Count the pages of an array.

    Raises:
        ValueError: They are too many or too large, or there is none.
    """
    loops = _unrolled(axes)
    count = math.prod(shape[place] for place in loops)
    numbers = math.prod(length for place, length in enumerate(shape) if place not in loops)
    if numbers < 1 or count < 1:
        msg = f"holds no numbers (its axes have the lengths {_by(shape)})"
        raise UnusableError(msg)
    if numbers > MAX_NUMBERS or count > MAX_PAGES:
        msg = (
            f"holds {count} pages of {numbers} numbers (axes {axes}, lengths {_by(shape)}), more "
            f"than {MAX_PAGES} pages or {MAX_NUMBERS} numbers a page; split it, or correct "
            "data.axes"
        )
        raise UnusableError(msg)
    return count


def pages(stack: Stack, axes: str) -> Iterator[Shaped[np.ndarray, " c h w"]]:
    """Read all pages in order, some at a time; complex ones as real and imaginary channels."""
    shape = stack.data.shape
    count_pages(shape, axes)
    loops = _unrolled(axes)
    if not loops:
        yield _page(stack.data[(slice(None),) * len(shape)], axes)
        return
    inner = loops[-1]
    step = _slab_length(stack, loops)
    for outer in np.ndindex(*(shape[place] for place in loops[:-1])):
        where: list[int | slice] = [slice(None)] * len(shape)
        for place, index in zip(loops[:-1], outer, strict=True):
            where[place] = index
        for start in range(0, shape[inner], step):
            where[inner] = slice(start, min(start + step, shape[inner]))
            slab = np.asarray(stack.data[tuple(where)])
            kept = "".join(letter for place, letter in enumerate(axes) if place not in loops[:-1])
            at = kept.index(axes[inner])
            for page in np.moveaxis(slab, at, 0):
                yield _page(page, kept.replace(axes[inner], ""))


def _slab_length(stack: Stack, loops: list[int]) -> int:
    """How many pages to read at a time."""
    shape = stack.data.shape
    numbers = math.prod(length for place, length in enumerate(shape) if place not in loops)
    step = max(1, _SLAB // numbers)
    if loops == [0] and stack.chunk * numbers * 8 <= _SLAB_BYTES:
        step = max(step, stack.chunk)
    return step


def _page(page: np.ndarray, axes: str) -> Shaped[np.ndarray, " c h w"]:
    """A page with channels first, of a plain type of numbers in this machine's order of bytes."""
    page = np.asarray(page)
    channels = [place for place, letter in enumerate(axes) if letter in "CS"]
    page = page.transpose(*channels, axes.index("Y"), axes.index("X"))
    page = page.reshape(-1, *page.shape[-2:])
    if page.dtype.kind == "c":
        page = np.stack([page.real, page.imag], axis=1).reshape(-1, *page.shape[-2:])
    return plain(page)


def plain(numbers: np.ndarray) -> np.ndarray:
    """Numbers of a type that images may have.

    Raises:
        ValueError: They are no real numbers.
    """
    kind, size = numbers.dtype.kind, numbers.dtype.itemsize
    if kind == "b":
        return numbers.astype(np.uint8)
    if kind not in "uif" or size > 8:
        msg = f"holds {numbers.dtype}, which are no numbers of at most 64 bits"
        raise UnusableError(msg)
    if kind == "f" and size < 4:
        return numbers.astype(np.float32)
    return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
