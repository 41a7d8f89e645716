"""Stage ``prepare``: bring the images of a source to one layout."""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32
from pydantic import JsonValue

from dsd.corruption.camera_noise import estimate_camera
from dsd.sources.config import CameraMap, Data
from dsd.sources.intensity import SHORT_TYPES, Watch, limits_of, windows_of
from dsd.sources.phase import to_complex
from dsd.sources.reader import Reader, find_images, reader_for
from dsd.sources.source import Reading, Source
from dsd.storage.image_store import Block, StoreMeta, write_store
from dsd.storage.shards import LEVELS
from dsd.utils.anscombe import Camera
from dsd.utils.errors import DataError
from dsd.utils.files import write_json
from dsd.utils.intensity import PIXELS, Intensity
from pipeline.stage_io.context import StageContext
from pipeline.stage_io.log import StageLog
from pipeline.stage_io.outputs import replaced_outputs
from pipeline.stage_io.paths import Paths

if TYPE_CHECKING:
    from pipeline.params.model import Params

__all__ = ["run"]

_SUFFIXES = {"array": ".npy", "hdf5": ".h5", "zarr": ".zarr", "fits": ".fits", "mrc": ".mrc",
             "nifti": ".nii.gz", "function": ".npy"}  # fmt: skip
"""Of files of a kind of source; pictures have more than one."""


def run(context: StageContext) -> None:
    """Read the images of ``params.data`` and write ``data/prepare`` and ``reports/prepare``."""
    with replaced_outputs(context.paths, "prepare") as fresh:
        _prepare(context.params, fresh, context.log)


def _prepare(params: "Params", paths: Paths, log: StageLog) -> None:
    data = params.data
    log.doing("finding the images")
    source = find_images(data.source, paths.root / data.path, data.name, reading=Reading.of(data))
    # Said before anything is read, so that it is there whatever comes.
    for note in source.notes:
        log.say(note)
    low, high = limits_of(data, source)
    camera = _camera(data, source, log)
    reader = reader_for(data, source, scale=2 / (high - low))
    log.doing("reading the images")
    blocks = _blocks(reader, log)
    first = next(blocks)
    watch = Watch(Intensity(low=low, high=high, dtype=reader.dtype, camera=camera))
    levels = None
    if data.variance is not None:
        levels = _write_levels(data, paths, watch.intensity.scale)
    # Complex images, and other than short whole numbers, are stored in data units.
    raw = data.phase == "none" and camera is None and str(first.dtype) in SHORT_TYPES
    meta = write_store(
        paths.artifact("prepare"),
        _stored(chain([first], blocks), watch, raw=raw, phase=data.phase == "smooth"),
        scale=watch.intensity.scale if raw else 1.0,
        offset=watch.intensity.offset if raw else 0.0,
        shard_size=data.shard_size,
        info=lambda: _origin(data, reader, watch, levels),
    )
    if levels is not None and (levels.count, levels.layout.shape) != (
        meta.count,
        meta.layout.shape,
    ):
        found, wanted = (
            f"{one.count} of {' x '.join(map(str, one.layout.shape))}" for one in (levels, meta)
        )
        msg = (
            f"data.variance: {data.variance} has planes of another kind than the images: {found}, "
            f"not {wanted} (channels x height x width). Name the plane of the images"
        )
        raise DataError(msg)
    notes = [*reader.notes, *(watch.notes() if data.intensity is not None else ())]
    for note in notes:
        log.say(note)
    _report(paths.report("prepare"), meta, [*source.notes, *notes], reader, watch)
    log.reads(
        data.name or data.path,
        digest=reader.fingerprint,
        count=meta.count,
        shape=meta.layout.shape,
    )
    log.say(_summary_line(meta, reader))


def _camera(data: Data, source: Source, log: StageLog) -> Camera | None:
    """The camera whose noise is stabilised, with what is not given estimated.

    Raises:
        DataError: It cannot be estimated, or the images cannot be read.
    """
    if not isinstance(data.intensity, CameraMap):
        return None
    given = data.intensity.camera.model_dump()
    if "auto" not in given.values():
        return Camera.model_validate(given)
    estimate = estimate_camera(windows_of(data, source), **given)
    log.say(f"noise of the camera: {estimate}")
    return estimate.camera


def _blocks(reader: Reader, log: StageLog) -> Iterator[np.ndarray]:
    with log.progress(reader.total) as progress:
        for images in reader.blocks():
            progress.update(reader.done)
            yield images


