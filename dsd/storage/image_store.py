"""Images on disk as tensors in data units, [-1, 1] for clean 8-bit images.

Writing streams (some megabytes at a time), reading maps the files: ``ImageStore.raw`` is the
disk's content without a copy, ``take`` copies only the images asked for. ``dsd.storage.shards``
describes the files.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, cycle, islice
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from pydantic import JsonValue
from torch import Tensor

from dsd.storage.shards import (
    LEVELS,
    REMEDY,
    Block,
    Layout,
    MappedStore,
    Shard,
    StoreMeta,
    StoreWriter,
    clear_store,
)
from dsd.utils.errors import DataError
from dsd.utils.intensity import PIXELS, Intensity
from dsd.utils.shapes import Level, NoiseLevels

__all__ = ["Block", "ImageStore", "Layout", "StoreMeta", "write_store"]


def _rebatched(blocks: Iterable[Block], sizes: Iterator[int]) -> Iterator[Block]:
    """The same images in blocks of the given sizes; the last one may be smaller."""
    parts: list[Block] = []
    size = next(sizes)
    for block in blocks:
        parts.append(block)
        while sum(len(part.images) for part in parts) >= size:
            whole = Block.joined(parts)
            yield whole[:size]
            parts, size = [whole[size:]], next(sizes)
    if sum(len(part.images) for part in parts):
        yield Block.joined(parts)


def _write_shards(writer: StoreWriter, blocks: Iterable[Block]) -> Iterator[Shard]:
    """Write all files of a store."""
    rows, size = writer.batch_rows, writer.shard_size
    sizes = [min(rows, size - start) for start in range(0, size, rows)]
    batches = _rebatched(blocks, cycle(sizes))
    for number in count():
        first = next(batches, None)
        if first is None:
            return
        yield writer.write(number, chain([first], islice(batches, len(sizes) - 1)))


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
    kind = {"shape": first.images.shape[1:], "dtype": str(first.images.dtype)}
    units = {"scale": scale, "offset": offset, "noisy": first.sigma is not None}
    writer = StoreWriter(folder, Layout.model_validate(kind | units), shard_size)
    clear_store(folder)
    shards = tuple(_write_shards(writer, chain([first], stream)))
    return writer.finish(shards, info())


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

    @property
    def intensity(self) -> Intensity:
        """Map between data units and the raw numbers of the source: 0 to 255 unless stored."""
        stored = self.meta.info.get("intensity")
        return PIXELS if stored is None else Intensity.model_validate(stored)

    @property
    def is_complex(self) -> bool:
        """Whether the channels are real and imaginary parts."""
        operator = self.meta.info.get("operator")
        fourier = isinstance(operator, dict) and operator.get("kind") == "fourier"
        return fourier or bool(self.meta.info.get("complex"))

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
        return self._column([block.sigma for block in self._mapped.blocks])

    @property
    def noise_levels(self) -> NoiseLevels:
        """Noise level of each image, or of each of its pixels where that is known.

        Raises:
            DataError: The images are not noisy observations, or the levels are damaged.
        """
        maps = self.level_maps
        return self.sigma if maps is None else maps.all()

    @property
    def level_maps(self) -> "ImageStore | None":
        """The noise level of each pixel, as a store; None where it is one for each image.

        Raises:
            DataError: It is missing or damaged, or belongs to other images.
        """
        if LEVELS not in self.meta.info:
            return None
        maps = ImageStore.open(self.folder / LEVELS)
        if maps.fingerprint != self.meta.info[LEVELS]:
            msg = f"{maps.folder} does not belong to {self.folder}: {REMEDY}"
            raise DataError(msg)
        return maps

    @property
    def index(self) -> Int64[Tensor, " n"]:
        """Number that each image has in the prepared set, before the split.

        Raises:
            DataError: The images are not noisy observations.
        """
        return self._column([block.index for block in self._mapped.blocks])

    def _column(self, parts: Sequence[np.ndarray | None]) -> Tensor:
        there = [part for part in parts if part is not None]
        if not there:
            msg = f"{self.folder}: its images carry no noise level; take a store of corrupt's"
            raise DataError(msg)
        return torch.from_numpy(np.concatenate(there))
