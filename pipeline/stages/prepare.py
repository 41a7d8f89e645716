"""Stage ``prepare``: bring the images of a source to one layout."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from dsd.sources.config import Data
from dsd.sources.phase import to_complex
from dsd.sources.reader import Reader, find_images, reader_for
from dsd.sources.source import Source
from dsd.storage.image_store import Block, StoreMeta, write_store
from dsd.utils.files import write_json
from pipeline.stage_io.context import StageContext
from pipeline.stage_io.log import StageLog
from pipeline.stage_io.outputs import replaced_outputs
from pipeline.stage_io.paths import Paths

if TYPE_CHECKING:
    from pipeline.params.model import Params

__all__ = ["run"]


def run(context: StageContext) -> None:
    """Read the images of ``params.data`` and write ``data/prepare`` and ``reports/prepare``."""
    with replaced_outputs(context.paths, "prepare") as fresh:
        _prepare(context.params, fresh, context.log)


def _prepare(params: "Params", paths: Paths, log: StageLog) -> None:
    source = find_images(params.data.source, paths.root / params.data.path, params.data.name)
    # Said before anything is read, so that it is there whatever comes.
    for note in source.notes:
        log.say(note)
    reader = reader_for(params.data, source)
    complex_ = params.data.phase == "smooth"
    blocks = _blocks(reader, log)
    meta = write_store(
        paths.artifact("prepare"),
        _complex_blocks(blocks) if complex_ else blocks,
        # Images of 8 bits span [-1, 1]; complex ones are stored in data units.
        scale=1.0 if complex_ else 1 / 127.5,
        offset=0.0 if complex_ else -1.0,
        shard_size=params.data.shard_size,
        info=lambda: _origin(params.data, reader),
    )
    for note in reader.notes:
        log.say(note)
    _report(paths.report("prepare"), meta, source, reader)
    log.reads(
        params.data.name or params.data.path,
        digest=reader.fingerprint,
        count=meta.count,
        shape=meta.layout.shape,
    )
    log.say(_summary_line(meta, reader))


def _blocks(reader: Reader, log: StageLog) -> Iterator[Block]:
    with log.progress(reader.total) as progress:
        for images in reader.blocks():
            progress.update(reader.count)
            yield Block(images)


def _complex_blocks(blocks: Iterator[Block]) -> Iterator[Block]:
    first = 0
    for block in blocks:
        count = len(block.images)
        yield Block(to_complex(block.images, np.arange(first, first + count)))
        first += count


def _origin(data: Data, reader: Reader) -> Mapping[str, JsonValue]:
    """What later stages need to know; no path, so that moving a source changes nothing."""
    averaged = {} if reader.averaged is None else {"averaged": reader.averaged}
    return {"content": data.content, "source_sha256": reader.fingerprint, **averaged}


def _encodings(reader: Reader) -> dict[str, int]:
    """How many images were encoded how, the most common first."""
    return {encoding.name: count for encoding, count in reader.encodings.most_common()}


def _report(folder: Path, meta: StoreMeta, source: Source, reader: Reader) -> None:
    summary = {
        "count": meta.count,
        "shape": meta.layout.shape,
        "dtype": meta.layout.dtype,
        "encodings": _encodings(reader),
        "notes": [*source.notes, *reader.notes],
        "refused": [{"name": item.name, "reason": item.reason} for item in reader.refused],
    }
    write_json(folder / "summary.json", summary)


def _summary_line(meta: StoreMeta, reader: Reader) -> str:
    channels, height, width = meta.layout.shape
    kind = {1: "grey", 2: "complex"}.get(channels, "RGB")
    line = f"{meta.count} images of {width} x {height} {kind}, {meta.layout.dtype}"
    encodings = ", ".join(f"{count} {name}" for name, count in _encodings(reader).items())
    line = f"{line} ({encodings})"
    if not reader.refused:
        return line
    first = reader.refused[0]
    return f"{line}; refused {len(reader.refused)}, the first: {first.name} {first.reason}"