def _stored(
    blocks: Iterator[np.ndarray], watch: Watch, *, raw: bool, phase: bool
) -> Iterator[Block]:
    """Images as they are stored: raw, complex, or in data units."""
    first = 0
    for images in blocks:
        if watch.intensity != PIXELS:
            watch.passes(images)
        if phase:
            yield Block(to_complex(images, np.arange(first, first + len(images))))
        else:
            yield Block(images if raw else _gaps_as_zero(watch.intensity.in_units(images)))
        first += len(images)


def _write_levels(data: Data, paths: Paths, scale: float) -> StoreMeta:
    """Write the noise level of each pixel, in data units, as images beside the images.

    Raises:
        DataError: A variance is negative or not finite.
    """
    plane = data.model_copy(update={"key": data.variance})
    source = find_images(data.source, paths.root / data.path, data.name, reading=Reading.of(plane))
    reader = reader_for(plane, source)

    def levels() -> Iterator[Block]:
        for variance in reader.blocks():
            if not variance.min() >= 0:
                msg = (
                    f"data.variance: {data.variance} holds negative numbers. Name an array of "
                    "variances"
                )
                raise DataError(msg)
            yield Block((np.sqrt(variance.astype(np.float64)) * scale).astype(np.float32))

    return write_store(
        paths.artifact("prepare") / LEVELS,
        levels(),
        scale=1.0,
        offset=0.0,
        shard_size=data.shard_size,
    )


def _gaps_as_zero(images: Float32[np.ndarray, " n c h w"]) -> Float32[np.ndarray, " n c h w"]:
    """Pixels without a finite number in each channel become 0, which no observed one stays."""
    missing = ~np.isfinite(images).all(1, keepdims=True)
    if missing.any():
        images[images == 0] = np.finfo(np.float32).tiny
        images[np.broadcast_to(missing, images.shape)] = 0
    return images


def _origin(
    data: Data, reader: Reader, watch: Watch, levels: StoreMeta | None
) -> Mapping[str, JsonValue]:
    """What later stages need to know; no path, so that moving a source changes nothing."""
    more: dict[str, JsonValue] = {}
    if reader.averaged is not None:
        more["averaged"] = reader.averaged
    if watch.intensity != PIXELS:
        more["intensity"] = watch.intensity.model_dump(exclude_none=True)
        more["suffix"] = _suffix(data, reader)
    if watch.missing:
        more["missing"] = watch.missing / (watch.missing + watch.numbers)
    if reader.is_complex or data.phase == "smooth":
        more["complex"] = True
    if data.patches is not None:
        more["pictures"] = list(reader.pictures)
    if levels is not None:
        more[LEVELS] = levels.fingerprint
    return {"content": data.content, "source_sha256": reader.fingerprint, **more}


def _suffix(data: Data, reader: Reader) -> str:
    """Suffix of files like those of the source, for images that a model makes."""
    pictures = all("PNG" in one.name for one in reader.encodings)
    return _SUFFIXES.get(data.source, ".png" if pictures else ".tif")


def _encodings(reader: Reader) -> dict[str, int]:
    """How many images were encoded how, the most common first."""
    return {encoding.name: count for encoding, count in reader.encodings.most_common()}


def _report(folder: Path, meta: StoreMeta, notes: list[str], reader: Reader, watch: Watch) -> None:
    summary = {
        "count": meta.count,
        "shape": meta.layout.shape,
        "dtype": meta.layout.dtype,
        "encodings": _encodings(reader),
        "notes": notes,
        "refused": [{"name": item.name, "reason": item.reason} for item in reader.refused],
    }
    if watch.numbers:
        summary["intensity"] = watch.intensity.model_dump(exclude_none=True)
        summary["outside"] = [watch.below, watch.above]
        summary["saturated"] = watch.saturated
    write_json(folder / "summary.json", summary)


def _summary_line(meta: StoreMeta, reader: Reader) -> str:
    channels, height, width = meta.layout.shape
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    kind = "complex" if meta.info.get("complex") else kind
    line = f"{meta.count} images of {width} x {height} {kind}, {meta.layout.dtype}"
    encodings = ", ".join(f"{count} {name}" for name, count in _encodings(reader).items())
    line = f"{line} ({encodings})"
    if reader.pictures:
        line = f"{line}, cut from {len(reader.pictures)} pictures"
    if not reader.refused:
        return line
    first = reader.refused[0]
    return f"{line}; refused {len(reader.refused)}, the first: {first.name} {first.reason}"
