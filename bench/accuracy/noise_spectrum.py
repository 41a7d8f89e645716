"""Measure the estimate of the noise's spectrum: ``python -m bench.accuracy.noise_spectrum``.

Writes ``docs/results/noise_spectrum/coverage.csv``: how often all intervals together hold the true
spectrum, and that of the level the true level, in scenes of blobs under noise of known kernels.
Some minutes of one core.
"""

import numpy as np

from bench.common import RESULTS, write_rows
from dsd.corruption.noise_spectrum import estimate_spectrum
from sandbox.scenes import KERNELS, correlated, scenes, true_spectrum

TRIALS = 40
SIGMA = 0.2
SETS = {"32 x 32, 1000 images": (32, 1000, 1), "64 x 64, 300 images": (64, 300, 4)}
"""Side, number of images and most blobs in one."""


def main() -> None:
    """Measure all and write the table."""
    rows: list[dict[str, object]] = []
    for name, (side, count, most) in SETS.items():
        for noise, kernel in KERNELS.items():
            spectra, levels, ratios, widths = 0, 0, [], []
            for trial in range(TRIALS):
                rng = np.random.default_rng(trial)
                images = scenes(rng, count, side, most)
                images += SIGMA * correlated(rng, kernel, images.shape)
                found = estimate_spectrum(images)
                truth = SIGMA**2 * true_spectrum(kernel, found.reach)[None]
                spectra += found.contains(truth)
                levels += found.level.low <= SIGMA <= found.level.high
                ratios.append(found.level.sigma / SIGMA)
                widths.append(float(found.half_width.mean()) / SIGMA**2)
            rows.append(
                {
                    "images": name,
                    "noise": noise,
                    "trials": TRIALS,
                    "spectrum_inside": spectra,
                    "level_inside": levels,
                    "level_over_truth": round(float(np.mean(ratios)), 4),
                    "mean_half_width": round(float(np.mean(widths)), 3),
                }
            )
            print(rows[-1], flush=True)
            write_rows(RESULTS / "noise_spectrum" / "coverage.csv", rows)


if __name__ == "__main__":
    main()
