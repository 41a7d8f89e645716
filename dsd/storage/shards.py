"""How images lie on disk: mapped Arrow IPC files, and a ``meta.json`` that lists them.

A store is a folder of ``part-00000.arrow``, ``part-00001.arrow``, ... Each file holds the pixels
of an image as one fixed-size value, uncompressed, so that a mapped file *is* the array. Noisy
stores have two columns more: the noise level and the number of the image before the split. The
bytes depend on the images alone. ``meta.json`` is written last and carries the hash of every file;
without it, or with another hash, nothing is mapped.

This module knows NumPy only, so that worker processes start without torch;
``dsd.storage.image_store`` serves tensors.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, final

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, Shaped
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from dsd.utils.errors import DataError
from dsd.utils.files import published

__all__ = [
    "KEPT",
    "LEVELS",
    "REMEDY",
    "Block",
    "Layout",
    "MappedStore",
    "Shard",
    "StoreMeta",
    "StoreWriter",
    "clear_store",
    "read_meta",
]

SCHEMA_VERSION: Final = 1
"""Number of this layout; stores with another number are refused."""

BATCH_BYTES = 2**25
"""Size of a record batch, which bounds what writers hold in memory."""

LEVELS: Final = "levels"
"""Folder inside a store with the noise level of each pixel as images, and the key of ``info`` that
holds its fingerprint."""

REMEDY: Final = "run `dvc repro` (or `dvc checkout`) to bring it back"

KEPT: Final = ("intensity", "missing", "complex", "suffix")
"""What a noisy store remembers of the clean one: how its numbers came from those of files."""

Count = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class Layout(_Record):
    """What one image is; the same for all files of a store."""

    shape: tuple[Count, Count, Count]
    """Channels, height, width."""

    dtype: Literal["uint8", "uint16", "int16", "float32"]
    """Type of the stored numbers, little-endian."""

    scale: Finite
    """Data units = stored number * scale + offset."""

    offset: Finite

    noisy: bool
    """Whether each image has a noise level and its number before the split."""

    @property
    def itemsize(self) -> int:
        """Bytes of one image."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def in_units(self, raw: Shaped[np.ndarray, " n c h w"]) -> Float32[np.ndarray, " n c h w"]:
        """Stored numbers as data units; always a fresh array."""
        if self.dtype in {"uint16", "int16"}:
            # Double precision, because the offset may be large beside the range.
            return (raw * self.scale + self.offset).astype(np.float32)
        values = raw.astype(np.float32)
        if (self.scale, self.offset) != (1.0, 0.0):
            values *= np.float32(self.scale)
            values += np.float32(self.offset)
        return values


