"""Stage ``corrupt``: make one fixed noisy observation of each image, and hold some out."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from dsd.corruption.writer import Noise, Residual, write_noisy_store
from dsd.operators.config import MaskOperator, OperatorChoice
from dsd.storage.image_store import ImageStore
from dsd.utils.files import write_json
from dsd.utils.images import enlarged, save_grid, to_uint8
from pipeline.stage_io.context import StageContext
from pipeline.stage_io.inputs import open_images
from pipeline.stage_io.log import Progress, StageLog
from pipeline.stage_io.outputs import replaced_outputs
from pipeline.stage_io.paths import Paths
from pipeline.stages.noise import settle_noise, split_of

if TYPE_CHECKING:
    from pipeline.params.model import Params

__all__ = ["run"]

NUM_SHOWN = 10
"""Images in the picture."""

FURTHER_MASK = 0.1
"""Probability that training hides an observed pixel of images with gaps, as in the reference."""

SHOWN_PIXELS = 64
"""Width of an image in the picture, about."""


def run(context: StageContext) -> None:
    """Observe ``data/prepare`` through noise; write ``data/corrupt`` and ``reports/corrupt``."""
    with replaced_outputs(context.paths, "corrupt") as fresh:
        _corrupt(context.params, fresh, context.log)


def _corrupt(params: "Params", paths: Paths, log: StageLog) -> None:
    clean = open_images(paths, "prepare", log)
    log.doing("estimating the noise level")
    noise = settle_noise(params, paths, clean, log)
    log.doing("observing the images through noise")
    with log.progress(len(clean)) as progress:
        residual, heldout = _write(params, paths, clean, noise, progress)
    _draw(paths, clean, noise)
    _report(paths, len(clean), heldout, noise, residual, log)


def _write(
    params: "Params", paths: Paths, clean: ImageStore, noise: Noise, progress: Progress
) -> tuple[Residual, int]:
    """Write both parts; y - x0 summed up over all images, and how many are held out."""
    train, heldout = split_of(params, clean)
    mixed = replace(noise, clean_fraction=params.corrupt.clean_fraction)
    operator = _operator(params, clean)
    residual, before = Residual(), 0
    for name, indices, level in (("train", train, mixed), ("heldout", heldout, noise)):
        _, added = write_noisy_store(
            clean.folder,
            paths.artifact("corrupt") / name,
            indices,
            noise=level,
            operator=operator,
            workers=params.corrupt.workers,
            done=partial(_show, progress, before),
        )
        residual, before = residual + added, before + len(indices)
    return residual, len(heldout)


def _operator(params: "Params", clean: ImageStore) -> OperatorChoice:
    """How images were observed: through their own gaps, where they have some."""
    missing = clean.meta.info.get("missing")
    if not isinstance(missing, float):
        return params.corrupt.operator
    return MaskOperator(kind="mask", keep_prob=1 - missing, further_mask_prob=FURTHER_MASK)


def _show(progress: Progress, before: int, images: int) -> None:
    progress.update(before + images)


def _draw(paths: Paths, clean: ImageStore, noise: Noise) -> None:
    """Save the first training images; where there are clean ones, these above them."""
    noisy = ImageStore.open(paths.artifact("corrupt") / "train")
    shown = torch.arange(min(NUM_SHOWN, len(noisy)))
    rows = [enlarged(to_uint8(noisy.take(shown)), clean.shape[-1] // noisy.shape[-1])]
    if noise.add:
        rows.insert(0, to_uint8(clean.take(noisy.index[shown])))
    save_grid(
        torch.cat(rows),
        paths.report("corrupt") / "images.png",
        columns=len(shown),
        zoom=max(1, SHOWN_PIXELS // clean.shape[-1]),
        is_complex=noisy.is_complex,
    )


def _report(
    paths: Paths, count: int, heldout: int, noise: Noise, residual: Residual, log: StageLog
) -> None:
    """Write and say how many images there are and how noisy they became."""
    measured = _measured(residual) if noise.add else {}
    levels = {"sigma": noise.sigma, "sigma_hat": noise.assumed}
    summary = {"train": count - heldout, "heldout": heldout, **levels}
    target = paths.report("corrupt") / "summary.json"
    write_json(target, {**summary, **measured})
    log.metrics(count, measured)
    parts = [f"{count - heldout} noisy images and {heldout} held out"]
    parts += [f"{name} {value:.4g}" for name, value in measured.items()]
    log.say(", ".join(parts))


def _measured(residual: Residual) -> dict[str, float]:
    """Level and PSNR as found by comparing with the clean images."""
    if residual.squares == 0:
        return {"measured_sigma": 0.0}
    return {"measured_sigma": residual.std, "psnr_db": residual.psnr}
