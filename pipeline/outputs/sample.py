"""Command ``sample``: images of the generator in the units and the type of the source."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dsd.model.checkpoint import load_generator
from dsd.model.generator import OneStepGenerator
from dsd.sources.finders.folders import suffix_of
from dsd.utils.errors import DataError
from pipeline.outputs.models import device_of, model_folder, require_free
from pipeline.outputs.scratch import scratch_array
from pipeline.outputs.writing import fits_into, require_writable, write_images
from pipeline.runtime.progress import make_progress, say
from pipeline.stage_io.paths import Paths

__all__ = ["run"]

_SUFFIXES = {"png": ".png", "tiff": ".tif", "npy": ".npy"}
_BATCH = 256


def run(arguments: Namespace, paths: Paths) -> None:
    """Draw the images and write them to ``arguments.out``, a folder or one file.

    Raises:
        DataError: There is no such model, or the images do not fit the format.
    """
    default = paths.artifact("distill") / "generator"
    folder = model_folder(arguments.model, default, paths)
    generator = load_generator(folder, device_of(arguments.device))
    out: Path = arguments.out
    require_free(out, overwrite=arguments.overwrite)
    count, seed = arguments.count, arguments.seed
    first, axes = _file_image(generator, next(_images(generator, 1, seed)))
    channels = generator.shape[0]
    if suffix_of(out.name) != "without suffix" and not out.is_dir():
        require_writable(out)
        with scratch_array(out, (count, *first.shape), first.dtype) as stack:
            for number, image in enumerate(_shown(generator, count, seed)):
                stack[number] = image
            write_images(out, stack, f"T{axes}")
    else:
        suffix = _suffix(generator, arguments.format, str(first.dtype), axes, channels)
        out.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(_shown(generator, count, seed)):
            write_images(out / f"{number:06d}{suffix}", image, axes)
    size = f"{generator.shape[2]} x {generator.shape[1]}"
    say(f"OK: {count:,} images of {size}, {first.dtype}, in {out}")


def _suffix(generator: OneStepGenerator, name: str, dtype: str, axes: str, channels: int) -> str:
    """Suffix of the files; that of the source unless another one is asked for.

    Raises:
        DataError: Such files do not hold these numbers.
    """
    units = generator.units
    suffix = _SUFFIXES.get(name) or (".png" if units is None else units.suffix)
    if fits_into(suffix, dtype, axes, channels):
        return suffix
    if name == "same":
        return ".tif" if fits_into(".tif", dtype, axes, channels) else ".npy"
    msg = (
        f"--format {name}: {dtype} numbers of {channels} channels do not fit into such files. "
        "Choose tiff or npy"
    )
    raise DataError(msg)


def _shown(generator: OneStepGenerator, count: int, seed: int) -> Iterator[np.ndarray]:
    with make_progress("sample", count) as progress:
        for number, image in enumerate(_images(generator, count, seed)):
            yield _file_image(generator, image)[0]
            if number % _BATCH == 0 or number + 1 == count:
                progress.update(number + 1)


def _images(generator: OneStepGenerator, count: int, seed: int) -> Iterator[np.ndarray]:
    for first in range(0, count, _BATCH):
        size = min(_BATCH, count - first)
        yield from generator.sample(size, seed, first=first).numpy()


def _file_image(generator: OneStepGenerator, image: np.ndarray) -> tuple[np.ndarray, str]:
    """An image as it is in files, and its axes: complex ones as such, one channel without C."""
    units = generator.units
    if units is not None and units.is_complex:
        image = image[0::2] + 1j * image[1::2].astype(np.float32)
    return (image[0], "YX") if len(image) == 1 else (image, "CYX")
