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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from dsd.features.pixels import to_grey
from dsd.utils.errors import DataError
from dsd.utils.shapes import Features, Pixels

__all__ = [
    "WEIGHTS",
    "FashionClassifier",
    "load_fashion_classifier",
    "read_metadata",
    "save_fashion_classifier",
]

WEIGHTS = Path(__file__).with_name("fashion-classifier.safetensors")
SIZE = 16
LAYERS = ((1, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 2))
"""Input channels, output channels and stride of each 3x3 convolution."""


@final
class FashionClassifier(nn.Module):
    """Convolutions with ReLU, whose mean over positions are the features, and linear scores.

    Args:
        normalise: With batch normalisation, to train it; saving folds that into the convolutions.
    """

    name = "fashion-classifier"
    dim = LAYERS[-1][1]

    def __init__(self, *, normalise: bool = False) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, stride, padding=1) for c_in, c_out, stride in LAYERS
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(c_out) if normalise else nn.Identity() for _, c_out, _ in LAYERS
        )
        self.head = nn.Linear(self.dim, 10)

    @property
    def protocol(self) -> str:
        """Weights, input size and resizing."""
        return (
            f"dsd fashion-classifier (Fashion-MNIST, {self.dim}-d mean-pooled), "
            f"grey, {SIZE}x{SIZE} by area, [-1, 1]"
        )

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.head.weight.device

    def forward(self, images: Pixels) -> Features:
        """Features of 8-bit images of any size, one or three channels."""
        h = functional.interpolate(to_grey(images), size=(SIZE, SIZE), mode="area") / 127.5 - 1
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = norm(conv(h)).relu()
        return h.mean(dim=(2, 3))

    def probabilities(self, features: Features) -> Float[Tensor, " b 10"]:
        """Of the ten kinds of clothes, from features that are made already."""
        scores: Tensor = self.head(features.to(self.head.weight))
        return scores.softmax(dim=1)

    def logits(self, images: Pixels) -> Float[Tensor, " b 10"]:
        """Scores of the ten kinds of clothes."""
        scores: Tensor = self.head(self(images))
        return scores


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


def read_metadata(path: Path = WEIGHTS) -> dict[str, str]:
    """How the weights were made: data, command, seed, accuracy on the images held out."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def save_fashion_classifier(model: FashionClassifier, path: Path, info: dict[str, str]) -> None:
    """Write a trained classifier, its batch normalisation folded into the convolutions."""
    save_file(folded(model).state_dict(), path, metadata=info)


def folded(model: FashionClassifier) -> FashionClassifier:
    """The same function in evaluation mode, without batch normalisation."""
    plain = FashionClassifier().eval()
    plain.head.load_state_dict(model.head.state_dict())
    for target, conv, norm in zip(plain.convs, model.convs, model.norms, strict=True):
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        fused = nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())
        target.load_state_dict(fused.state_dict())
    return plain
