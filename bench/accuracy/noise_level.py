"""Measure the noise estimate: ``python -m bench.accuracy.noise_level [COLOUR.parquet]``.

Writes into ``docs/results/noise_level``: coverage.csv (does the interval hold the truth?),
alarms.csv (do the checks fire when they should?) and coverage.png. The embedded images are always
used; a Parquet file of colour images adds two more sets. Some minutes on one core.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.random import Generator, default_rng
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from bench.common import EMBEDDED, RESULTS, images_of, write_rows
from dsd.corruption.noise_level import NoiseEstimate, estimate_noise
from dsd.utils.errors import DataError

FOLDER = RESULTS / "noise_level"
LEVELS = (0.0, 0.05, 0.1, 0.2, 0.4)
SEEDS = range(10)
COUNTS = {
    "fashion": 2000,
    "fashion, 300": 300,
    "fashion 8 x 8": 4000,
    "rough fields": 600,
    "colour": 680,
    "colour as grey": 1000,
    "waves": 300,
}
"""Images in each estimate, another choice for each seed."""

ALARM_SETS = ("fashion", "waves", "colour", "colour as grey")
ALARM_LEVELS = (0.05, 0.2)
ALARM_SEEDS, QUIET_SEEDS = range(3), range(10)

Images: TypeAlias = np.ndarray[Any, Any]
Noise: TypeAlias = Callable[[Generator, Images, float], Images]


def _white(rng: Generator, x: Images, s: float) -> Images:
    return x + s * rng.standard_normal(x.shape)


def _normal(rng: Generator, shape: tuple[int, ...], s: float) -> Images:
    drawn: Images = s * rng.standard_normal(shape)
    return drawn


def _smooth(rng: Generator, x: Images, std: float, mode: str = "wrap") -> Images:
    """Noise of standard deviation 1 whose neighbours within ``std`` pixels are alike."""
    noise = gaussian_filter(rng.standard_normal(x.shape), (0, 0, std, std), mode=mode)
    smooth: Images = noise / noise.std()
    return smooth


def _salt_and_pepper(rng: Generator, x: Images, s: float) -> Images:
    ends = rng.choice([-1.0, 1.0], x.shape)
    return np.where(rng.random(x.shape) < 0.02, ends, _white(rng, x, s))


def _photons(rng: Generator, x: Images, s: float) -> Images:
    """Counts, of which the mean brightness (on a dark current of 0.1) has noise ``s``."""
    scale = (x + 1.1).mean() / s**2
    return rng.poisson(scale * (x + 1.1)) / scale - 1.1 + _normal(rng, x.shape, 1e-6)


def _two_levels(rng: Generator, x: Images, s: float) -> Images:
    level = np.where(rng.random(len(x)) < 1 / 3, 2 * s, s)
    return x + level[:, None, None, None] * rng.standard_normal(x.shape)


def _bordered(rng: Generator, x: Images, s: float) -> Images:
    y = _white(rng, x, s)
    y[..., :4] = -1
    return y


def _scaled(most: float) -> Noise:
    return lambda rng, x, s: rng.uniform(1, most, (len(x), 1, 1, 1)) * _white(rng, x, s)


def _enlarged(rng: Generator, x: Images, s: float) -> Images:
    half = _white(rng, x, s)[..., : x.shape[-2] // 2, : x.shape[-1] // 2]
    return zoom(half, (1, 1, 2, 2), order=1)


def _jpeg(rng: Generator, x: Images, s: float) -> Images:
    pixels = np.round((_white(rng, 0.6 * x, s) + 1) * 127.5).clip(0, 255).astype(np.uint8)
    return np.stack([_through_jpeg(image) for image in pixels]) / 127.5 - 1


def _through_jpeg(pixels: Images) -> Images:
    stream = BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(
        stream, "JPEG", quality=75
    )
    read = np.asarray(Image.open(stream))
    return read[None] if read.ndim == 2 else read.transpose(2, 0, 1)


QUIET: Mapping[str, Noise] = {
    "white Gaussian": _white,
    "scaled by 1 to 1.1": _scaled(1.1),
    "fixed pattern, a tenth as strong": lambda rng, x, s: (
        _white(rng, x, s) + _normal(rng, x.shape[1:], 0.1 * s)
    ),
}
"""Noise that is near enough to white and of one level."""

NOISES: Mapping[str, Noise] = {
    "blurred by 0.5 pixels": lambda rng, x, s: x + s * _smooth(rng, x, 0.5, "reflect"),
    "white and coarse (3 pixels), 1 : 1.7": lambda rng, x, s: (
        _white(rng, x, s) + 1.7 * s * _smooth(rng, x, 3)
    ),
    "white and smooth (1 pixel), 1 : 1": lambda rng, x, s: (
        _white(rng, x, s) + s * _smooth(rng, x, 1)
    ),
    "row stripes as strong": lambda rng, x, s: (
        _normal(rng, (*x.shape[:-1], 1), s) + _white(rng, x, s)
    ),
    "row stripes half as strong": lambda rng, x, s: (
        _normal(rng, (*x.shape[:-1], 1), 0.5 * s) + _white(rng, x, s)
    ),
    "fixed pattern half as strong": lambda rng, x, s: (
        _white(rng, x, s) + _normal(rng, x.shape[1:], 0.5 * s)
    ),
    "fixed columns half as strong": lambda rng, x, s: (
        _white(rng, x, s) + _normal(rng, (1, 1, 1, x.shape[-1]), 0.5 * s)
    ),
    "each image scaled by 1 to 1.45": _scaled(1.45),
    "each image scaled by 1 to 1.8": _scaled(1.8),
    "enlarged twice": _enlarged,
    "JPEG of quality 75": _jpeg,
    "equal in all channels": lambda rng, x, s: x + _normal(rng, x[:, :1].shape, s),
    "Laplace": lambda rng, x, s: x + rng.laplace(scale=s / np.sqrt(2), size=x.shape),
    "uniform": lambda rng, x, s: x + rng.uniform(-s, s, x.shape) * np.sqrt(3),
    "2 % salt and pepper": _salt_and_pepper,
    "photon": _photons,
    "twice as strong in a third of the images": _two_levels,
    "clamped to [-1, 1]": lambda rng, x, s: _white(rng, x, s).clip(-1, 1),
    "rounded to 1.5 sigma": lambda rng, x, s: np.round(_white(rng, x, s) / (1.5 * s)) * 1.5 * s,
    "black border after the noise": _bordered,
}


def _load(path: Path, *, pad: int, resolution: int | None, count: int) -> Images:
    """Images in data units."""
    pixels = images_of(path, count=count, pad=pad, resolution=resolution)
    return pixels.numpy().astype(np.float32) / 127.5 - 1


def _rough_fields() -> Images:
    """Gaussian fields with amplitudes 1 / frequency: texture everywhere, no flat place."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32)))
    frequency[0, 0] = 1 / 32
    drawn = np.fft.fft2(default_rng(0).standard_normal((2000, 1, 32, 32))) / frequency
    fields = np.fft.ifft2(drawn).real
    return 0.3 * fields / fields.std()


