"""A user's own feature extractor: a function in a module, or a TorchScript file.

Both get 8-bit images as they are, ``uint8 [b, c, h, w]`` with any number of channels, and return
``[b, d]`` features; resizing, scaling and the use of channels are theirs. A TorchScript file runs
no Python, but it is code all the same: load only what you trust.
"""

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from dsd.features.extractor import Extractor
from dsd.utils.errors import DataError, ParamsError
from dsd.utils.functions import import_function
from dsd.utils.shapes import Features, Pixels

__all__ = ["CustomExtractor", "load_custom", "load_torchscript"]


@final
class CustomExtractor:
    """A user's network whose output is checked; ``content`` is a hash of code and weights."""

    def __init__(
        self, network: nn.Module, device: torch.device, *, name: str, content: str
    ) -> None:
        self._network = network
        self.device = device
        self.name = name
        self.protocol = f"{name} (sha256 {content}), images as saved"

    def __call__(self, images: Pixels) -> Features:
        """Features of 8-bit images.

        Raises:
            DataError: The network fails or returns anything but finite ``[b, d]`` numbers.
        """
        try:
            with torch.no_grad():
                features = self._network(images)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise self._refusal(images, f"failed ({reason})") from error
        if not isinstance(features, Tensor) or not features.is_floating_point():
            raise self._refusal(images, f"returned {_kind(features)}")
        if features.ndim != 2 or len(features) != len(images):
            raise self._refusal(images, f"returned shape {[*features.shape]}")
        if not features.isfinite().all():
            raise self._refusal(images, "returned NaN or infinite numbers")
        return features.float()

    def _refusal(self, images: Pixels, problem: str) -> DataError:
        return DataError(
            f"feature extractor {self.name} {problem} for uint8 images {[*images.shape]}; "
            "it must return finite floating-point numbers [images, features]"
        )


def load_custom(name: str, device: torch.device) -> Extractor:
    """Call ``package.module:function`` with ``device``.

    It returns an extractor, which is taken as it is, or a ``torch.nn.Module``.

    Raises:
        ParamsError: Nothing can be imported under that name, or it returns something else.
    """
    make = import_function(name, "feature extractor", of="the device")
    made = make(device)
    if isinstance(made, Extractor):
        return made
    if not isinstance(made, nn.Module):
        msg = (
            f"feature extractor {name} returned {_kind(made)}; "
            "it must return a torch.nn.Module or a dsd.features.extractor.Extractor"
        )
        raise ParamsError(msg)
    content = _hash_of(_source(make), *_weights(made))
    return CustomExtractor(made.to(device).eval(), device, name=name, content=content)


def _source(function: Callable[..., Any]) -> bytes:
    """The file that defines a function, if it has one."""
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        return b""
    return b"" if file is None else Path(file).read_bytes()


def _weights(network: nn.Module) -> list[bytes]:
    tensors = (value.cpu().flatten().contiguous() for value in network.state_dict().values())
    return [tensor.view(torch.uint8).numpy().tobytes() for tensor in tensors]


def load_torchscript(path: Path, device: torch.device) -> CustomExtractor:
    """A TorchScript file as an extractor; its name is the path as given.

    Raises:
        DataError: The file is missing or no TorchScript.
    """
    try:
        raw = path.read_bytes()
        network = torch.jit.load(path, map_location=device)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        msg = (
            f"feature extractor {path} cannot be read as TorchScript ({reason}); "
            "write it with torch.jit.save"
        )
        raise DataError(msg) from error
    return CustomExtractor(network.eval(), device, name=str(path), content=_hash_of(raw))


def _hash_of(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def _kind(value: object) -> str:
    return f"{value.dtype} numbers" if isinstance(value, Tensor) else f"a {type(value).__name__}"
