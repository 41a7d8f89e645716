"""Features of Inception-V3 (2015-12-05), in the two protocols under which FID is published.

Network and weights are the same in both, a port of the TensorFlow graph that Heusel et al. used:
pytorch-fid's blocks as clean-fid ships them, and pytorch-fid's 96 MB of plain tensors, downloaded
once or given as a file. What differs is how images become 299x299, and with it FID:

- ``inception-edm``: TensorFlow 1's bilinear interpolation, without antialiasing, which NVIDIA's
  file of the network holds inside. StyleGAN, EDM, SiD and torch-fidelity measure so; clean-fid
  calls it ``legacy_tensorflow``.
- ``inception-clean``: clean-fid's mode ``clean``, Pillow's bicubic interpolation, antialiased.

Reference:
    Heusel et al. 2017 (arXiv:1706.08500). Parmar et al. 2022, "On aliased resizing and surprising
    subtleties in GAN evaluation" (arXiv:2104.11222), for the difference.
"""

import hashlib
import io
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
import torch
from cleanfid import inception_pytorch as blocks
from cleanfid.resize import build_resizer
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import inception_v3

from dsd.features.pixels import to_rgb
from dsd.metrics.frechet import Moments
from dsd.metrics.statistics_file import load_statistics
from dsd.utils.errors import DataError
from dsd.utils.shapes import Features, Pixels

__all__ = [
    "PROTOCOLS",
    "Inception",
    "cached_weights",
    "load_inception_clean",
    "load_inception_edm",
    "load_published",
]

SIZE = 299

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the file of weights, whose name ends with the first digits: no other bytes are opened."""

_WHAT = f"Inception-V3 2015-12-05 (2048-d pooled, weights {SHA256[:8]}), RGB, {SIZE}x{SIZE} by "
PROTOCOLS = {
    "inception-edm": f"{_WHAT}TensorFlow 1's bilinear (EDM, SiD, StyleGAN)",
    "inception-clean": f"{_WHAT}Pillow's bicubic (clean-fid's mode clean)",
}
"""How features are made, by name of the space."""

_MODES = {
    "legacy_tensorflow": PROTOCOLS["inception-edm"],
    "clean": PROTOCOLS["inception-clean"],
}
"""By clean-fid's names, whose files of statistics are called NAME_MODE_SPLIT_SIZE.npz."""


@final
class Inception:
    """The 2048-d pooled layer of ``network``, in one of the two protocols."""

    dim = 2048

    def __init__(self, name: str, network: nn.Module, device: torch.device) -> None:
        self.name, self.protocol = name, PROTOCOLS[name]
        self._network = network
        self.device = device
        self._enlarge = _tensorflow_bilinear if name == "inception-edm" else _pillow_bicubic

    def __call__(self, images: Pixels) -> Features:
        """Features of 8-bit images of any size, one to three channels."""
        large = self._enlarge(to_rgb(images)).to(self.device)
        features: Tensor = self._network((large - 128) / 128)
        return features


def _tensorflow_bilinear(images: Float[Tensor, " b 3 h w"]) -> Float[Tensor, " b 3 s s"]:
    """Images of 299x299 whose pixel i lies at i * size / 299 of the image."""
    rows, columns = (_between(size).to(images) for size in images.shape[-2:])
    large: Tensor = rows @ images @ columns.T
    return large


def _between(size: int) -> Float[Tensor, " s size"]:
    """Weights of two neighbours each; behind the last pixel there is only itself."""
    place = torch.arange(SIZE, dtype=torch.float64) * size / SIZE
    first = place.long()
    weights = torch.zeros(SIZE, size, dtype=torch.float64)
    weights[torch.arange(SIZE), first] = 1 - (place - first)
    weights[torch.arange(SIZE), (first + 1).clamp(max=size - 1)] += place - first
    return weights


def _pillow_bicubic(images: Float[Tensor, " b 3 h w"]) -> Float[Tensor, " b 3 s s"]:
    resize = build_resizer("clean")
    pictures = images.permute(0, 2, 3, 1).cpu().numpy()
    large = np.stack([resize(picture) for picture in pictures])
    return torch.from_numpy(large).permute(0, 3, 1, 2)


def _load(name: str, device: torch.device, weights: Path | None = None) -> Inception:
    state = _read(_downloaded() if weights is None else weights)
    with torch.device("meta"):  # no time for random weights
        network = _without_weights()
    network.load_state_dict(state, assign=True)
    network.fc = nn.Identity()
    network = network.to(device).eval().requires_grad_(requires_grad=False)
    return Inception(name, network, device)


load_inception_edm = partial(_load, "inception-edm")
load_inception_clean = partial(_load, "inception-clean")


def _without_weights() -> nn.Module:
    """The network of torchvision with the blocks in which TensorFlow's differs."""
    network: nn.Module = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    for part, channels in (("5b", 192), ("5c", 256), ("5d", 288)):
        block = blocks.FIDInceptionA(channels, pool_features=32 if part == "5b" else 64)
        setattr(network, f"Mixed_{part}", block)
    for part, inside in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        setattr(network, f"Mixed_{part}", blocks.FIDInceptionC(768, channels_7x7=inside))
    network.Mixed_7b, network.Mixed_7c = blocks.FIDInceptionE_1(1280), blocks.FIDInceptionE_2(2048)
    return network


def _read(path: Path) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(_useless(path, f"cannot be read ({error.strerror})")) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DataError(_useless(path, "is not Inception's file of weights"))
    state: dict[str, Tensor] = torch.load(
        io.BytesIO(content), map_location="cpu", weights_only=True
    )
    return state


def cached_weights() -> Path:
    """Where downloaded weights are kept, whether they are there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(blocks.FID_WEIGHTS_URL).name


def _downloaded() -> Path:
    path = cached_weights()
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        url = blocks.FID_WEIGHTS_URL
        try:
            torch.hub.download_url_to_file(url, str(path), SHA256, progress=False)
        except (OSError, RuntimeError) as error:  # no network; other bytes
            problem = f"is not there and cannot be downloaded ({error})"
            raise DataError(_useless(path, problem)) from error
    return path


def _useless(path: Path, problem: str) -> str:
    return (
        f"{path}: {problem}. Put {blocks.FID_WEIGHTS_URL} (SHA-256 {SHA256}) there, give the file "
        "by another name, or give none to have it downloaded"
    )


def load_published(path: Path, space: str | None) -> Moments:
    """Statistics of clean images for one of the two protocols, as somebody published them.

    A file that does not say its protocol has that of the mode in its name, or ``inception-edm``'s,
    like EDM's files.

    Args:
        path: The file.
        space: For which of the two spaces it is; may be None where the file says its protocol.

    Raises:
        DataError: The file cannot be read, or has an unknown or another protocol.
    """
    found = load_statistics(path, unlabelled="")
    protocol, source = found.protocol, ""
    if not protocol:
        if space is None:
            msg = (
                f"{path}: these statistics do not say their protocol. Name the features that they "
                f"are for, for example inception-edm:{path}"
            )
            raise DataError(msg)
        named = re.search(r"_(clean|legacy_tensorflow|legacy_pytorch)_", path.name)
        mode = named[1] if named else "legacy_tensorflow"
        protocol, source = _MODES.get(mode, mode), f" (by the file's name: mode {mode})"
    if protocol not in (PROTOCOLS.values() if space is None else {PROTOCOLS[space]}):
        msg = (
            f"{path}: statistics were made by {protocol!r}{source}, which is not the protocol of "
            f"{space or ' or '.join(PROTOCOLS)}. Name other features, or take another file"
        )
        raise DataError(msg)
    return replace(found, protocol=protocol)
