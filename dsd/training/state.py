"""Training states on disk: one safetensors file, never pickle.

The file is replaced as a whole, so that an interruption while saving leaves the state saved
before.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import final

import torch
from pydantic import JsonValue
from safetensors.torch import load, save
from torch import Tensor, nn, optim

from dsd.model.checkpoint import MISMATCH_ERRORS, first_line
from dsd.utils.errors import DataError
from dsd.utils.files import published

__all__ = ["TrainingState", "read_info", "write_state"]

_INFO = "info"
_DIGEST_BYTES = hashlib.sha256().digest_size


@final
class TrainingState:
    """Named modules and optimisers that are saved and restored together.

    Args:
        modules: Modules whose weights belong to the state.
        optimizers: Optimisers whose moments belong to the state.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], optimizers: Mapping[str, optim.Optimizer]
    ) -> None:
        self._modules = modules
        self._optimizers = optimizers

    def save(self, path: Path, info: Mapping[str, JsonValue]) -> None:
        """Replace the state at ``path`` by the present one, with ``info`` beside it."""
        write_state(path, self._tensors(info))

    def snapshot(self, info: Mapping[str, JsonValue]) -> dict[str, Tensor]:
        """Copy the present state to the CPU, for :func:`write_state` while training goes on."""
        return {key: value.to("cpu", copy=True) for key, value in self._tensors(info).items()}

    def _tensors(self, info: Mapping[str, JsonValue]) -> dict[str, Tensor]:
        tensors = {
            _INFO: torch.frombuffer(bytearray(json.dumps(info).encode()), dtype=torch.uint8)
        }
        for name, module in self._modules.items():
            tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
        for name, optimizer in self._optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}/{index}/{key}": value for key, value in moments.items()}
        return {key: value.detach() for key, value in tensors.items()}

    def load(self, path: Path) -> dict[str, JsonValue]:
        """Restore the state at ``path`` and return its ``info``.

        Raises:
            FileNotFoundError: There is no state.
            DataError: The file is damaged or belongs to other modules, of which some may have
                taken weights from it.
        """
        content = path.read_bytes()
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            msg = f"{path} is damaged: delete it, and the stage starts from the beginning"
            raise DataError(msg)
        try:
            return self._restore(load(data))
        except MISMATCH_ERRORS as error:
            msg = (
                f"{path} is the state of another training ({first_line(error)}): delete it, and "
                "the stage starts from the beginning"
            )
            raise DataError(msg) from error

    def _restore(self, tensors: Mapping[str, Tensor]) -> dict[str, JsonValue]:
        for name, module in self._modules.items():
            module.load_state_dict(_under(name, tensors))
        for name, optimizer in self._optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in _under(name, tensors).items():
                index, moment = key.split("/")  # such as 3/exp_avg
                moments.setdefault(int(index), {})[moment] = value
            optimizer.load_state_dict({"state": moments, "param_groups": groups})
            _match_layout(optimizer)
        return _info(tensors)


def write_state(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace the state at ``path`` by a :meth:`TrainingState.snapshot`.

    Raises:
        OSError: The disk refuses; the state at ``path`` is as before.
    """
    data = save({key: value.cpu().contiguous() for key, value in tensors.items()})
    with published(path) as file:
        file.write(hashlib.sha256(data).digest())
        file.write(data)


def read_info(path: Path) -> dict[str, JsonValue]:
    """Return the ``info`` beside the training state at ``path``.

    Raises:
        FileNotFoundError: There is no state.
        DataError: The file is damaged.
    """
    try:
        return _info(load(path.read_bytes()[_DIGEST_BYTES:]))
    except MISMATCH_ERRORS as error:
        msg = f"{path} is damaged ({first_line(error)})"
        raise DataError(msg) from error


def _info(tensors: Mapping[str, Tensor]) -> dict[str, JsonValue]:
    info: dict[str, JsonValue] = json.loads(bytes(tensors[_INFO].numpy()))
    return info


def _under(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one module or optimiser, without its name."""
    prefix = f"{name}/"
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def _match_layout(optimizer: optim.Optimizer) -> None:
    """Give moments the memory layout of their weights, which fused optimisers take for granted."""
    for weight, moments in optimizer.state.items():
        for key, value in moments.items():
            if value.shape == weight.shape:
                moments[key] = torch.empty_like(weight, requires_grad=False).copy_(value)
