"""``python -m pipeline demo``: what noisy images, a teacher and a one-step generator look like.

Two small models and some observations are shipped in ``demo/``; nothing is downloaded or trained.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from markupsafe import Markup
from safetensors import SafetensorError
from safetensors.torch import load_file

from dsd.model.checkpoint import load_denoiser, load_generator
from dsd.model.generator import make_latents
from dsd.model.samplers import sample_teacher
from dsd.utils.errors import DataError
from dsd.utils.images import save_rows, to_uint8
from dsd.utils.shapes import Pixels
from pipeline.reports.page import embed, open_page, write_page
from pipeline.runtime.progress import doing
from pipeline.stage_io.paths import Paths

__all__ = ["show_demo"]

NUM_SHOWN = 12
"""Images in a row."""

_SEED = 1


def show_demo(paths: Paths) -> None:
    """Write ``reports/demo.html`` and open it where there is a display.

    Raises:
        DataError: The shipped models are not in this folder, or are damaged.
    """
    folder = paths.root / "demo"
    doing("loading the models")
    noisy, sigma, clean, learned_from = _observations(folder / "observations.safetensors")
    teacher, generator = load_denoiser(folder / "teacher"), load_generator(folder / "generator")
    sigma_y = float(sigma.max())
    latents = make_latents(NUM_SHOWN, generator.shape, seed=_SEED)
    with torch.inference_mode():
        doing("denoising")
        denoised = to_uint8(teacher(noisy, sigma))
        doing("drawing samples")
        generator(latents)  # the first call of a network allocates
        started = time.perf_counter()
        one_step = to_uint8(generator(latents))
        between = time.perf_counter()
        drawn = sample_teacher(teacher, latents, sigma_y=sigma_y, seed=_SEED)
        ended = time.perf_counter()
    observed = {"clean, never shown": clean, "noisy": to_uint8(noisy), "denoised": denoised}
    sampled = {"teacher": to_uint8(drawn.truncated), "one step": one_step}
    write_page(
        paths.demo_page,
        "demo.html.j2",
        title="Clean images from noisy ones, in one step",
        sigma=sigma_y,
        learned_from=learned_from,
        count=NUM_SHOWN,
        evaluations=drawn.evaluations_truncated,
        parameters=sum(weight.numel() for weight in generator.parameters()),
        teacher_seconds=(ended - between) / NUM_SHOWN,
        generator_seconds=(between - started) / NUM_SHOWN,
        observed=_picture(observed, "Rows of clean, noisy and denoised clothes"),
        sampled=_picture(sampled, "Rows of samples of the teacher and of the generator"),
        more=_picture(
            _more(generator.sample(4 * NUM_SHOWN, seed=_SEED)[NUM_SHOWN:]), "More one-step samples"
        ),
    )
    open_page(paths.demo_page, paths.root)


def _observations(file: Path) -> tuple[torch.Tensor, torch.Tensor, Pixels, int]:
    """Noisy images in data units, levels, clean images; the number of training images."""
    try:
        found = load_file(file)
        count = int(found["learned_from"])
        return found["noisy"].float(), found["sigma"], found["clean"], count
    except (OSError, SafetensorError, KeyError) as error:
        msg = f"{file}: {error}. Run `make demo` in a clone of the repository, which ships it"
        raise DataError(msg) from error


def _more(images: Pixels) -> dict[str, Pixels]:
    """Rows without further labels."""
    rows = images.split(NUM_SHOWN)
    return {
        "more of these" if number == 0 else " " * number: row for number, row in enumerate(rows)
    }


def _picture(rows: dict[str, Pixels], text: str) -> Markup:
    with TemporaryDirectory() as folder:
        save_rows(rows, file := Path(folder) / "rows.png")
        return embed(file, text)