def _waves() -> Images:
    """Smooth waves of 64 x 64 pixels."""
    rng = default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    # Both frequencies, in radians for each pixel, and the phase.
    bounds = ((0.05, 0.2), (0.05, 0.2), (0.0, 6.0))
    a, b, phase = (rng.uniform(low, high, (300, 1, 1)) for low, high in bounds)
    waves: Images = 0.4 * np.sin(a * columns + phase) * np.cos(b * rows)
    return waves[:, None]


def _data_sets(colour: Path | None) -> dict[str, Images]:
    fashion = _load(EMBEDDED, pad=2, resolution=16, count=20_000)
    sets = {
        "waves": _waves(),
        "fashion": fashion,
        "fashion, 300": fashion,
        "fashion 8 x 8": _load(EMBEDDED, pad=2, resolution=8, count=20_000),
        "rough fields": _rough_fields(),
    }
    if colour is not None:
        sets["colour"] = _load(colour, pad=0, resolution=None, count=10_000)
        sets["colour as grey"] = sets["colour"].mean(1, keepdims=True)
    return sets


def _observe(
    name: str, images: Images, noise: Noise, sigma: float, seed: int
) -> NoiseEstimate | None:
    """The estimate for some images of a set with noise; None where it is refused."""
    rng = default_rng(seed)
    some = images[rng.choice(len(images), COUNTS[name], replace=False)]
    try:
        return estimate_noise(torch.from_numpy(noise(rng, some, sigma).astype(np.float32)))
    except DataError:
        return None


