"""Features of a small classifier of clothes, to compare the embedded grey images.

Four convolutions and a mean over positions give 64 numbers for a 16x16 image. The weights lie
beside this module. ``python -m scripts.fit_fashion_classifier`` (seed 0) trained them on 18,000
labelled clean images; 89.05 % of the 2,000 held out are put in the right one of ten classes.
They measure results: no teacher is trained and, by default, no generator chosen with them.
"""

from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from dsd.features.pixels import to_grey
from dsd.utils.errors import DataError
from dsd.utils.shapes import Features, Pixels

__all__ = ["WEIGHTS", "FashionClassifier", "load_fashion_classifier"]

WEIGHTS = Path(__file__).with_name("fashion-classifier.safetensors")
SIZE = 16
LAYERS = ((1, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 2))
"""Input channels, output channels and stride of each 3x3 convolution."""


@final
class FashionClassifier(nn.Module):
    """Convolutions with ReLU, whose mean over positions are the features, and linear scores."""

    name = "fashion-classifier"
    dim = LAYERS[-1][1]
    protocol = (
        f"dsd fashion-classifier (Fashion-MNIST, {dim}-d mean-pooled), "
        f"grey, {SIZE}x{SIZE} by area, [-1, 1]"
    )

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, stride, padding=1) for c_in, c_out, stride in LAYERS
        )
        self.head = nn.Linear(self.dim, 10)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.head.weight.device

    def forward(self, images: Pixels) -> Features:
        """Features of 8-bit images of any size, one to three channels."""
        h = functional.interpolate(to_grey(images), size=(SIZE, SIZE), mode="area") / 127.5 - 1
        for conv in self.convs:
            h = conv(h).relu()
        return h.mean(dim=(2, 3))

    def logits(self, features: Features) -> Float[Tensor, " b 10"]:
        """Scores of the ten kinds of clothes, from features."""
        scores: Tensor = self.head(features.to(self.head.weight))
        return scores

    def probabilities(self, features: Features) -> Float[Tensor, " b 10"]:
        """Of the ten kinds of clothes, from features."""
        return self.logits(features).softmax(dim=1)


def load_fashion_classifier(device: torch.device, path: Path = WEIGHTS) -> FashionClassifier:
    """The trained classifier in evaluation mode.

    Raises:
        DataError: The file of weights is missing or broken.
    """
    model = FashionClassifier()
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        msg = (
            f"{path}: weights of the fashion classifier cannot be read ({error}); "
            "restore the file from git"
        )
        raise DataError(msg) from error
    return model.to(device).eval().requires_grad_(requires_grad=False)
