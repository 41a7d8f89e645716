"""Features kept on disk by the content of what they were made from.

The key of a file is a hash of the images and of the extractor's name and protocol. Invalid files
are computed again silently; write errors are ignored.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float32, Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dsd.features.extractor import Extractor, extract
from dsd.utils.files import published
from dsd.utils.shapes import Pixels

__all__ = ["MAX_BYTES", "FeatureCache", "fingerprint"]

MAX_BYTES = 2**31
"""Size of a cache's folder, 2 GiB: 400,000 images with 1,280 features."""


def fingerprint(images: Pixels) -> str:
    """SHA-256 of the shape and the bytes of images, equal on every device."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    digest.update(images.cpu().contiguous().numpy().data)
    return digest.hexdigest()


@final
class FeatureCache:
    """A folder of features; several processes may share it.

    Args:
        folder: Where the files lie; made when needed.
        max_bytes: Size beyond which the files used longest ago are removed.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def features(
        self, extractor: Extractor, images: Pixels, *, batch_size: int
    ) -> Float64[Tensor, " b d"]:
        """Features as ``dsd.features.extractor.extract`` gives them, from the disk if possible."""
        path = self._folder / f"{_key(extractor, images)}.safetensors"
        found = _read(path)
        if found is None or len(found) != len(images):
            # Extractors compute in float32, so nothing is lost.
            found = extract(extractor, images, batch_size=batch_size).float()
            with suppress(OSError):
                _write(path, found)
                self._trim(keep=path)
        return found.double()

    def _trim(self, *, keep: Path) -> None:
        files = [(file, file.stat()) for file in self._folder.glob("*.safetensors")]
        left = sum(stat.st_size for _, stat in files)
        for file, stat in sorted(files, key=lambda entry: entry[1].st_mtime_ns):
            if left <= self._max_bytes:
                return
            if file != keep:
                file.unlink(missing_ok=True)
                left -= stat.st_size


def _key(extractor: Extractor, images: Pixels) -> str:
    parts = (extractor.name, extractor.protocol, fingerprint(images))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(path: Path) -> Float32[Tensor, " b d"] | None:
    """Features that are exactly what was written, or None."""
    try:
        with safe_open(path, "pt") as file:
            features: Tensor = file.get_tensor("features")
            written = (file.metadata() or {}).get("sha256")
        os.utime(path)
    except (OSError, SafetensorError):
        return None
    whole = features.dtype == torch.float32 and features.ndim == 2
    return features if whole and written == _digest(features) else None


def _write(path: Path, features: Float32[Tensor, " b d"]) -> None:
    with published(path) as file:
        file.write(save({"features": features}, {"sha256": _digest(features)}))


def _digest(features: Tensor) -> str:
    return hashlib.sha256(features.contiguous().numpy().data).hexdigest()
