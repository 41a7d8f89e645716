"""What ignoring the nature of the noise costs: ``python -m bench.accuracy.noise_nature FOLDER``.

The embedded clothes get noise of known nature. Teacher and generator are trained twice, once as if
it were white noise of one level and once with the right setting, three seeds each, and the Frechet
distances of both to the clean images are measured (features of the fashion-classifier). What is
there already in FOLDER is kept. Writes ``docs/results/noise_nature/cells.csv``. Three minutes of
one core for each of the six runs of a nature.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.accuracy.rulers import once
from bench.common import CPU, EMBEDDED, RESULTS, write_rows
from dsd.features.extractor import load_extractor
from dsd.metrics.frechet import frechet_distance
from dsd.model.checkpoint import load_denoiser, load_generator
from dsd.model.generator import make_latents
from dsd.model.samplers import sample_teacher
from dsd.selection.proximal import measure
from dsd.storage.image_store import ImageStore
from dsd.utils.images import to_uint8
from dsd.utils.shapes import Pixels
from pipeline.params.model import Params
from pipeline.params.reader import preview_params
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, prepare, pretrain
from sandbox import ROOT

SEEDS = (0, 1, 2)
SETTINGS = ("ignored", "right")
SAMPLES = 4000

BUDGET: dict[str, Any] = {
    "network.model_channels": 16,
    "pretrain.kimg": 48.0,
    "pretrain.lr_warmup_kimg": 4.8,
    "pretrain.ema_halflife_kimg": 8.0,
    "distill.kimg": 15.36,
    "distill.ema_halflife_kimg": 2.0,
    "distill.selection.every_kimg": 3.84,
    "distill.selection.save_top_k": 1,
}
"""A small network and a sixth of the default's images, to afford all runs on two cores."""


def _correlated(base: Paths) -> dict[str, Any]:
    """Noise of a 3 x 3 mean, as after interpolation or binning: neighbours correlate by 2/3."""
    file = base.root / "kernel.npy"
    np.save(file, np.ones((3, 3)))
    return {"corrupt.spectrum": str(file)}


def _as_white(base: Paths) -> None:
    """Let the noisy images forget their kernel."""
    for part in ("train", "heldout"):
        meta = base.artifact("corrupt") / part / "meta.json"
        about = json.loads(meta.read_text())
        about["info"].pop("kernel", None)
        meta.write_text(json.dumps(about))


NATURES: Mapping[str, tuple[Callable[[Paths], dict[str, Any]], Callable[[Paths], None]]] = {
    "correlated": (_correlated, _as_white),
}
"""What makes noise of that nature, and what lets training ignore it once the images are there."""


def _params(seed: int, changes: Mapping[str, Any]) -> Params:
    known = {"data.path": str(EMBEDDED), "corrupt.sigma": 0.5, "seed": seed}
    return preview_params(ROOT, {**BUDGET, **known, **changes})


def train(nature: str, setting: str, seed: int, folder: Path) -> Paths:
    """Train teacher and generator, unless they are there."""
    base = Paths(folder / f"{nature}-{setting}-{seed}")
    base.root.mkdir(parents=True, exist_ok=True)
    make, forget = NATURES[nature]
    params = _params(seed, make(base))
    once(prepare, params, base)
    if once(corrupt, params, base) and setting == "ignored":
        forget(base)
    for stage in (pretrain, distill):
        once(stage, params, base)
    return base


def measured(base: Paths, params: Params) -> dict[str, float]:
    """Frechet distances to the clean images."""
    extractor = load_extractor("fashion-classifier", device=CPU)

    def moments_of(images: Pixels) -> Any:  # noqa: ANN401
        return measure(extractor, images, batch_size=500)

    noisy = ImageStore.open(base.artifact("corrupt") / "train")
    clean = moments_of(to_uint8(ImageStore.open(base.artifact("prepare")).all()))
    generator = load_generator(base.artifact("distill") / "generator")
    teacher = load_denoiser(base.artifact("pretrain"))
    parts: dict[str, list[Pixels]] = {"teacher": [], "generator": []}
    with torch.inference_mode():
        for z in make_latents(SAMPLES, generator.shape, seed=1).split(500):
            drawn = sample_teacher(
                teacher, z, config=params.evaluate.sampler, sigma_y=float(noisy.sigma.max())
            )
            parts["teacher"].append(to_uint8(drawn.truncated))
            parts["generator"].append(to_uint8(generator(z)))
    images = {name: torch.cat(part) for name, part in parts.items()}
    images["noisy images"] = to_uint8(noisy.all()[:SAMPLES])
    return {name: frechet_distance(moments_of(some), clean) for name, some in images.items()}


def main() -> None:
    """Train, measure, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for seed in SEEDS:
        for nature in NATURES:
            for setting in SETTINGS:
                base = train(nature, setting, seed, options.folder)
                found = measured(base, _params(seed, {}))
                rows.append({"nature": nature, "setting": setting, "seed": seed, **found})
                print(rows[-1], flush=True)
                write_rows(RESULTS / "noise_nature" / "cells.csv", rows)


if __name__ == "__main__":
    main()
