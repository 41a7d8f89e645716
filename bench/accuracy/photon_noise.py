"""What ignoring photon noise costs: ``python -m bench.accuracy.photon_noise FOLDER``.

A camera of known gain and read noise sees the embedded clothes in 1 to 21 photons a pixel. Teacher
and generator are trained twice, once as if the noise were white and of one level (its true mean
square, with ``corrupt.trust_sigma``), once with ``data.intensity.camera``, whose gain and read
noise are estimated. Three seeds each; Frechet distances to the clean images in raw units (features
of the fashion-classifier). What is in FOLDER already is kept. Writes
``docs/results/photon_noise/cells.csv``.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from bench.accuracy.noise_nature import BUDGET, SAMPLES, SEEDS, SETTINGS
from bench.accuracy.rulers import once
from bench.common import CPU, EMBEDDED, RESULTS, write_rows
from dsd.features.extractor import load_extractor
from dsd.metrics.frechet import frechet_distance
from dsd.model.checkpoint import load_denoiser, load_generator
from dsd.model.generator import make_latents
from dsd.model.samplers import sample_teacher
from dsd.selection.proximal import measure
from dsd.storage.image_store import ImageStore
from dsd.utils.shapes import Pixels
from pipeline.params.model import Params
from pipeline.params.reader import preview_params
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, prepare, pretrain
from sandbox import ROOT

GAIN, OFFSET, READ_NOISE = 2.0, 100.0, 2.0
DARK, PHOTONS = 1.0, 20.0
"""Photons of black, and more photons of white."""


def _raw_of(pixels: np.ndarray) -> Float64[np.ndarray, "*d"]:
    """Mean raw values of clothes of 8 bits."""
    return OFFSET + GAIN * (DARK + PHOTONS * pixels.astype(np.float64) / 255)


def _pixels_of(raw: np.ndarray) -> Pixels:
    """Clothes of 8 bits behind mean raw values."""
    brightness = ((raw.astype(np.float64) - OFFSET) / GAIN - DARK) / PHOTONS
    return torch.from_numpy(np.rint(255 * brightness).clip(0, 255).astype(np.uint8))


def clothes(folder: Path) -> Pixels:
    """The clean images, of 16 x 16 pixels."""
    base = Paths(folder / "clean")
    once(prepare, preview_params(ROOT, {"data.path": str(EMBEDDED)}), base)
    return torch.from_numpy(np.concatenate(ImageStore.open(base.artifact("prepare")).raw()))


def params_of(setting: str, seed: int, clean: Pixels, base: Paths) -> Params:
    """Let the camera see the clothes, and say how its images are to be taken."""
    random = np.random.default_rng([seed, 7])
    mean = _raw_of(clean.numpy())
    photons = random.poisson((mean - OFFSET) / GAIN)
    raw = GAIN * photons + OFFSET + READ_NOISE * random.standard_normal(mean.shape)
    base.root.mkdir(parents=True, exist_ok=True)
    np.save(base.root / "raw.npy", raw[:, 0].astype(np.float32))
    low, high = float(_raw_of(np.array(0))), float(_raw_of(np.array(255)))
    changes: dict[str, Any] = {
        "data.source": "array",
        "data.path": "raw.npy",
        "data.axes": "TYX",
        "data.content": "noisy",
        "data.pad": 0,
        "data.resolution": None,
        "seed": seed,
    }
    if setting == "right":
        camera = {"gain": "auto", "offset": OFFSET, "read_noise": "auto"}
        changes["data.intensity"] = {"camera": camera, "percentiles": [0.1, 99.9]}
        changes["corrupt.sigma"] = "auto"
    else:
        changes["data.intensity"] = {"low": low, "high": high}
        changes["corrupt.sigma"] = float((raw - mean).std() * 2 / (high - low))
        changes["corrupt.trust_sigma"] = True
    return preview_params(ROOT, {**BUDGET, **changes})


def measured(base: Paths, params: Params, clean: Pixels) -> dict[str, float]:
    """Frechet distances to the clean images, all in their units."""
    extractor = load_extractor("fashion-classifier", device=CPU)
    noisy = ImageStore.open(base.artifact("corrupt") / "train")
    generator = load_generator(base.artifact("distill") / "generator")
    teacher = load_denoiser(base.artifact("pretrain"))
    parts: dict[str, list[Pixels]] = {"teacher": [], "generator": []}
    with torch.inference_mode():
        for z in make_latents(SAMPLES, generator.shape, seed=1).split(500):
            drawn = sample_teacher(
                teacher, z, config=params.evaluate.sampler, sigma_y=float(noisy.sigma.max())
            )
            for name, x in (("teacher", drawn.truncated), ("generator", generator(z))):
                parts[name].append(_pixels_of(noisy.intensity.raw_values(x.numpy())))
    images = {name: torch.cat(part) for name, part in parts.items()}
    raw = noisy.intensity.raw_values(noisy.all()[:SAMPLES].numpy(), noisy=True)
    images["noisy images"] = _pixels_of(raw)
    reference = measure(extractor, clean, batch_size=500)
    return {
        name: frechet_distance(measure(extractor, some, batch_size=500), reference)
        for name, some in images.items()
    }


def main() -> None:
    """Train, measure, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    clean = clothes(options.folder)
    rows: list[dict[str, object]] = []
    for seed in SEEDS:
        for setting in SETTINGS:
            base = Paths(options.folder / f"{setting}-{seed}")
            params = params_of(setting, seed, clean, base)
            for stage in (prepare, corrupt, pretrain, distill):
                once(stage, params, base)
            rows.append({"setting": setting, "seed": seed, **measured(base, params, clean)})
            print(rows[-1], flush=True)
            write_rows(RESULTS / "photon_noise" / "cells.csv", rows)


if __name__ == "__main__":
    main()
