"""Images on disk as tensors in data units, [-1, 1] for clean 8-bit images.

Writing streams (some megabytes at a time), reading maps the files: ``ImageStore.raw`` is the
disk's content without a copy, ``take`` copies only the images asked for. ``dsd.storage.shards``
describes the files.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, count, cycle, islice
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from pydantic import JsonValue
from torch import Tensor

from dsd.storage.shards import (
    SCHEMA_VERSION,
    Block,
    Layout,
    MappedStore,
    Shard,
    StoreMeta,
    batch_rows,
    clear_store,
    write_meta,
    write_shard,
)
from dsd.utils.errors import DataError
from dsd.utils.shapes import Level

__all__ = ["Block", "ImageStore", "Layout", "StoreMeta", "write_store"]


def _joined(parts: list[Block]) -> Block:
    """Blocks as one."""
    first = parts[0]
    if first.sigma is None or first.index is None:
        return Block(np.concatenate([part.images for part in parts]))
    return Block(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.sigma for part in parts if part.sigma is not None]),
        np.concatenate([part.index for part in parts if part.index is not None]),
    )


def _cut(block: Block, at: int) -> tuple[Block, Block]:
    """The first ``at`` images and the others."""
    if block.sigma is None or block.index is None:
        return Block(block.images[:at]), Block(block.images[at:])
    return (
        Block(block.images[:at], block.sigma[:at], block.index[:at]),
        Block(block.images[at:], block.sigma[at:], block.index[at:]),
    )


def _rebatched(blocks: Iterable[Block], sizes: Iterator[int]) -> Iterator[Block]:
    """The same images in blocks of the given sizes; the last one may be smaller."""
    parts: list[Block] = []
    size = next(sizes)
    for block in blocks:
        parts.append(block)
        while sum(len(part.images) for part in parts) >= size:
            full, rest = _cut(_joined(parts), size)
            yield full
            parts, size = [rest], next(sizes)
    if sum(len(part.images) for part in parts):
        yield _joined(parts)


def _batch_sizes(layout: Layout, shard_size: int) -> list[int]:
    """Sizes of the record batches of one full file."""
    rows = batch_rows(layout, shard_size)
    return [min(rows, shard_size - start) for start in range(0, shard_size, rows)]


def _write_shards(
    folder: Path, layout: Layout, blocks: Iterable[Block], shard_size: int
) -> Iterator[Shard]:
    """Write all files of a store."""
    sizes = _batch_sizes(layout, shard_size)
    batches = _rebatched(blocks, cycle(sizes))
    for number in count():
        first = next(batches, None)
        if first is None:
            return
        yield write_shard(folder, number, layout, chain([first], islice(batches, len(sizes) - 1)))


def write_store(
    folder: Path,
    blocks: Iterable[Block],
    *,
    scale: float,
    offset: float,
    shard_size: int,
    info: Callable[[], Mapping[str, JsonValue]] = dict,
) -> StoreMeta:
    """Write images as a store, whatever the sizes of the blocks they come in.

    Args:
        folder: Where; a store that is there already is replaced.
        blocks: Images of one shape and type; the first block decides which, and whether they carry
            a noise level.
        scale: Data units = stored number * scale + offset.
        offset: See ``scale``.
        shard_size: Images in one file.
        info: Called after the last block; what ``meta.json`` shall remember.

    Raises:
        DataError: There is no image.
        OSError: The disk refuses; the store then has no ``meta.json`` and no torn file.
    """
    stream = iter(blocks)
    first = next(stream, None)
    if first is None:
        msg = f"{folder}: there is no image to write; look at data.path in params.yaml"
        raise DataError(msg)
    layout = Layout.model_validate(
        {
            "shape": first.images.shape[1:],
            "dtype": str(first.images.dtype),
            "scale": scale,
            "offset": offset,
            "noisy": first.sigma is not None,
        }
    )
    clear_store(folder)
    shards = tuple(_write_shards(folder, layout, chain([first], stream), shard_size))
    meta = StoreMeta(
        version=SCHEMA_VERSION,
        layout=layout,
        shard_size=shard_size,
        shards=shards,
        info=dict(info()),
    )
    write_meta(folder, meta)
    return meta


@final
class ImageStore:
    """Images on disk, served as float32 tensors in data units.

    Attributes:
        folder: Where they are.
        meta: Their number, shape, type, affine map and origin.
    """

    def __init__(self, folder: Path, mapped: MappedStore) -> None:
        self.folder = folder
        self.meta = mapped.meta
        self._mapped = mapped

    @classmethod
    def open(cls, folder: Path | str) -> "ImageStore":
        """Check and map the store in ``folder``.

        Raises:
            DataError: A file is missing, damaged or of another schema version.
        """
        return cls(Path(folder), MappedStore.open(Path(folder)))

    def __len__(self) -> int:
        return self.meta.count

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.meta.layout.shape

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything the store says and holds."""
        return self.meta.fingerprint

    def take(self, indices: Int64[Tensor, " n"]) -> Float[Tensor, " n c h w"]:
        """The images with these numbers, in this order, on the CPU."""
        return torch.from_numpy(self._mapped.take_units(indices.numpy()))

    def all(self) -> Float[Tensor, " n c h w"]:
        """All images in memory, 4 bytes a number."""
        images = torch.empty(len(self), *self.shape)
        start = 0
        for raw in self.raw():
            images[start : start + len(raw)] = torch.from_numpy(self.meta.layout.in_units(raw))
            start += len(raw)
        return images

    def raw(self) -> tuple[Shaped[np.ndarray, " n c h w"], ...]:
        """All images as stored: read-only views of the mapped files, in order."""
        return tuple(block.images for block in self._mapped.blocks)

    @property
    def sigma(self) -> Level:
        """Noise level of each image.

        Raises:
            DataError: The images are not noisy observations.
        """
        levels = [block.sigma for block in self._mapped.blocks if block.sigma is not None]
        return torch.from_numpy(np.concatenate(self._noisy(levels)))

    @property
    def index(self) -> Int64[Tensor, " n"]:
        """Number that each image has in the prepared set, before the split.

        Raises:
            DataError: The images are not noisy observations.
        """
        numbers = [block.index for block in self._mapped.blocks if block.index is not None]
        return torch.from_numpy(np.concatenate(self._noisy(numbers)))

    def _noisy(self, columns: list[np.ndarray]) -> list[np.ndarray]:
        if not columns:
            msg = f"{self.folder}: its images carry no noise level; take a store of corrupt's"
            raise DataError(msg)
        return columns
