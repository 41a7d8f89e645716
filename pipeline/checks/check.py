"""``python -m pipeline check``, and what is checked before each stage: nothing is run or written.

A few images are opened to learn what ``prepare`` will find; later stages look at what the stages
before them have written. What follows from that for all stages is in :mod:`pipeline.checks.needs`.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import final

import numpy as np
from pydantic import TypeAdapter

from dsd.distillation.config import DIVERGENCES
from dsd.features.config import FEATURE_SPACES, INCEPTION_SPACES
from dsd.sources.config import Data
from dsd.sources.phase import to_complex
from dsd.sources.reader import Refused, find_images, reader_for
from dsd.sources.source import Item, Reading, Source
from dsd.storage.shards import MappedStore, StoreMeta, read_meta
from dsd.utils.errors import DataError
from pipeline.checks.needs import Prepared, Shape, observed_shape, remarks, require
from pipeline.params.model import Params
from pipeline.stage_io.paths import Paths

__all__ = ["Found", "check_before", "look", "show_check"]

_FIRST, _SPREAD = 4, 4
"""Images that are opened: the first ones, and about as many others at equal distances."""

_PAGES = 2
"""Pages that are read of each array."""

_SHIPPED = {*FEATURE_SPACES} - {*INCEPTION_SPACES}
"""Extractors whose weights come with the installation."""


@final
@dataclass(frozen=True)
class Found:
    """What a look at the source has found."""

    count: int
    """Images that ``prepare`` will use, if all are usable."""

    opened: int
    """Images that were opened."""

    size: Shape | None
    """Channels, height and width as found; None where no image that was opened is usable."""

    prepared: Shape | None
    """The same of what ``prepare`` will write."""

    is_complex: bool
    """Whether its channels are real and imaginary parts."""

    refused: tuple[Refused, ...]
    """Images that were opened and will be skipped."""

    notes: tuple[str, ...]
    """What the source says of itself."""


def look(data: Data, root: Path) -> Found:
    """Open a few images of a source as ``prepare`` will.

    Args:
        data: Where the images are.
        root: The workspace, from which a relative path starts.

    Raises:
        DataError: There is no such source, or an image will stop ``prepare``.
        ParamsError: The images cannot be brought to the layout that is asked for.
    """
    source = find_images(
        data.source, root / data.path, data.name, preview=True, reading=Reading.of(data)
    )
    count = source.count if data.patches else min(source.count, data.max_images or source.count)
    some = _some(source, count)
    patches = data.patches and data.patches.model_copy(update={"min_contrast": 0.0})
    changes = {"pad": 0, "resolution": None, "max_images": None, "patches": patches}
    looking = data.model_copy(update=changes)
    reader = reader_for(looking, replace(source, count=len(some), items=some), pages=_PAGES)
    size = prepared = None
    try:
        for block in reader.blocks():
            size = _shape(block)
    except DataError:
        # Where broken images are skipped, the next ones may be usable.
        if data.on_error == "raise" or not some:
            raise
    if reader.pictures:
        # Those that were opened stand for the others.
        count = count * sum(reader.pictures) // len(reader.pictures)
        count = min(count, data.max_images or count)
    if size is not None:
        prepared = _prepared(data, Item(some[0].name, np.zeros(size, np.uint8)))
    return Found(
        count=count,
        opened=0 if source.count > 1 and data.name else len(some),
        size=size,
        prepared=prepared,
        is_complex=reader.is_complex or data.phase == "smooth",
        refused=tuple(reader.refused),
        notes=source.notes,
    )


def _some(source: Source, count: int) -> list[Item]:
    """The first images of ``count`` and, where there is a list of them, some of the others."""
    if not isinstance(source.items, Sequence):
        return list(islice(source.items, min(count, _FIRST + _SPREAD)))
    items = source.items[:count]
    return [*items[:_FIRST], *items[_FIRST :: max(1, (len(items) - _FIRST) // _SPREAD)]]


def _prepared(data: Data, image: Item) -> Shape:
    """Shape of what ``prepare`` makes of such an image."""
    whole = data.model_copy(update={"patches": None})
    block = next(reader_for(whole, Source(1, [image])).blocks())
    return _shape(to_complex(block, np.zeros(1, np.int64)) if data.phase == "smooth" else block)


def _shape(block: np.ndarray) -> Shape:
    channels, height, width = block.shape[1:]
    return channels, height, width


def check_before(stage: str, params: Params, paths: Paths) -> list[str]:
    """Refuse to begin a stage where that one or a later one could not do its work.

    Args:
        stage: Its name.
        params: All parameters.
        paths: The workspace.

    Returns:
        What to know of the stage's parameters. Nothing is checked, and nothing said, where the
        stage's inputs are missing or damaged, which the stage itself tells.

    Raises:
        DataError: The images, or an extractor of features, cannot be used.
        ParamsError: A parameter does not go with the images.
    """
    images = _to_come(params, paths) if stage == "prepare" else _written(stage, paths)
    if images is None:
        return []
    if stage in {"prepare", "corrupt"}:
        _read_spectrum(params, paths, images)
    _require_all(params, images, download=stage not in {"prepare", "corrupt"})
    if stage == "pretrain":
        _require_distinct(paths)
    return [text for reader, text in remarks(params, images) if reader == stage]


def _require_all(params: Params, images: Prepared, *, download: bool) -> None:
    """Raise unless every stage can do its work with such images."""
    require(params, images)
    _read_statistics(params)
    _try_extractors(params, images, download=download)
    _try_divergence(params)


def _to_come(params: Params, paths: Paths) -> Prepared | None:
    """What ``prepare`` will write; None where images are refused, which it says of all of them."""
    with suppress(DataError):
        found = look(params.data, paths.root)
        if found.prepared is not None:
            return Prepared(found.count, found.prepared, is_complex=found.is_complex)
    return None


def _written(stage: str, paths: Paths) -> Prepared | None:
    """What the stages before ``stage`` have left; None where that cannot be read."""
    train = None if stage == "corrupt" else _meta(paths.artifact("corrupt") / "train")
    level = None if train is None else TypeAdapter(float).validate_python(train.info["assumed"])
    prepared = _meta(paths.artifact("prepare"))
    if prepared is not None:
        is_complex = bool(prepared.info.get("complex"))
        return Prepared(prepared.count, prepared.layout.shape, level, is_complex)
    # A machine for training alone needs no clean images.
    heldout = _meta(paths.artifact("corrupt") / "heldout")
    if train is None or heldout is None:
        return None
    shape = train.info["shape"] if train.info["add"] else train.layout.shape
    counted = train.count + heldout.count
    is_complex = bool(train.info.get("complex"))
    return Prepared(counted, TypeAdapter(Shape).validate_python(shape), level, is_complex)


def _meta(folder: Path) -> StoreMeta | None:
    with suppress(DataError):
        return read_meta(folder)
    return None


def _try_extractors(params: Params, images: Prepared, *, download: bool) -> None:
    """Load the extractors that may fail, and let each see images of the shapes to come."""
    names = {*params.evaluate.features, params.distill.selection.features} - _SHIPPED
    if not download and _to_download(params):
        names -= {*INCEPTION_SPACES}
    if not names:
        return
    import torch

    from dsd.features.extractor import extract
    from pipeline.execution.device import resolve_device
    from pipeline.stages.features import load_features

    device = resolve_device(params.compute)
    for name in sorted(names):
        extractor = load_features(name, params, device)
        for shape in {images.shape, observed_shape(params, images.shape)}:
            random = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
            extract(extractor, torch.from_numpy(random), batch_size=2)


def _try_divergence(params: Params) -> None:
    """Import a divergence of the user's own, and let it compare two images."""
    name = params.distill.divergence
    if name in DIVERGENCES:
        return
    import torch

    from dsd.distillation.losses import DenoiserPair, divergence_of

    x_g, teacher, fake = torch.randn(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = divergence_of(name, alpha=params.distill.alpha)
    loss(x_g.requires_grad_(), DenoiserPair(teacher, fake))


def _read_spectrum(params: Params, paths: Paths, images: Prepared) -> None:
    """Refuse a file of the noise's spectrum with which ``corrupt`` would fail."""
    if params.corrupt.spectrum in ("white", "auto"):
        return
    from dsd.corruption.noise_kernel import read_kernel

    read_kernel(paths.root / params.corrupt.spectrum, images.shape[0])


def _read_statistics(params: Params) -> None:
    """Refuse published statistics with which ``evaluate`` would fail."""
    published = params.evaluate.published_statistics
    if published is None:
        return
    from dsd.features.inception import PROTOCOLS
    from pipeline.stages.measures import published_statistics

    file, found = published[1], published_statistics(params)
    assert found is not None
    if found.protocol not in map(PROTOCOLS.get, params.evaluate.features):
        msg = (
            f"{file}: statistics were made by {found.protocol!r}, but evaluate.features has "
            f"{', '.join(params.evaluate.features)}"
        )
        raise DataError(msg)


def _to_download(params: Params) -> bool:
    """Whether Inception's weights are needed and not here yet."""
    names = {*params.evaluate.features, params.distill.selection.features}
    if not names & {*INCEPTION_SPACES} or params.evaluate.inception_weights is not None:
        return False
    from dsd.features.inception import cached_weights

    return not cached_weights().is_file()


def _require_distinct(paths: Paths) -> None:
    """Refuse held-out images that cannot judge a generator."""
    folder = paths.artifact("corrupt")
    heldout = [*_saved(folder / "heldout")]
    alone = set(heldout)
    if len(alone) == 1:
        problem = "are the same"
    else:
        alone.difference_update(_saved(folder / "train"))
        problem = "have a copy among the training images"
    if len(alone) < 2:
        msg = (
            f"all {len(heldout)} held-out images {problem}, so no distance to them can choose a "
            "generator: remove copies from data.path, or raise corrupt.num_heldout"
        )
        raise DataError(msg)


def _saved(folder: Path) -> Iterator[bytes]:
    """Images of a store as they would be saved; its stage checks that it is not damaged."""
    import torch

    from dsd.utils.images import to_uint8

    store = MappedStore.open(folder, verify=False)
    for block in store.blocks:
        units = store.meta.layout.in_units(block.images)
        yield from (image.tobytes() for image in to_uint8(torch.from_numpy(units)).numpy())


def show_check(params: Params, paths: Paths) -> None:
    """Print what ``prepare`` will find, and what to know of the parameters.

    Raises:
        DataError: As for :func:`check_before`.
        ParamsError: Likewise; or this machine lacks what ``compute`` asks for.
    """
    found = look(params.data, paths.root)
    for line in _lines(found, params.data):
        print(line)
    if params.compute.device == "cuda" or params.compute.precision == "tf32":
        from pipeline.execution.device import resolve_device, resolve_precision

        resolve_precision(params.compute, resolve_device(params.compute))
    if found.prepared is not None:
        images = Prepared(found.count, found.prepared, is_complex=found.is_complex)
        _read_spectrum(params, paths, images)
        _require_all(params, images, download=False)
        for _, text in remarks(params, images):
            print(f"note: {text}")
    if _to_download(params):
        print("note: Inception's weights (91 MB) are not here; pretrain will download them first")
    print(f"OK: params.yaml is valid, images come from {params.data.name or params.data.path}")


def _lines(found: Found, data: Data) -> Iterator[str]:
    if found.size is None:
        opened = f"images; none of {found.opened} that were opened is usable"
    else:
        how = f"; {found.opened} of them were opened" if found.opened else ""
        how = how or ", as torchvision has them"
        opened = f"images of {_kind(found.size, is_complex=found.is_complex)}{how}"
    yield f"{data.name or data.path}: {found.count:,} {opened}"
    yield from (f"  {note}" for note in found.notes)
    yield from (f"  will skip {one.name}, which {one.reason}" for one in found.refused)
    if found.prepared is not None and found.prepared != found.size:
        made = _kind(found.prepared, is_complex=found.is_complex)
        yield f"  prepare makes {made} of them"


def _kind(shape: Shape, *, is_complex: bool) -> str:
    channels, height, width = shape
    colour = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    colour = "complex" if is_complex and channels == 2 else colour
    return f"{width} x {height} {colour}"
