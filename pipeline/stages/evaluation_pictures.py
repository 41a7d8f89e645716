"""Pictures of the stage ``evaluate``."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from dsd.evaluation.memorisation import Memorisation
from dsd.model.denoiser import AnyDenoiser, append_dims
from dsd.storage.image_store import ImageStore
from dsd.utils.images import save_grid, save_rows, to_uint8
from dsd.utils.shapes import Pixels
from pipeline.stage_io.paths import Paths
from pipeline.stages.measures import EvaluationData

__all__ = [
    "LABELS",
    "MODELS",
    "NUM_SHOWN",
    "denoised_images",
    "draw_models",
    "draw_neighbours",
    "draw_progress",
]

NUM_SHOWN = 12
"""Images in a row of a picture."""

NUM_SAMPLED = 3 * NUM_SHOWN
"""Images in the picture of one model's."""

NUM_PROGRESS = 9
"""Checkpoints of the distillation in the picture of its progress."""

SHOWN_PIXELS = 64
"""Width of an image in a picture, about."""

MODELS = ("generator", "teacher_full", "teacher_truncated", "teacher_truncated_exact")
"""What is measured, by its name in the summary."""

LABELS = {
    "clean_data": "clean data",
    "noisy_data": "noisy data",
    "denoised": "denoised",
    "teacher_full": "teacher, Full",
    "teacher_truncated": "teacher, Truncated",
    "teacher_truncated_exact": "Truncated at sigma",
    "generator": "one step",
}


def denoised_images(paths: Paths, teacher: AnyDenoiser, device: torch.device) -> Pixels:
    """Estimates of the first images behind noisy ones, by the teacher at the data's own level.

    Args:
        paths: The workspace.
        teacher: On ``device``.
        device: Where to compute.
    """
    noisy = ImageStore.open(paths.artifact("corrupt/train"))
    first = torch.arange(min(NUM_SAMPLED, len(noisy)))
    y, sigma = noisy.take(first).to(device), noisy.sigma[first].to(device)
    with torch.inference_mode():
        # Images without noise need no estimate, and networks have no level 0.
        x = teacher(y, sigma.clamp(min=torch.finfo(sigma.dtype).tiny))
    return to_uint8(torch.where(append_dims(sigma, y) > 0, x, y)).cpu()


def draw_models(paths: Paths, images: Mapping[str, Pixels], data: EvaluationData) -> None:
    """Save data above each model's images of the same latents; and more of data and models.

    Each noisy image stands below the clean one that it shows, and above its denoised one.
    """
    shown = {name: images[name][:NUM_SAMPLED] for name in ("denoised", *reversed(MODELS))}
    shown["noisy_data"] = data.noisy[:NUM_SAMPLED]
    if data.clean is not None:
        shown["clean_data"] = data.clean[data.numbers[:NUM_SAMPLED]]
    rows = {name: pixels[:NUM_SHOWN] for name, pixels in shown.items()}
    labelled = {label: rows[name] for name, label in LABELS.items() if name in rows}
    folder = paths.report("evaluate")
    save_rows(labelled, folder / "comparison.png", is_complex=data.is_complex)
    for name, pixels in shown.items():
        zoom = max(1, SHOWN_PIXELS // pixels.shape[-1])
        save_grid(
            pixels,
            folder / "samples" / f"{name}.png",
            columns=NUM_SHOWN,
            zoom=zoom,
            is_complex=data.is_complex,
        )


def draw_progress(paths: Paths, *, is_complex: bool) -> None:
    """Save the generator's images of the same latents, at a few times of the distillation."""
    files = sorted((paths.artifact("distill") / "trajectory").glob("*.safetensors"))
    shown = np.linspace(0, len(files) - 1, min(NUM_PROGRESS, len(files))).round().astype(int)
    rows = {f"{int(files[at].stem):,} images": _first_images(files[at]) for at in shown}
    save_rows(rows, paths.report("evaluate") / "progress.png", is_complex=is_complex)


def _first_images(file: Path) -> Pixels:
    with safe_open(file, framework="pt") as stored:
        images: Pixels = stored.get_slice("images")[:NUM_SHOWN]
    return images


def draw_neighbours(
    paths: Paths, images: Pixels, copies: Memorisation, data: EvaluationData
) -> None:
    """Save the generated images that match an observation best, above their best training ones."""
    shown = copies.most_suspicious(NUM_SHOWN)
    nearest = copies.nearest[shown]
    rows = {"one step": images[shown], "nearest noisy": data.noisy[nearest]}
    if data.clean is not None:
        rows["the same, clean"] = data.clean[data.numbers[nearest]]
    save_rows(rows, paths.report("evaluate") / "neighbours.png", is_complex=data.is_complex)
