"""Pictures in MLflow, by key and step, so that those of several runs stand side by side."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mlflow import MlflowClient
from PIL import Image

__all__ = ["Picture", "log_pictures", "pictures_of"]

_MOMENTS = 16
"""Moments of a training that are shown, the first and the last among them."""

_TRAINED = {"pretrain": "teacher in training", "distill": "generator in training"}


class Picture(NamedTuple):
    """A file, the key under which MLflow shows it, and the images seen by then."""

    key: str
    step: int
    file: Path


def pictures_of(stage: str, report: Path) -> Iterator[Picture]:
    """The pictures of images in a stage's report.

    Trainings show the same latents over the images seen; ``evaluate`` shows the first images of
    data and models, at step 0.
    """
    files = sorted((report / "samples").glob("*.png"))
    if stage in _TRAINED and files:
        count = min(_MOMENTS, len(files))
        for at in np.linspace(0, len(files) - 1, count).round().astype(int):
            yield Picture(_TRAINED[stage], int(files[at].stem), files[at])
    elif stage == "evaluate":
        yield from (Picture(file.stem, 0, file) for file in files)


def log_pictures(
    client: MlflowClient, run_id: str, pictures: Iterator[Picture], milliseconds: int | None
) -> None:
    """Log pictures with a run, without those that a process which was killed later has logged."""
    there = _logged(client, run_id)
    for picture in pictures:
        if (picture.key, picture.step) in there:
            continue
        with Image.open(picture.file, formats=("PNG",)) as image:
            pixels = image.convert("RGB")
        client.log_image(
            run_id,
            pixels,
            key=picture.key,
            step=picture.step,
            timestamp=milliseconds,
            synchronous=True,
        )


def _logged(client: MlflowClient, run_id: str) -> set[tuple[str, int]]:
    """Keys and steps of pictures of which the small copy, which is written last, is there."""
    pattern = r"images/(.+)\+step\+(\d+)\+.+\+compressed\.webp"
    paths: Sequence[str] = [file.path for file in client.list_artifacts(run_id, "images")]
    found = (re.fullmatch(pattern, path) for path in paths)
    return {(match[1], int(match[2])) for match in found if match is not None}
