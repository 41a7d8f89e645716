"""Features of clean-fid's Inception-V3: the space of the paper's FID.

Resizing (Pillow's bicubic to 299x299, float result), scaling and network are clean-fid's own code;
the 91 MB of weights are downloaded once or given as a file.
"""

from pathlib import Path
from typing import final

import numpy as np
import torch
from cleanfid.downloads_helper import inception_url
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import Tensor, nn

from dsd.errors import DataError
from dsd.features.pixels import to_rgb
from dsd.shapes import Features, Pixels

__all__ = ["Inception", "cached_weights", "load_inception"]

FILE_NAME = "inception-2015-12-05.pt"
"""The only name under which clean-fid looks for its weights."""


@final
class Inception:
    """The 2048-d pooled layer, as clean-fid's mode ``clean`` computes it.

    Args:
        network: clean-fid's wrapper; takes 299x299 images in [0, 255].
        device: Where the network is.
    """

    name = "inception"
    dim = 2048
    protocol = "clean-fid, Inception-V3 2015-12-05 (2048-d pooled), 299x299 by Pillow's bicubic"

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network = network
        self.device = device
        self._resize = build_resizer("clean")

    def __call__(self, images: Pixels) -> Features:
        """Features of 8-bit images of any size, one or three channels."""
        pictures = to_rgb(images).permute(0, 2, 3, 1).cpu().numpy()
        large = np.stack([self._resize(picture) for picture in pictures])
        inputs = torch.from_numpy(large).permute(0, 3, 1, 2).to(self.device)
        features: Tensor = self._network(inputs)
        return features


def load_inception(device: torch.device, weights: Path | None) -> Inception:
    """clean-fid's network with the weights in a file, or downloaded to torch's cache.

    Raises:
        DataError: The file is missing, has another name, is broken or cannot be downloaded.
    """
    path = _downloaded() if weights is None else _checked(weights)
    try:
        network = InceptionV3W(str(path.parent), download=False)
    except (RuntimeError, AttributeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        msg = (
            f"{path}: is not clean-fid's Inception ({reason}); "
            f"delete it and take the file from {inception_url}"
        )
        raise DataError(msg) from error
    network = network.to(device).eval().requires_grad_(requires_grad=False)
    return Inception(network, device)


def _checked(path: Path) -> Path:
    if path.name == FILE_NAME and path.is_file():
        return path
    what = "there is no such file" if path.name == FILE_NAME else f"must be called {FILE_NAME}"
    msg = (
        f"evaluate.inception_weights: {path}: {what}; "
        f"get it from {inception_url} or set the key to null to download it"
    )
    raise DataError(msg)


def cached_weights() -> Path:
    """Where downloaded weights are kept, whether they are there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME


def _downloaded() -> Path:
    """Weights in torch's cache, fetched when they are not there yet."""
    path = cached_weights()
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(inception_url, str(path))
    except OSError as error:  # urllib's URLError is one
        msg = (
            f"{path}: Inception's weights are not there and cannot be downloaded ({error}); "
            f"get {inception_url} on another machine and either put it there "
            "or name the file in evaluate.inception_weights"
        )
        raise DataError(msg) from error
    return path
