"""Images as users have them: a Parquet file, a folder of picture files, or a torchvision set.

``find_images`` says what there is; ``Reader`` decodes it in order, refuses what is broken, mixed
or not 8-bit, and brings everything to one size. Only a block of images is in memory at a time.
"""

import hashlib
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from dsd.decoding import MAX_BYTES, Planes, area_average, decode
from dsd.errors import DataError, one_line

__all__ = ["Item", "Reader", "Refused", "Source", "find_images"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})

BLOCK_BYTES = 2**20
"""Decoded pixels in memory at a time, about."""

TORCHVISION = {"cifar10": "CIFAR10", "fashion-mnist": "FashionMNIST", "celeba": "CelebA"}


@final
@dataclass(frozen=True)
class Item:
    """One image of a source, not decoded yet."""

    name: str
    """For messages: which file or row."""

    content: bytes | Path | np.ndarray | None
    """Encoded bytes, the file that has them, or pixels [c, h, w]; None where a table is empty."""

    def load(self) -> bytes | np.ndarray:
        """The encoded bytes or the pixels.

        Raises:
            ValueError: There are none.
        """
        if self.content is None:
            msg = "has no bytes"
            raise ValueError(msg)
        return _read(self.content) if isinstance(self.content, Path) else self.content


def _read(path: Path) -> bytes:
    """All bytes of a file on the disk; a device or a pipe might never end, or never begin.

    Raises:
        ValueError: It cannot be read, or is no file of a picture's size.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            msg = "cannot be read: it is no regular file"
            raise ValueError(msg)
        if status.st_size > MAX_BYTES:
            msg = f"has {status.st_size} bytes, more than {MAX_BYTES}"
            raise ValueError(msg)
        return path.read_bytes()
    except OSError as error:
        msg = f"cannot be read: {error.strerror}"
        raise ValueError(msg) from error


@final
@dataclass(frozen=True)
class Source:
    """Images that were found."""

    count: int
    """How many items there are, broken ones included."""

    items: Iterable[Item]
    """The images, always in the same order."""

    square: bool = False
    """Whether to cut each image to its central square (CelebA: 178 x 218 to 178 x 178)."""


@final
@dataclass(frozen=True)
class Refused:
    """An image that could not be used, and why."""

    name: str
    reason: str


def find_images(
    kind: Literal["parquet", "folder", "torchvision"], path: Path, name: str | None
) -> Source:
    """Find the images of a source without decoding any.

    Args:
        kind: Kind of source.
        path: The Parquet file or the folder; for torchvision its folder for downloads.
        name: Which torchvision set: cifar10, fashion-mnist or celeba, its training part.

    Raises:
        DataError: There is nothing at ``path``, it is of another kind, or a download failed.
    """
    if kind == "torchvision":
        return _torchvision(path, name or "")
    if not path.exists():
        msg = f"{path} does not exist: correct data.path in params.yaml"
        raise DataError(msg)
    if not (path.is_dir() or path.is_file()):
        msg = f"{path} is neither a file nor a folder: correct data.path in params.yaml"
        raise DataError(msg)
    if path.is_dir() != (kind == "folder"):
        found, other = ("folder", "folder") if path.is_dir() else ("file", "parquet")
        msg = f"{path} is a {found}: correct data.path, or set data.source to {other}"
        raise DataError(msg)
    return _folder(path) if kind == "folder" else _parquet(path)


def _folder(folder: Path) -> Source:
    """The picture files in a folder and its subfolders, sorted by their relative names."""
    found = {
        file.relative_to(folder).as_posix(): file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    }
    if not found:
        suffixes = " ".join(sorted(SUFFIXES))
        msg = f"{folder} holds no images ({suffixes}): correct data.path in params.yaml"
        raise DataError(msg)
    return Source(len(found), [Item(one_line(found[name]), found[name]) for name in sorted(found)])


def _parquet(path: Path) -> Source:
    """The column ``image`` of a Parquet file: encoded, or a struct with a field ``bytes``."""
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        columns = [one_line(name) for name in schema.names]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = one_line(error)
        msg = f"{path} is no readable Parquet file ({reason}): correct data.path in params.yaml"
        raise DataError(msg) from error
    _check_column(path, schema, columns)
    return Source(file.metadata.num_rows, _rows(path, file))


def _check_column(path: Path, schema: pa.Schema, columns: list[str]) -> None:
    """Raise DataError unless there is one column ``image`` of bytes."""
    if "image" not in columns:
        msg = f"{path} has no column 'image', only {columns}: rename the column of images"
        raise DataError(msg)
    if columns.count("image") > 1:
        msg = f"{path} has several columns 'image': rename those that are not meant"
        raise DataError(msg)
    kind = schema.field("image").type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        msg = f"{path}: column 'image' is {kind}: it must hold encoded images (PNG, JPEG, ...)"
        raise DataError(msg)


def _rows(path: Path, file: pq.ParquetFile) -> Iterator[Item]:
    """The images of a Parquet file, one row in memory at a time.

    A few hundred bytes can say that any number of rows repeat one large value, so more rows at a
    time would let a small file fill the memory; they would not be faster either.
    """
    number = 0
    try:
        for batch in file.iter_batches(batch_size=1, columns=["image"]):
            for value in batch.column(0).to_pylist():
                content = value["bytes"] if isinstance(value, dict) else value
                yield Item(f"{path}, row {number}", content)
                number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = one_line(error)
        msg = f"{path} is damaged near row {number} ({reason}): fetch the file again"
        raise DataError(msg) from error


def _torchvision(path: Path, name: str) -> Source:
    """A set of torchvision, fetched into ``path`` unless it is there."""
    pickled = path / "FashionMNIST" / "processed"
    if name == "fashion-mnist" and pickled.exists():
        msg = (
            f"{pickled} is of an old torchvision, which pickled; it would be read instead "
            "of the images beside it: delete that folder"
        )
        raise DataError(msg)
    try:
        dataset = _load_torchvision(path, name)
    # torchvision lets through whatever its download tools raise.
    except Exception as error:
        reason = one_line(" ".join(str(error).split()))
        msg = (
            f"torchvision's {name} is not in {path} and cannot be downloaded ({reason}): "
            "connect to the network once, or copy torchvision's files there"
        )
        raise DataError(msg) from error
    if name == "celeba":
        folder = path / dataset.base_folder / "img_align_celeba"
        items = [Item(str(folder / file), folder / file) for file in dataset.filename]
        return Source(len(items), items, square=True)
    pixels = np.asarray(dataset.data)
    if pixels.dtype != np.uint8 or pixels.ndim not in {3, 4}:
        msg = f"torchvision's files of {name} in {path} hold no pictures: delete them"
        raise DataError(msg)
    planes = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return Source(
        len(planes), (Item(f"{name}, image {i}", image) for i, image in enumerate(planes))
    )


def _load_torchvision(path: Path, name: str) -> Any:  # noqa: ANN401 - torchvision is untyped
    """The training part of a set."""
    # Importing torchvision takes a second that the other sources need not pay.
    from torchvision import datasets

    path.mkdir(parents=True, exist_ok=True)
    part = {"split": "train"} if name == "celeba" else {"train": True}
    return getattr(datasets, TORCHVISION[name])(path, download=True, **part)


def _kind(pixels: Planes) -> str:
    """Size and channels as a person would say them."""
    channels, height, width = pixels.shape
    return f"{width} x {height} {'grey' if channels == 1 else 'RGB'}"


def _central_square(pixels: Planes) -> UInt8[np.ndarray, " c s s"]:
    """The largest square around the centre."""
    height, width = pixels.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[:, top : top + side, left : left + side]


@final
class Reader:
    """Decodes a source, once, and remembers what happened.

    Attributes:
        refused: Images that were skipped, complete when all blocks are read.
        count: Images used so far.
    """

    def __init__(
        self,
        source: Source,
        *,
        pad: int,
        resolution: int | None,
        on_broken: Literal["refuse", "skip"],
        max_images: int | None,
    ) -> None:
        self.refused: list[Refused] = []
        self.count = 0
        self._source = source
        self._pad = pad
        self._resolution = resolution
        self._on_broken = on_broken
        self._max_images = max_images
        self._digest = hashlib.sha256()
        self._first: tuple[Item, Planes] | None = None

    @property
    def total(self) -> int:
        """Images to come at most."""
        return min(self._source.count, self._max_images or self._source.count)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the source's bytes, in order, as far as they were read."""
        return self._digest.hexdigest()

    def blocks(self) -> Iterator[UInt8[np.ndarray, " n c h w"]]:
        """All usable images, brought to one size, some at a time.

        Raises:
            DataError: An image is broken (unless these are skipped) or differs in size or channels
                from the first, none is usable, or the size does not allow the resolution.
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
            msg = f"none of {len(self.refused)} images is usable; the first: {self._complaint()}"
            raise DataError(msg)

    def _usable(self) -> Iterator[Planes]:
        """Decoded images, the broken ones refused or noted."""
        for item in self._source.items:
            if self.count == self._max_images:
                return
            try:
                pixels = self._decoded(item)
            except ValueError as error:
                self._refuse(Refused(item.name, str(error)))
                continue
            self._check_size(item, pixels)
            self.count += 1
            yield pixels

    def _decoded(self, item: Item) -> Planes:
        content = item.load()
        data = content if isinstance(content, bytes) else content.tobytes()
        self._digest.update(len(data).to_bytes(8, "little") + data)
        pixels = decode(content) if isinstance(content, bytes) else content
        return _central_square(pixels) if self._source.square else pixels

    def _refuse(self, refused: Refused) -> None:
        self.refused.append(refused)
        if self._on_broken == "refuse":
            msg = f"{self._complaint()}; repair or remove it, or set data.on_broken to skip"
            raise DataError(msg)

    def _complaint(self) -> str:
        return f"{self.refused[0].name} {self.refused[0].reason}" if self.refused else "no image"

    def _check_size(self, item: Item, pixels: Planes) -> None:
        if self._first is None:
            self._check_resolution(item, pixels)
            self._first = item, pixels
        first, expected = self._first
        if pixels.shape != expected.shape:
            msg = (
                f"{item.name} is {_kind(pixels)}, but the first image, {first.name}, is "
                f"{_kind(expected)}: bring all images to one size and one kind of colour"
            )
            raise DataError(msg)

    def _check_resolution(self, item: Item, pixels: Planes) -> None:
        height, width = pixels.shape[1:]
        if self._resolution is None:
            return
        if height != width:
            msg = (
                f"{item.name} is {_kind(pixels)}, not square as data.resolution needs: "
                "crop the images, or set data.resolution to null"
            )
            raise DataError(msg)
        if self._resolution > width + 2 * self._pad:
            msg = (
                f"data.resolution is {self._resolution}, but images of {width} pixels with "
                f"data.pad {self._pad} have only {width + 2 * self._pad}: lower it, or pad more"
            )
            raise DataError(msg)

    def _resized(self, pixels: UInt8[np.ndarray, " n c h w"]) -> UInt8[np.ndarray, " n c h2 w2"]:
        border = (self._pad, self._pad)
        padded = np.pad(pixels, ((0, 0), (0, 0), border, border))
        if self._resolution is None or self._resolution == padded.shape[-1]:
            return padded
        return area_average(padded, self._resolution)
