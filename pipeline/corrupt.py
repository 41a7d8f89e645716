"""Stage ``corrupt``: make one fixed noisy observation of each image, and hold some out."""

import json
from functools import partial

import torch

from dsd.config import Params
from dsd.corruption import Noise, Residual, split_heldout, write_noisy_store
from dsd.errors import ParamsError
from dsd.images import save_grid, to_uint8
from dsd.imagestore import ImageStore
from pipeline.paths import Paths
from pipeline.stagelog import Progress, StageLog

__all__ = ["run"]

NUM_SHOWN = 10
"""Images in the picture."""

SHOWN_PIXELS = 64
"""Width of an image in the picture, about."""


def run(params: Params, paths: Paths, log: StageLog) -> None:
    """Observe ``data/prepare`` through noise; write ``data/corrupt`` and ``reports/corrupt``."""
    clean = ImageStore.open(paths.artifact("prepare"))
    _check(params, clean)
    noise = Noise(
        sigma=params.corrupt.sigma,
        seed=params.seed,
        add=clean.meta.info.get("content") != "noisy",
    )
    with log.progress(len(clean)) as progress:
        residual = _write(params, paths, clean, noise, progress)
    _draw(paths, clean, noise)
    _report(params, paths, len(clean), residual if noise.add else None, log)


def _check(params: Params, clean: ImageStore) -> None:
    heldout = params.corrupt.num_heldout
    if heldout >= len(clean):
        msg = (
            f"corrupt.num_heldout is {heldout}, but there are only {len(clean)} images: "
            f"lower it (a tenth would be {max(len(clean) // 10, 1)}), or use more images"
        )
        raise ParamsError(msg)


def _write(
    params: Params, paths: Paths, clean: ImageStore, noise: Noise, progress: Progress
) -> Residual:
    """Write both parts; y - x0 summed up over all images."""
    train, heldout = split_heldout(params.seed, len(clean), params.corrupt.num_heldout)
    residual, before = Residual(), 0
    for name, indices in (("train", train), ("heldout", heldout)):
        _, added = write_noisy_store(
            clean.folder,
            paths.artifact("corrupt") / name,
            indices,
            noise=noise,
            workers=params.corrupt.workers,
            done=partial(_show, progress, before),
        )
        residual, before = residual + added, before + len(indices)
    return residual


def _show(progress: Progress, before: int, images: int) -> None:
    progress.update(before + images)


def _draw(paths: Paths, clean: ImageStore, noise: Noise) -> None:
    """Save the first training images: clean ones, where there are any, above noisy ones."""
    noisy = ImageStore.open(paths.artifact("corrupt") / "train")
    shown = torch.arange(min(NUM_SHOWN, len(noisy)))
    rows = [noisy.take(shown)]
    if noise.add:
        rows.insert(0, clean.take(noisy.index[shown]))
    save_grid(
        to_uint8(torch.cat(rows)),
        paths.report("corrupt") / "images.png",
        columns=len(shown),
        zoom=max(1, SHOWN_PIXELS // clean.shape[-1]),
    )


def _report(
    params: Params, paths: Paths, count: int, residual: Residual | None, log: StageLog
) -> None:
    """Write and say how many images there are and how noisy they became."""
    heldout = params.corrupt.num_heldout
    measured = _measured(residual)
    summary = {"train": count - heldout, "heldout": heldout, "sigma": params.corrupt.sigma}
    target = paths.report("corrupt") / "summary.json"
    target.write_text(json.dumps({**summary, **measured}, indent=2) + "\n")
    log.metrics(count, measured)
    parts = [f"{count - heldout} noisy images and {heldout} held out"]
    parts += [f"{name} {value:.4g}" for name, value in measured.items()]
    log.say(", ".join(parts))


def _measured(residual: Residual | None) -> dict[str, float]:
    """Level and PSNR as found in the data; nothing where the clean images are unknown."""
    if residual is None:
        return {}
    if residual.squares == 0:
        return {"measured_sigma": 0.0}
    return {"measured_sigma": residual.std, "psnr_db": residual.psnr}
