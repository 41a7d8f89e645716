"""Feature spaces for Frechet distances, by name.

An extractor turns 8-bit images of any size into one vector each; how it resizes and scales them is
its own business and is told by its ``protocol``, because distances made with different protocols
cannot be compared. What the built-in ones do with channels is in ``dsd.features.pixels``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from dsd.features.config import TORCHSCRIPT_SUFFIXES, FeatureSpace
from dsd.utils.precision import float32_products
from dsd.utils.shapes import Features, Pixels

__all__ = ["Extractor", "extract", "load_extractor"]


@runtime_checkable
class Extractor(Protocol):
    """Features of images, without randomness."""

    @property
    def name(self) -> str:
        """The key in ``params.yaml``."""

    @property
    def protocol(self) -> str:
        """Weights, input size and resizing, for people who compare numbers."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def __call__(self, images: Pixels) -> Features:
        """One float32 vector for each image, images and vectors on ``device``."""


def load_extractor(
    name: FeatureSpace, *, device: torch.device, inception_weights: Path | None = None
) -> Extractor:
    """The extractor called ``name``, ready on ``device``; the global random state stays as it is.

    Args:
        name: One of ``dsd.features.config.FEATURE_SPACES``, ``package.module:function`` or a
            TorchScript file; see ``dsd.features.custom``.
        device: Where it computes.
        inception_weights: File of Inception's weights; None lets it be downloaded once.

    Raises:
        DataError: The weights are missing or broken.
        ParamsError: There is no extractor of that name.
    """
    # Each import costs seconds, and timm or clean-fid only where they are asked for.
    with torch.random.fork_rng(devices=[]):
        match name:
            case "fashion-classifier":
                from dsd.features.fashion_classifier import load_fashion_classifier

                return load_fashion_classifier(device)
            case "efficientnet-lite0":
                from dsd.features.efficientnet import load_efficientnet_lite0

                return load_efficientnet_lite0(device)
            case "inception-edm" | "inception-clean":
                from dsd.features.inception import load_inception

                return load_inception(name, device, inception_weights)
            case _ if name.endswith(TORCHSCRIPT_SUFFIXES):
                from dsd.features.custom import load_torchscript

                return load_torchscript(Path(name), device)
            case _:
                from dsd.features.custom import load_custom

                return load_custom(name, device)


def extract(extractor: Extractor, images: Pixels, *, batch_size: int) -> Float64[Tensor, " b d"]:
    """Features of many images, on any device, in float64 on the CPU.

    Neither autocasting nor TF32 of the caller touches the numbers; the extractor must be in
    evaluation mode, as ``load_extractor`` makes it.
    """
    device = extractor.device
    with torch.no_grad(), _full_precision(device):
        batches = [
            extractor(batch.to(device)).double().cpu() for batch in images.split(batch_size)
        ]
    return torch.cat(batches)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Real float32 and convolutions with fixed algorithms, whatever the training around uses."""
    with (
        torch.autocast(device.type, enabled=False),
        float32_products(tf32=False),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
    ):
        yield
