"""Compare feature spaces as criteria for choosing a generator.

``python -m bench.accuracy.rulers FOLDER [--cifar FILE]``

Distils teachers with good and with bad settings into FOLDER, where what is there already is kept,
and measures every checkpoint twice: by Proximal Frechet distance to held-out noisy images in
several feature spaces, the rulers, and by Frechet distance to clean images, the truth. The regret
of a ruler is how much further from the clean images its choice is than the best checkpoint. Writes
``docs/results/selection/rulers.csv`` (one line for each run and ruler). About 15 minutes of one
core for a teacher with its two runs, and 3 to measure each run.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

from bench.common import CPU, EMBEDDED, RESULTS, silent_log, write_rows
from dsd.features.extractor import load_extractor
from dsd.metrics.frechet import Moments, frechet_distance, moments
from dsd.model.checkpoint import load_denoiser
from dsd.model.denoiser import Denoiser
from dsd.selection.proximal import measure, observe_like
from dsd.storage.image_store import ImageStore
from dsd.utils.images import from_uint8, to_uint8
from dsd.utils.shapes import Pixels
from pipeline.execution.run import run_stage
from pipeline.params.model import Params
from pipeline.params.reader import preview_params
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, prepare, pretrain
from sandbox import ROOT

NUM_FOREIGN = 1000
"""Images of each checkpoint in EfficientNet's features, which cost more than all others."""

NUM_CLEAN_FOREIGN = 4000

CELLS = (("clothes", 0.5, 0), ("cifar", 0.2, 0), ("clothes", 0.2, 0), ("cifar", 0.5, 0))
"""Data, noise level and seed of each teacher."""

BUDGET: dict[str, Any] = {
    "pretrain.kimg": 128.0,
    "pretrain.lr_warmup_kimg": 12.8,
    "distill.kimg": 30.72,
    "distill.selection.every_kimg": 1.92,
    "distill.selection.save_top_k": 1,
}
"""A third of the default's."""

SETTINGS: dict[str, dict[str, Any]] = {
    "sid": {},
    "hot": {
        "distill.learning_rate": 1e-3,
        "distill.learning_rate_fake": 2e-4,
        "distill.lr_schedule": "constant",
    },
}
"""The default's settings, and step sizes that are too large and do not decay."""


def params_of(data: str, sigma: float, seed: int, setting: str, cifar: Path | None) -> Params:
    """The committed parameters with the changes of one run."""
    images: dict[str, Any] = {"data.path": str(EMBEDDED)}
    if data == "cifar":
        images = {"data.path": str(cifar), "data.pad": 0, "data.max_images": 20000}
        images |= {"corrupt.trust_sigma": True}
    changes = {"seed": seed, "corrupt.sigma": sigma, **BUDGET, **SETTINGS[setting]}
    return preview_params(ROOT, {**images, **changes})


def train(folder: Path, cifar: Path | None) -> None:
    """Make all runs that are not there yet."""
    for data, sigma, seed in CELLS:
        if data == "cifar" and cifar is None:
            continue
        base = Paths(folder / f"{data}-{sigma}-{seed}")
        for stage in (prepare, corrupt, pretrain):
            once(stage, params_of(data, sigma, seed, "sid", cifar), base)
        for setting in SETTINGS:
            paths = Paths(base.root / setting)
            for name in ("prepare", "corrupt", "pretrain"):
                link = paths.artifact(name)
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    link.symlink_to(base.artifact(name))
            once(distill, params_of(data, sigma, seed, setting, cifar), paths)


def once(stage: ModuleType, params: Params, paths: Paths) -> bool:
    """Run a stage unless it was run already; return whether it was run."""
    name = stage.__name__.rpartition(".")[2]
    done = paths.artifact(name) / ".done"
    if done.exists():
        return False
    paths.report(name).mkdir(parents=True, exist_ok=True)
    run_stage(stage, params, paths, silent_log())
    done.touch()
    return True


