"""Observations y = A x0 + sigma * eps: one fixed draw for each image, from (seed, index) alone.

What happens to an image does not depend on how many images there are, in which file they lie or
how many processes work. Nothing is clipped. Worker processes import this module, hence no torch
unless an operator needs it.
"""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple, TypeAlias, final

import numpy as np
from jaxtyping import Bool, Float32, Int64
from pydantic import JsonValue

from dsd.operators.config import IdentityOperator, OperatorChoice
from dsd.storage.shards import (
    KEPT,
    LEVELS,
    Block,
    MappedStore,
    Shard,
    StoreMeta,
    StoreWriter,
    clear_store,
    read_meta,
)
from dsd.utils.errors import DataError, ParamsError
from dsd.utils.philox import noise_of

__all__ = ["Noise", "PlainKernel", "Residual", "corrupt", "split_heldout", "write_noisy_store"]


Shape: TypeAlias = tuple[int, int, int]
"""Channels, height and width."""

PlainKernel: TypeAlias = list[list[list[float]]]
"""A kernel as a store keeps it: for each channel rows of numbers."""

_FARTHEST = 10.0
"""Largest number of a clean image that may be meant in data units, which span [-1, 1]."""


def corrupt(
    x0: Float32[np.ndarray, " n *d"],
    indices: Int64[np.ndarray, " n"],
    *,
    sigma: float | Float32[np.ndarray, " n"],
    seed: int,
    kernel: PlainKernel | None = None,
) -> Float32[np.ndarray, " n *d"]:
    """Noisy observations of clean images, in data units.

    Args:
        x0: Clean images.
        indices: Their numbers in the whole set.
        sigma: Noise level of each, or one for all, in data units.
        seed: Root of the noise.
        kernel: For each channel rows of what white noise is convolved with; None for white noise.

    Raises:
        DataError: The images are not in data units.
    """
    _require_data_units(x0)
    sigma = np.broadcast_to(np.asarray(sigma, np.float32), len(x0))
    y = _scaled_noise(sigma, indices, x0.shape[1:], seed, kernel)
    y += x0
    return y


def _require_data_units(x0: np.ndarray) -> None:
    remedy = "Bring them to data units, [-1, 1]: 8-bit images by x0 / np.float32(127.5) - 1"
    if not isinstance(x0, np.ndarray) or x0.dtype.kind != "f":
        kind = getattr(x0, "dtype", type(x0).__name__)
        msg = f"corrupt: images are {kind}, not a NumPy array of floating-point numbers. {remedy}"
        raise DataError(msg)
    farthest = float(np.abs(x0).max(initial=0))
    if not farthest <= _FARTHEST:
        msg = f"corrupt: images hold numbers as large as {farthest:g}. {remedy}"
        raise DataError(msg)


def _scaled_noise(
    sigma: Float32[np.ndarray, " n"],
    indices: Int64[np.ndarray, " n"],
    shape: tuple[int, ...],
    seed: int,
    kernel: PlainKernel | None,
) -> Float32[np.ndarray, " n *d"]:
    if kernel is None:
        noise = noise_of(seed, indices, shape)
    else:
        noise = _correlated(kernel, indices, shape, seed)
    noise *= sigma.reshape(-1, *(1,) * len(shape))
    return noise


def _correlated(
    kernel: PlainKernel,
    indices: Int64[np.ndarray, " n"],
    shape: tuple[int, ...],
    seed: int,
) -> Float32[np.ndarray, " n *d"]:
    """Correlated noise of variance 1 of the images with these numbers."""
    # Here, because importing torch takes longer than the noise of many a set of images.
    import torch

    from dsd.operators.gaussian_noise import GaussianNoise

    distribution = GaussianNoise(torch.tensor(kernel))
    white = torch.from_numpy(noise_of(seed, indices, distribution.field(shape)))
    # One by one and in double precision, so that no rounding depends on what comes together.
    return np.stack([distribution.convolved(one.double()).float().numpy() for one in white])


def split_heldout(
    seed: int, count: int, num_heldout: int, pictures: Sequence[int] | None = None
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " heldout"]]:
    """Numbers of the images to train on and of those held out, a pure function of the arguments.

    Args:
        seed: Root of the choice.
        count: How many images there are.
        num_heldout: Images to hold out.
        pictures: How many of the images were cut from each picture, in order. Whole pictures are
            then held out, until there are at least ``num_heldout`` images.

    Returns:
        Both in ascending order.

    Raises:
        ParamsError: No image would be left to train on.
    """
    if num_heldout >= count:
        msg = (
            f"corrupt.num_heldout is {num_heldout}, but there are only {count} images: "
            f"lower it (a tenth would be {max(count // 10, 1)}), or use more images"
        )
        raise ParamsError(msg)
    # The word after the seed keeps the order independent of any image's noise.
    bits = np.random.Philox(np.random.SeedSequence([seed, 0x5411]))
    random = np.random.Generator(bits)
    if pictures is not None:
        return _split_pictures(random, num_heldout, np.asarray(pictures, np.int64))
    order = random.permutation(count).astype(np.int64)
    return np.sort(order[num_heldout:]), np.sort(order[:num_heldout])


