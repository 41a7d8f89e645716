"""Command ``denoise``: pictures of any size and format without their noise.

The teacher at the data's own level is the minimum-mean-square-error denoiser, learned from noisy
images alone. Files come out in the format, the type and the axes in which they went in.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch

from dsd.model.checkpoint import load_denoiser
from dsd.model.denoiser import AnyDenoiser
from dsd.model.pictures import PictureDenoiser, intensity_of
from dsd.sources.finders.folders import suffix_of
from dsd.utils.errors import DataError, ParamsError, one_line
from dsd.utils.intensity import in_type
from pipeline.outputs.models import device_of, model_folder, require_free
from pipeline.outputs.opening import Layout, files_in, layout_of, pages_of, put
from pipeline.outputs.scratch import scratch_array
from pipeline.outputs.writing import fits_into, require_writable, write_images
from pipeline.runtime.progress import make_progress, say
from pipeline.stage_io.paths import Paths

__all__ = ["run"]

_FAR = 4.0
"""Data units beyond which a number cannot be one of the model's images."""

_MORE = 1.3
"""Factor by which what is removed may exceed the level."""


def run(arguments: Namespace, paths: Paths) -> None:
    """Denoise ``arguments.input`` into ``arguments.out``.

    Raises:
        DataError: A file is damaged or of other images than the model's.
        ParamsError: The level is none.
    """
    folder = model_folder(arguments.model, paths.artifact("pretrain"), paths)
    model = load_denoiser(folder, device_of(arguments.device))
    pictures = PictureDenoiser(model, _level(arguments.sigma, model))
    files = files_in(arguments.input)
    out: Path = arguments.out
    several = arguments.input.is_dir() and arguments.input.suffix != ".zarr"
    if several:
        out.mkdir(parents=True, exist_ok=True)
    pairs = [(path, out / name if several else out) for name, path in files.items()]
    job = _Job(model, pictures, arguments)
    # All files are looked at before the first is denoised.
    jobs = [(path, target, job.checked(path, target)) for path, target in pairs]
    for path, target, layout in jobs:
        say(job.file(path, target, layout))
    say(f"OK: {len(files)} files, in {out}; tiles overlap by {pictures.overlap} pixels")


def _level(sigma: float | None, model: AnyDenoiser) -> float | None:
    """The level in data units."""
    if sigma is None:
        return None
    if not 0 < sigma < float("inf"):
        msg = f"--sigma {sigma:g}: it is no level of noise. Give one above 0, in raw units"
        raise ParamsError(msg)
    intensity = intensity_of(model)
    if intensity.camera is not None:
        msg = "--sigma: this model has the noise of a camera, which needs no level. Leave it out"
        raise ParamsError(msg)
    return sigma * intensity.scale


class _Results(NamedTuple):
    """Where the pages of one file go."""

    denoised: np.ndarray
    mean: np.ndarray | None
    deviation: np.ndarray | None