def _coverage(sets: Mapping[str, Images]) -> Iterator[dict[str, object]]:
    for name, images in sets.items():
        for sigma in LEVELS:
            started = time.process_time()
            all_found = [_observe(name, images, _white, sigma, seed) for seed in SEEDS]
            seconds = (time.process_time() - started) / len(SEEDS)
            found = [one for one in all_found if one is not None]
            row = {"data": name, "images": COUNTS[name], "sigma": sigma, "estimates": len(found)}
            yield row | _summary(found, sigma) | {"cpu_seconds": round(seconds, 2)}


def _summary(found: list[NoiseEstimate], sigma: float) -> dict[str, object]:
    if not found:
        return dict.fromkeys(("estimate", "low", "high", "inside", "width", "alarms"), "")
    estimate, low, high = (
        round(float(np.mean([getattr(one, key) for one in found])), 5)
        for key in ("sigma", "low", "high")
    )
    return {
        "estimate": estimate,
        "low": low,
        "high": high,
        "inside": sum(one.low <= sigma <= one.high for one in found),
        "width": round((high - low) / sigma, 4) if sigma else "",
        "alarms": sum(bool(one.suspicious) for one in found),
    }


def _alarms(sets: Mapping[str, Images]) -> Iterator[dict[str, object]]:
    """For each noise, how many estimates each check calls suspicious."""
    for name in ALARM_SETS:
        for kind, noise in {**QUIET, **NOISES}.items():
            if name not in sets or (kind == "equal in all channels" and sets[name].shape[1] == 1):
                continue
            for sigma in ALARM_LEVELS:
                seeds = QUIET_SEEDS if kind in QUIET else ALARM_SEEDS
                fired = [_fired(_observe(name, sets[name], noise, sigma, s)) for s in seeds]
                counts = Counter(check for checks in fired for check in checks)
                yield {
                    "data": name,
                    "noise": kind,
                    "sigma": sigma,
                    "alarms": sum(map(bool, fired)),
                    "of": len(fired),
                    "checks": " + ".join(f"{check} {n}" for check, n in sorted(counts.items())),
                }


def _fired(found: NoiseEstimate | None) -> set[str]:
    """Checks that call the noise suspicious; ``refused`` where there is no estimate."""
    return {"refused"} if found is None else {check.name for check in found.suspicious}


def _draw(rows: list[dict[str, Any]]) -> None:
    """Estimate and interval, relative to the truth, by level and data set."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    # Estimates for sets without flat places are far outside this picture.
    names = [name for name in COUNTS if name not in ("fashion 8 x 8", "rough fields")]
    for number, name in enumerate(names):
        shown = [row for row in rows if row["data"] == name and row["estimates"] and row["sigma"]]
        x = [LEVELS.index(row["sigma"]) + 0.15 * (number - (len(names) - 1) / 2) for row in shown]
        y, low, high = (
            np.array([row[key] / row["sigma"] for row in shown])
            for key in ("estimate", "low", "high")
        )
        axes.errorbar(x, y, [y - low, high - y], fmt="o", ms=4, capsize=3, label=name)
    axes.axhline(1, color="black", lw=0.8)
    axes.set_xticks(range(1, len(LEVELS)), [f"{level:g}" for level in LEVELS[1:]])
    axes.set_xlabel("true noise level")
    axes.set_ylabel("estimate / truth")
    figure.legend(loc="outside upper center", fontsize=8, ncols=len(names))
    figure.savefig(FOLDER / "coverage.png", dpi=130)


def main() -> None:
    """Measure, write and draw."""
    sets = _data_sets(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    covered = [*_coverage(sets)]
    write_rows(FOLDER / "coverage.csv", covered)
    _draw(covered)
    write_rows(FOLDER / "alarms.csv", [*_alarms(sets)])


if __name__ == "__main__":
    main()
