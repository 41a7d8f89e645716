"""Coverage of the intervals of gain and read noise: ``python -m bench.accuracy.camera_noise``.

Synthetic scenes of known photons (discs, clothes, smooth fields) are seen by cameras of known
gain, offset and read noise. Writes ``docs/results/camera_noise/coverage.csv``: how often the
intervals hold the truth, in how many trials an estimate was refused, and how far off estimates
are. About ten minutes of one core for 100 trials of each row.
"""

import argparse
from functools import cache

import numpy as np
from jaxtyping import Float64
from scipy.ndimage import gaussian_filter

from bench.common import RESULTS, clothes, write_rows
from dsd.corruption.camera_noise import CameraEstimate, Interval, estimate_camera
from dsd.utils.errors import DataError

OFFSET = 100.0
CAMERAS = ((20.0, 2.5, 4.0), (200.0, 2.5, 4.0), (1000.0, 0.5, 1.5))
"""Photons of the brightest places, gain and read noise, in raw units."""

SCENES = ("discs", "clothes", "smooth")
IMAGES, SIDE = 64, 64


@cache
def _clothes() -> Float64[np.ndarray, " n h w"]:
    return clothes().numpy()[:, 0].astype(np.float64)


def scene(kind: str, random: np.random.Generator) -> Float64[np.ndarray, " n h w"]:
    """Images with values from 0 to 1."""
    if kind == "smooth":
        field = gaussian_filter(random.standard_normal((IMAGES, SIDE, SIDE)), (0, 6, 6))
        smooth: np.ndarray = (field - field.min()) / np.ptp(field)
        return smooth
    if kind == "clothes":
        chosen = random.choice(len(_clothes()), 4 * IMAGES, replace=False)
        return _clothes()[chosen] / 255
    y, x = np.mgrid[:SIDE, :SIDE]
    images = np.zeros((IMAGES, SIDE, SIDE))
    for image in images:
        for _ in range(5):
            top, left = random.uniform(0, SIDE, 2)
            inside = np.hypot(y - top, x - left) < random.uniform(4, 12)
            np.maximum(image, random.uniform(0.1, 1) * inside, out=image)
    return np.asarray(gaussian_filter(images, (0, 1, 1)))


def seen(
    kind: str, peak: float, gain: float, read_noise: float, seed: int
) -> Float64[np.ndarray, " n 1 h w"]:
    """Raw images, rounded as cameras do."""
    random = np.random.default_rng([seed, 3])
    photons = random.poisson(peak * scene(kind, random))
    raw = gain * photons + OFFSET + read_noise * random.standard_normal(photons.shape)
    return np.rint(raw)[:, None]


def holds(interval: Interval, truth: float) -> bool:
    """Whether an interval holds the truth."""
    return interval.low <= truth <= interval.high


def measure(
    kind: str, peak: float, gain: float, read_noise: float, trials: int
) -> dict[str, object]:
    """One row: the offset known, and nothing known."""
    # Rounding adds its own variance.
    read = float(np.hypot(read_noise, 1 / np.sqrt(12)))
    known: list[CameraEstimate] = []
    free: list[CameraEstimate] = []
    refused = 0
    for trial in range(trials):
        raw = seen(kind, peak, gain, read_noise, trial)
        try:
            known.append(estimate_camera(raw, offset=OFFSET))
            free.append(estimate_camera(raw))
        except DataError:
            refused += 1
    count = max(len(free), 1)

    def share(hits: list[bool]) -> float:
        return sum(hits) / count

    return {
        "scene": kind,
        "photons": peak,
        "gain": gain,
        "read_noise": read_noise,
        "trials": trials,
        "refused": refused,
        "gain_held": share([holds(one.gain, gain) for one in known]),
        "read_noise_held": share([holds(one.read_noise, read) for one in known]),
        "gain_held_all_unknown": share([holds(one.gain, gain) for one in free]),
        "read_noise_held_all_unknown": share([holds(one.read_noise, read) for one in free]),
        "offset_held_all_unknown": share([holds(one.offset, OFFSET) for one in free]),
        "gain_ratio": float(np.mean([one.gain.value / gain for one in known] or [np.nan])),
        "gain_half_width": float(
            np.mean([(one.gain.high - one.gain.low) / 2 / gain for one in known] or [np.nan])
        ),
        "read_noise_ratio": float(
            np.mean([one.read_noise.value / read for one in known] or [np.nan])
        ),
    }


def main() -> None:
    """Measure all rows and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=100)
    options = parser.parse_args()
    rows = []
    for kind in SCENES:
        for peak, gain, read_noise in CAMERAS:
            rows.append(measure(kind, peak, gain, read_noise, options.trials))
            print(rows[-1], flush=True)
            write_rows(RESULTS / "camera_noise" / "coverage.csv", rows)


if __name__ == "__main__":
    main()