@final
@dataclass(frozen=True)
class _Job:
    model: AnyDenoiser
    pictures: PictureDenoiser
    arguments: Namespace

    def checked(self, path: Path, target: Path) -> Layout:
        """Look at a file, and at where its results will be.

        Raises:
            DataError: It is not of the model's kind, or a result would replace something.
        """
        layout = layout_of(path, self.arguments.key, self.arguments.axes)
        channels = 1 if self.model.shape is None else self.model.shape[0]
        if layout.channels != channels:
            msg = (
                f"{one_line(path)}: its images have {layout.channels} channels (axes "
                f"{layout.axes}), those of the model {channels}. Name the axes with --axes"
            )
            raise DataError(msg)
        suffix = require_writable(target)
        if not fits_into(suffix, layout.dtype.name, layout.axes, layout.channels):
            msg = f"{one_line(target)}: files {suffix} do not hold {layout.dtype} numbers"
            raise DataError(f"{msg} of the axes {layout.axes}. Choose .tif or .npy")
        for place in self._places(target, layout):
            if place.resolve() == path.resolve():
                msg = f"{one_line(place)}: that is the input. Name another place"
                raise DataError(msg)
            require_free(place, overwrite=self.arguments.overwrite)
        return layout

    def _places(self, target: Path, layout: Layout) -> list[Path]:
        """The denoised file; with draws their mean and standard deviation."""
        if self.arguments.samples is None:
            return [target]
        suffix = target.name[-len(suffix_of(target.name)) :]
        stem, real = target.name[: -len(suffix)], _real(layout)
        other = suffix if fits_into(suffix.lower(), real, layout.axes, layout.channels) else ".tif"
        return [target, *(target.with_name(f"{stem}-{end}{other}") for end in ("mean", "std"))]

    def file(self, path: Path, target: Path, layout: Layout) -> str:
        """Denoise one file; return what to say of it."""
        started, (key, axes) = time.monotonic(), (self.arguments.key, self.arguments.axes)
        places = self._places(target, layout)
        removed: list[float] = []
        with ExitStack() as stack:
            kinds = [layout.dtype, *[np.dtype(_real(layout))] * (len(places) - 1)]
            arrays = [
                stack.enter_context(scratch_array(target, layout.shape, kind)) for kind in kinds
            ]
            progress = stack.enter_context(make_progress("denoise", 100 * layout.pages))
            for number, page in enumerate(pages_of(path, key, axes)):

                def done(share: float, before: int = number) -> None:
                    progress.update(round(100 * (before + share)))

                for array, result in zip(
                    arrays, self._page(path, page, number, removed, done), strict=True
                ):
                    plain = in_type(result, page.dtype.name) if array is arrays[0] else result
                    put(plain, array, layout.axes, number)
            for place, array in zip(places, arrays, strict=True):
                write_images(place, array, layout.axes, like=path, key=key)
        height, width = layout.size
        line = f"{path.name}: {layout.pages} pictures of {width} x {height}"
        return f"{line}, {time.monotonic() - started:.1f} s{self._remark(removed, layout)}"

    def _page(
        self,
        path: Path,
        page: np.ndarray,
        number: int,
        removed: list[float],
        done: Callable[[float], None],
    ) -> Iterator[np.ndarray]:
        """The denoised page in raw units; then, if asked for, mean and deviation of draws."""
        intensity = intensity_of(self.model)
        y = torch.from_numpy(intensity.in_units(page))
        if y.abs().median() > _FAR:
            msg = (
                f"{one_line(path)}: most of its numbers ({page.min():g} to {page.max():g}) are "
                f"far from those of the model ({intensity.low:g} to {intensity.high:g}). Bring it "
                "to the units of the data that the model learned from"
            )
            raise DataError(msg)
        draws = self.arguments.samples or 0
        share = 1 / (1 + 18 * draws)
        clean = self.pictures.mean(y, lambda part: done(share * part))
        removed.append(float((y - clean).square().mean()))
        yield intensity.raw_values(clean.numpy())
        if not draws:
            return
        total = np.zeros(page.shape)
        squares = np.zeros(page.shape)
        for draw in range(draws):

            def drawn(part: float, draw: int = draw) -> None:
                done(share + (1 - share) * (draw + part) / draws)

            x = self.pictures.draw(
                y, seed=self.arguments.seed, number=number * draws + draw, done=drawn
            )
            raw = intensity.raw_values(x.numpy())
            # Welford's update, which loses no digits.
            change = raw - total
            total += change / (draw + 1)
            squares += change * (raw - total)
        yield total
        yield np.sqrt(squares / (draws - 1))

    def _remark(self, removed: list[float], layout: Layout) -> str:
        found = float(np.sqrt(np.mean(removed)))
        level, unit = self.pictures.sigma, "data units"
        intensity = intensity_of(self.model)
        if intensity.camera is None:
            found, level, unit = found / intensity.scale, level / intensity.scale, "raw units"
        text = f"; level {level:.4g} {unit}"
        if found > _MORE * level:
            text += (
                f", but what was removed has a deviation of {found:.4g}: its noise is stronger "
                "than the model's"
            )
        if layout.harm == "lossy":
            text += "; lossy compression has changed its noise"
        return text


def _real(layout: Layout) -> str:
    """Type of numbers that need not be rounded: means and deviations."""
    return "complex64" if layout.dtype.kind == "c" else "float32"