def _split_pictures(
    random: np.random.Generator, num_heldout: int, pictures: Int64[np.ndarray, " p"]
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " heldout"]]:
    """Split images so that all that were cut from a picture are on one side."""
    order = random.permutation(len(pictures))
    held = order[: 1 + int(np.searchsorted(pictures[order].cumsum(), num_heldout))]
    from_held = np.repeat(np.isin(np.arange(len(pictures)), held), pictures)
    if from_held.all():
        msg = (
            f"corrupt.num_heldout is {num_heldout}, for which all {len(pictures)} pictures would "
            "be held out, because patches of a picture stay together: lower it, or use more "
            "pictures"
        )
        raise ParamsError(msg)
    return np.flatnonzero(~from_held), np.flatnonzero(from_held)


@final
@dataclass(frozen=True)
class Noise:
    """What is added to the images."""

    sigma: float | None
    """True noise level of the observations, in data units; None if it is not known."""

    assumed: float
    """The level that is stored with each observation, for all that comes after."""

    seed: int
    add: bool
    """False where the images are observations of that level already."""

    clean_fraction: float = 0.0
    """Share of the images that get no noise, and of which level 0 is assumed."""

    kernel: PlainKernel | None = None
    """For each channel rows of what white noise is convolved with; None for white noise."""

    def noisy(self, indices: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which of the images with these numbers get noise: a function of seed and number."""
        if self.clean_fraction == 0:
            return np.ones(len(indices), bool)
        return np.array([self._chance(int(index)) >= self.clean_fraction for index in indices])

    def levels(self, indices: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """Level of the noise to be added to each image."""
        assert self.sigma is not None
        return self.noisy(indices) * np.float32(self.sigma)

    def assumed_levels(self, indices: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """Level to be stored with each image."""
        return self.noisy(indices) * np.float32(self.assumed)

    def _chance(self, index: int) -> float:
        # The last word of the counter leads far from the numbers that become this image's noise.
        key = np.array([self.seed, index], np.uint64)
        bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, 1], np.uint64))
        return float(np.random.Generator(bits).random())


@final
@dataclass(frozen=True)
class Residual:
    """Sums over y - A x0, to be added up file by file."""

    count: int = 0
    """How many numbers were observed through noise."""

    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Residual") -> "Residual":
        return Residual(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    @property
    def std(self) -> float:
        """Standard deviation, in data units: the measured noise level."""
        return math.sqrt(max(self.squares / self.count - (self.total / self.count) ** 2, 0.0))

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB with a peak-to-peak of 2; infinite without noise."""
        mean_square = self.squares / self.count
        return 10 * math.log10(4 / mean_square) if mean_square else math.inf


class _Observed(NamedTuple):
    """Some observations."""

    y: Float32[np.ndarray, " n c h w"]
    noiseless: Float32[np.ndarray, " n c h w"]
    """What ``y`` would be without noise."""

    seen: int
    """How many numbers were observed, those of images without noise aside."""


@final
@dataclass(frozen=True)
class _Job:
    """One file to write."""

    source: Path
    writer: StoreWriter
    number: int
    indices: Int64[np.ndarray, " n"]
    noise: Noise
    operator: OperatorChoice


def _run(job: _Job) -> tuple[Shard, Residual]:
    """Write one file of noisy images; runs in a worker process."""
    # The parent has checked the hashes.
    clean = MappedStore.open(job.source, verify=False)
    maps = MappedStore.open(job.source / LEVELS) if LEVELS in clean.meta.info else None
    residuals: list[Residual] = []

    def blocks() -> Iterator[Block]:
        rows = job.writer.batch_rows
        for start in range(0, len(job.indices), rows):
            indices = job.indices[start : start + rows]
            x0 = clean.take_units(indices)
            observed = _observe(x0, indices, job)
            difference = observed.y.astype(np.float64) - observed.noiseless
            squares = float(np.square(difference).sum())
            residuals.append(Residual(observed.seen, float(difference.sum()), squares))
            levels = job.noise.assumed_levels(indices)
            if maps is not None:
                levels = maps.take_units(indices).max((1, 2, 3))
            yield Block(observed.y, levels, indices)

    shard = job.writer.write(job.number, blocks())
    return shard, sum(residuals, Residual())


def _observe(
    x0: Float32[np.ndarray, " n c h w"], indices: Int64[np.ndarray, " n"], job: _Job
) -> _Observed:
    if not job.noise.add:
        return _Observed(x0, x0, x0.size)
    if not isinstance(job.operator, IdentityOperator):
        return _observe_through(job.operator, x0, indices, job.noise)
    noise = job.noise
    y = corrupt(x0, indices, sigma=noise.levels(indices), seed=noise.seed, kernel=noise.kernel)
    return _Observed(y, x0, y[job.noise.noisy(indices)].size)


def _observe_through(
    choice: OperatorChoice,
    x0: Float32[np.ndarray, " n c h w"],
    indices: Int64[np.ndarray, " n"],
    noise: Noise,
) -> _Observed:
    # Here, because importing torch takes longer than the noise of many a set of images.
    import torch

    from dsd.operators.operator import Operator, observed_counts

    operator = Operator(choice, (x0.shape[1], x0.shape[2], x0.shape[3]))
    shape = operator.observed_shape
    drawn = _scaled_noise(noise.levels(indices), indices, shape, noise.seed, noise.kernel)
    images, eps = torch.from_numpy(x0), torch.from_numpy(drawn)
    views = None if operator.views is None else operator.views.of_images(noise.seed, indices)
    noiseless = torch.empty_like(eps)
    # One by one, so that no sum is ordered by how many images come together.
    for number in range(len(x0)):
        only = slice(number, number + 1)
        view = None if views is None else views[only]
        noiseless[only] = operator.forward(images[only], view)
        eps[only] = operator.project(eps[only], view)
    noisy = torch.from_numpy(noise.noisy(indices))
    seen = eps[noisy].numel() if views is None else int(observed_counts(views, shape)[noisy].sum())
    return _Observed((noiseless + eps).numpy(), noiseless.numpy(), seen)


def _follow_the_parent() -> None:
    """Make a worker ignore Ctrl-C, which its parent handles, and end if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    # An orphaned worker of a pool would wait for jobs for ever.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _results(jobs: list[_Job], workers: int) -> Iterator[tuple[Shard, Residual]]:
    """What all jobs return, in order; in processes where that helps."""
    workers = min(workers, len(jobs))
    if workers == 1:
        yield from map(_run, jobs)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_follow_the_parent)
    try:
        yield from pool.map(_run, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _shapes(found: Shape, choice: OperatorChoice, noise: Noise) -> tuple[Shape, Shape]:
    """Shapes of clean images and observations, where one of them was found in the source."""
    if isinstance(choice, IdentityOperator):
        return found, found
    from dsd.operators.operator import Operator, image_shape

    image = found if noise.add else image_shape(choice, found)
    return image, Operator(choice, image).observed_shape


def write_noisy_store(
    source: Path,
    folder: Path,
    indices: Int64[np.ndarray, " n"],
    *,
    noise: Noise,
    operator: OperatorChoice,
    workers: int = 1,
    done: Callable[[int], None] = lambda images: None,
) -> tuple[StoreMeta, Residual]:
    """Write noisy observations of some images of a store as a store of their own.

    Args:
        source: The store of clean images, already checked (``ImageStore.open``).
        folder: Where; a store that is there already is replaced.
        indices: Numbers of the images in ``source``; they also choose the noise.
        noise: What to add.
        operator: What is lost of each image before; where ``noise.add`` is False, was lost.
        workers: Processes; the bytes do not depend on it.
        done: Called after each file with the number of images written so far.

    Returns:
        What was written, and y - A x0 summed up.

    Raises:
        ParamsError: The operator does not fit the images.
        OSError: The disk refuses; the store then has no ``meta.json`` and no torn file.
    """
    clean = read_meta(source)
    shape, observed = _shapes(clean.layout.shape, operator, noise)
    plain = {"dtype": "float32", "scale": 1.0, "offset": 0.0, "noisy": True}
    layout = clean.layout.model_copy(update={**plain, "shape": observed})
    writer = StoreWriter(folder, layout, clean.shard_size)
    starts = range(0, len(indices), clean.shard_size)
    jobs = [
        _Job(source, writer, number, indices[start : start + clean.shard_size], noise, operator)
        for number, start in enumerate(starts)
    ]
    clear_store(folder)
    shards: list[Shard] = []
    residual = Residual()
    for shard, part in _results(jobs, workers):
        shards.append(shard)
        residual += part
        done(sum(written.count for written in shards))
    about = asdict(noise)
    if noise.kernel is None:
        del about["kernel"]
    info: dict[str, JsonValue] = {
        **about,
        "operator": operator.model_dump(),
        "shape": list(shape),
        "source": clean.fingerprint,
    }
    # For all that comes after: the way back to raw numbers.
    info |= {key: clean.info[key] for key in KEPT if key in clean.info}
    if LEVELS in clean.info:
        info[LEVELS] = _copy_maps(source / LEVELS, folder / LEVELS, indices).fingerprint
    return writer.finish(shards, info), residual


def _copy_maps(source: Path, folder: Path, indices: Int64[np.ndarray, " n"]) -> StoreMeta:
    """Write the noise levels of the pixels of some images of a store as a store."""
    maps = MappedStore.open(source)
    writer = StoreWriter(folder, maps.meta.layout, maps.meta.shard_size)
    clear_store(folder)
    shards, size, rows = [], writer.shard_size, writer.batch_rows
    for number, start in enumerate(range(0, len(indices), size)):
        chosen = indices[start : start + size]
        parts = (chosen[first : first + rows] for first in range(0, len(chosen), rows))
        shards.append(writer.write(number, (Block(maps.take(part)) for part in parts)))
    return writer.finish(shards, {})
