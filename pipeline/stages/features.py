"""The feature spaces that parameters name, ready to use in a workspace."""

from typing import TYPE_CHECKING

import torch

from dsd.features.config import FeatureSpace
from dsd.features.extractor import Extractor, load_extractor
from dsd.features.teacher import load_teacher_features
from dsd.utils.shapes import Level
from pipeline.stage_io.paths import Paths

if TYPE_CHECKING:
    from pipeline.params.model import Params

__all__ = ["open_features"]


def open_features(
    name: FeatureSpace, params: "Params", paths: Paths, sigma: Level, device: torch.device
) -> Extractor:
    """The extractor called ``name``; ``teacher`` is that of the workspace.

    Args:
        name: As in the parameters.
        params: All parameters; they name the weights of Inception.
        paths: The workspace.
        sigma: Noise levels of the observations; the teacher encodes all images at the highest,
            that of all of them but those that stayed clean.
        device: Where it computes.

    Raises:
        DataError: The weights are missing or broken.
        ParamsError: There is no extractor of that name.
    """
    if name == "teacher":
        level = float(sigma.max())
        return load_teacher_features(paths.artifact("pretrain"), sigma=level, device=device)
    weights = params.evaluate.inception_weights_path
    return load_extractor(name, device=device, inception_weights=weights)