class Shard(_Record):
    """One file of a store."""

    name: Annotated[str, Field(pattern=r"^part-[0-9]{5}\.arrow$")]
    count: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class StoreMeta(_Record):
    """All of ``meta.json``."""

    version: Literal[1]
    layout: Layout
    shard_size: Count
    """Images in each file but the last."""

    shards: Annotated[tuple[Shard, ...], Field(min_length=1)]
    info: dict[str, JsonValue]
    """What the writer wants to be remembered, for example the hash of the source."""

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(shard.count for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything the store says and holds."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@final
@dataclass(frozen=True)
class Block:
    """Some images, as stored; ``sigma`` and ``index`` are both there or both absent."""

    images: Shaped[np.ndarray, " n c h w"]
    sigma: Float32[np.ndarray, " n"] | None = None
    """Noise level of each image, in data units."""

    index: Int64[np.ndarray, " n"] | None = None
    """Number of each image before the split."""

    def __getitem__(self, rows: slice) -> "Block":
        sigma, index = self.sigma, self.index
        if sigma is None or index is None:
            return Block(self.images[rows])
        return Block(self.images[rows], sigma[rows], index[rows])

    @classmethod
    def joined(cls, parts: Sequence["Block"]) -> "Block":
        """Join blocks of one kind."""
        sigma = [part.sigma for part in parts if part.sigma is not None]
        index = [part.index for part in parts if part.index is not None]
        images = np.concatenate([part.images for part in parts])
        return cls(images, np.concatenate(sigma), np.concatenate(index)) if sigma else cls(images)


def clear_store(folder: Path) -> None:
    """Make ``folder`` an empty folder as far as a store is concerned, its ``meta.json`` first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").unlink(missing_ok=True)
    for old in folder.glob("part-*.arrow*"):
        old.unlink()


def _schema(layout: Layout) -> pa.Schema:
    """Columns of a file, with the layout in its metadata."""
    fields = [pa.field("image", pa.binary(layout.itemsize), nullable=False)]
    if layout.noisy:
        fields.append(pa.field("sigma", pa.float32(), nullable=False))
        fields.append(pa.field("index", pa.int64(), nullable=False))
    about = {"dsd.version": str(SCHEMA_VERSION), "dsd.layout": layout.model_dump_json()}
    return pa.schema(fields, metadata=about)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@final
@dataclass(frozen=True)
class StoreWriter:
    """Writes the files of a store, in any process, and then its ``meta.json``."""

    folder: Path
    """Where; :func:`clear_store` must have made it empty."""

    layout: Layout
    shard_size: int

    @property
    def batch_rows(self) -> int:
        """Images in a record batch: a function of the layout alone, so that the bytes are too."""
        return max(1, min(self.shard_size, BATCH_BYTES // self.layout.itemsize))

    def write(self, number: int, blocks: Iterable[Block]) -> Shard:
        """Write one file. Each of ``blocks`` except the last must hold ``batch_rows`` images.

        Raises:
            OSError: The disk refuses; no file of that name is left.
            ValueError: Images are not those of the layout.
        """
        path = self.folder / f"part-{number:05d}.arrow"
        count = 0
        with published(path) as file, pa.ipc.new_file(file, _schema(self.layout)) as writer:
            for block in blocks:
                writer.write_batch(self._batch(block))
                count += len(block.images)
        return Shard(name=path.name, count=count, sha256=_sha256(path))

    def _batch(self, block: Block) -> pa.RecordBatch:
        """A block as a record batch, its images without a copy."""
        layout, images = self.layout, block.images
        if images.dtype != layout.dtype or images.shape[1:] != layout.shape:
            msg = (
                f"images are {images.dtype} {images.shape[1:]}, "
                f"those of the store {layout.dtype} {layout.shape}"
            )
            raise ValueError(msg)
        buffer = pa.py_buffer(np.ascontiguousarray(images))
        kind = pa.binary(layout.itemsize)
        columns = [pa.FixedSizeBinaryArray.from_buffers(kind, len(images), [None, buffer])]
        if layout.noisy:
            columns += [pa.array(block.sigma, pa.float32()), pa.array(block.index, pa.int64())]
        return pa.record_batch(columns, schema=_schema(layout))

    def finish(self, shards: Sequence[Shard], info: Mapping[str, JsonValue]) -> StoreMeta:
        """Complete the store, all of whose files are written."""
        meta = StoreMeta(
            version=SCHEMA_VERSION,
            layout=self.layout,
            shard_size=self.shard_size,
            shards=tuple(shards),
            info=dict(info),
        )
        with published(self.folder / "meta.json") as file:
            file.write(meta.model_dump_json(indent=2).encode() + b"\n")
        return meta


def read_meta(folder: Path) -> StoreMeta:
    """What ``meta.json`` in ``folder`` says.

    Raises:
        DataError: There is none, it is no such file, or it has another schema version.
    """
    path = folder / "meta.json"
    try:
        content = path.read_bytes()
        document = json.loads(content)
    except FileNotFoundError as error:
        msg = f"{path} is missing, so {folder} holds no complete images: {REMEDY}"
        raise DataError(msg) from error
    except (ValueError, RecursionError, IsADirectoryError) as error:
        msg = f"{path} is no JSON ({error}): {REMEDY}"
        raise DataError(msg) from error
    version = document.get("version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        msg = (
            f"{path} has schema version {version!r}, but this program reads {SCHEMA_VERSION}: "
            "run `dvc repro` to make it anew"
        )
        raise DataError(msg)
    try:
        return StoreMeta.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        msg = f"{path}: {key}: {first['msg']}: {REMEDY}"
        raise DataError(msg) from error


def _map_shard(folder: Path, layout: Layout, shard: Shard, *, verify: bool) -> list[Block]:
    """The record batches of a file, as views of the mapped file."""
    path = folder / shard.name
    try:
        actual = _sha256(path) if verify else shard.sha256
        if actual != shard.sha256:
            msg = f"{path} is damaged (meta.json has another SHA-256): delete it and {REMEDY}"
            raise DataError(msg)
        table = _fitting_table(path, layout, shard.count)
    except (FileNotFoundError, IsADirectoryError) as error:
        msg = f"{path} is missing: {REMEDY}"
        raise DataError(msg) from error
    except (pa.ArrowException, ValueError) as error:
        msg = f"{path} is no Arrow file ({error}): delete it and {REMEDY}"
        raise DataError(msg) from error
    if table is None:
        msg = f"{path} does not fit meta.json (columns, layout or count): delete both and {REMEDY}"
        raise DataError(msg)
    return [_view(layout, batch) for batch in table.to_batches()]


def _fitting_table(path: Path, layout: Layout, count: int) -> pa.Table | None:
    """A mapped file whose buffers are as long as it says; None if it holds something else."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        # First, because a column of impossible width cannot even be described.
        too_short = path.stat().st_size < count * layout.itemsize
        if too_short or not reader.schema.equals(_schema(layout), check_metadata=True):
            return None
        table = reader.read_all()
    except OSError as error:
        # Arrow tells of a file that ends too soon as of an error of the disk without a number.
        if error.errno is not None:
            raise
        raise ValueError(*error.args) from error
    table.validate(full=True)
    whole = len(table) == count and not any(column.null_count for column in table.columns)
    return table if whole else None


def _view(layout: Layout, batch: pa.RecordBatch) -> Block:
    """A record batch as arrays that share its memory."""
    pixels = np.frombuffer(batch.column(0).buffers()[1], layout.dtype)
    images = pixels[: batch.num_rows * int(np.prod(layout.shape))].reshape(-1, *layout.shape)
    if not layout.noisy:
        return Block(images)
    return Block(images, batch.column(1).to_numpy(), batch.column(2).to_numpy())


@final
class MappedStore:
    """A store on disk, seen as arrays.

    Attributes:
        meta: What ``meta.json`` says.
        blocks: Read-only views of the files, in order; nothing is read before it is used.
    """

    def __init__(self, meta: StoreMeta, blocks: list[Block]) -> None:
        self.meta = meta
        self.blocks = blocks
        self._ends = np.cumsum([len(block.images) for block in blocks])

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "MappedStore":
        """Map the store in ``folder``.

        Args:
            folder: The store.
            verify: Whether to check the hash of each file; not needed for what was just checked.

        Raises:
            DataError: A file is missing, damaged or of another schema version.
        """
        meta = read_meta(folder)
        shards = (_map_shard(folder, meta.layout, shard, verify=verify) for shard in meta.shards)
        return cls(meta, [block for blocks in shards for block in blocks])

    def take(self, indices: Int64[np.ndarray, " n"]) -> Shaped[np.ndarray, " n c h w"]:
        """The images with these numbers, as stored, in this order.

        Raises:
            IndexError: A number is negative or too large.
        """
        count = self.meta.count
        if len(indices) and (indices.min() < 0 or indices.max() >= count):
            msg = f"image numbers go from 0 to {count - 1}, not {indices.min()} to {indices.max()}"
            raise IndexError(msg)
        taken = np.empty((len(indices), *self.meta.layout.shape), self.meta.layout.dtype)
        block_of = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(block_of):
            images = self.blocks[number].images
            here = np.flatnonzero(block_of == number)
            taken[here] = images[indices[here] - (self._ends[number] - len(images))]
        return taken

    def take_units(self, indices: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " n c h w"]:
        """The images with these numbers in data units."""
        return self.meta.layout.in_units(self.take(indices))
