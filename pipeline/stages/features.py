"""Feature spaces by the names of params.yaml."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dsd.features.config import INCEPTION_SPACES, FeatureSpace
from dsd.features.extractor import Extractor, load_extractor
from dsd.features.teacher import load_teacher_features
from dsd.utils.errors import DataError
from dsd.utils.shapes import Level
from pipeline.stage_io.paths import Paths

if TYPE_CHECKING:
    from pipeline.params.model import Params

__all__ = ["load_features", "naming_key", "open_features"]


def open_features(
    name: FeatureSpace, params: "Params", paths: Paths, sigma: Level, device: torch.device
) -> Extractor:
    """Load an extractor; ``teacher`` is that of the workspace.

    The teacher encodes all images at the highest of the observations' noise levels ``sigma``.

    Raises:
        DataError: The weights are missing or broken.
        ParamsError: There is no extractor of that name.
    """
    if name == "teacher":
        level = float(sigma.max())
        return load_teacher_features(paths.artifact("pretrain"), sigma=level, device=device)
    return load_features(name, params, device)


def load_features(name: FeatureSpace, params: "Params", device: torch.device) -> Extractor:
    """Load an extractor that needs no workspace; see :func:`open_features`."""
    weights = params.evaluate.inception_weights
    with naming_key("evaluate.inception_weights" if name in INCEPTION_SPACES else None):
        return load_extractor(name, device=device, inception_weights=weights)


@contextmanager
def naming_key(key: str | None) -> Iterator[None]:
    """Put the key that is at fault before the library's message."""
    try:
        yield
    except DataError as error:
        if key is None:
            raise
        raise DataError(f"{key}: {error}") from error