@torch.no_grad()
def encoded(teacher: Denoiser, images: Pixels, sigma: float) -> dict[str, Tensor]:
    """Features of noisy images that are fitted to nothing or to noisy images, by what they are."""
    found: dict[str, list[Tensor]] = {}
    for batch in images.split(500):
        x, level = from_uint8(batch), torch.full((len(batch),), sigma)
        *levels, bottom = [h.mean((2, 3)) for h in teacher.encode(x, level)]
        kinds = {
            "teacher": torch.cat([*levels, bottom], 1),
            "its encoder alone": torch.cat(levels, 1),
            "its bottleneck alone": bottom,
            "its denoised images, 8x8": _small(teacher(x, level)),
            "noisy pixels, 8x8": _small(x),
        }
        for kind, features in kinds.items():
            found.setdefault(kind, []).append(features)
    return {kind: torch.cat(parts) for kind, parts in found.items()}


def _small(images: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(images, 8).flatten(1)


def measured(run: Path) -> Iterator[dict[str, object]]:
    """All rulers against all truths in one run."""
    base = run.parent
    teacher = load_denoiser(base / "data" / "pretrain")
    heldout = ImageStore.open(base / "data" / "corrupt" / "heldout")
    clean = to_uint8(ImageStore.open(base / "data" / "prepare").all())
    observed, sigma = to_uint8(heldout.all()), float(heldout.sigma.max())
    spaces = ["efficientnet-lite0", *["fashion-classifier"] * (clean.shape[1] == 1)]
    extractors = {name: load_extractor(name, device=CPU) for name in spaces}
    files = sorted((run / "data" / "distill" / "trajectory").glob("*.safetensors"))

    def in_space(name: str, images: Pixels, few: slice = slice(NUM_FOREIGN)) -> Moments:
        some = images[few] if name == "efficientnet-lite0" else images
        return measure(extractors[name], some, batch_size=500)

    def by_ruler(images: Pixels) -> dict[str, Moments]:
        own = {kind: moments(x) for kind, x in encoded(teacher, images, sigma).items()}
        return own | {name: in_space(name, images) for name in spaces}

    truths = {name: in_space(name, clean, slice(-NUM_CLEAN_FOREIGN, None)) for name in spaces}
    references = by_ruler(observed)
    rulers: dict[str, list[float]] = {name: [] for name in references}
    distances: dict[str, list[float]] = {name: [] for name in truths}
    for file in files:
        images = load_file(file)["images"]
        for name, found in by_ruler(observe_like(images, heldout.sigma, seed=1)).items():
            rulers[name].append(frechet_distance(found, references[name]))
        for name, reference in truths.items():
            distances[name].append(frechet_distance(in_space(name, images), reference))
    rulers["the last checkpoint"] = [float(-number) for number in range(len(files))]
    half = len(files) // 2
    for truth, clean_distances in distances.items():
        for ruler, proximal in rulers.items():
            chosen = int(np.argmin(proximal))
            later = spearmanr(proximal[half:], clean_distances[half:]).statistic
            yield {
                "run": f"{base.name}-{run.name}",
                "truth": truth,
                "ruler": ruler,
                "checkpoints": len(files),
                "chosen": chosen,
                "regret": clean_distances[chosen] / min(clean_distances) - 1,
                "spearman": float(spearmanr(proximal, clean_distances).statistic),
                "spearman_later_half": float(later),
            }


def main() -> None:
    """Train, measure, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cifar", type=Path, help="Parquet file of CIFAR-10 with a column image")
    options = parser.parse_args()
    train(options.folder, options.cifar)
    rows: list[dict[str, object]] = []
    for run in sorted(options.folder.glob("*-*-*/*/")):
        if run.name in SETTINGS and (run / "data" / "distill" / ".done").exists():
            rows += measured(run)
            print(*rows[-12:], sep="\n", flush=True)
            write_rows(RESULTS / "selection" / "rulers.csv", rows)


if __name__ == "__main__":
    main()
