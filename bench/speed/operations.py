"""What a step does, operation by operation: its arithmetic, and the bytes that it moves."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from time import perf_counter
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Ledger", "Operation"]

_OVERWRITING = frozenset(
    ("bernoulli_", "copy_", "exponential_", "fill_", "normal_", "random_", "uniform_", "zero_")
)
"""What does not read that in which it writes; the same on lists has ``_foreach_`` before it."""

_CHOOSING = frozenset(("embedding", "gather", "index", "index_select", "take"))
"""What reads no more of anything than it gives."""

_ONLY_READ = {("_fused_adam_", "grads"), ("_fused_adamw_", "grads")}
"""Declared as written, which they are only where gradients are scaled."""


@final
class Operation(NamedTuple):
    """A call of one of PyTorch's operators."""

    name: str
    flops: float
    """As ``torch.utils.flop_counter`` counts them: of products and convolutions."""

    moved: float
    """Bytes of what it reads and writes, each counted once."""


@final
class Ledger(TorchDispatchMode):
    """Lists what is done under it, forward and backward, as PyTorch does it without compiling.

    Views are not listed, nor is memory that is taken but not written. An operator on lists of
    tensors, as a fused optimiser is, is one operation.

    Args:
        device: Where it is done.

    Attributes:
        operations: How often each was done.
        seconds: What all calls of an operator took, by its name.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self.operations = Counter[Operation]()
        self.seconds = defaultdict[str, float](float)

    def __torch_dispatch__(
        self,
        func: OpOverload[..., Any],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Do it, and list it."""
        kwargs = kwargs or {}
        if not func.has_kernel_for_dispatch_key(DispatchKey.CPU):
            # Under `inference_mode` operators that are made of others are not yet taken apart.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        started = perf_counter()
        result = func(*args, **kwargs)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = perf_counter() - started
        moved = _moved(func, _values(func, args, kwargs), result)
        if moved:
            name = func.overloadpacket.__name__
            self.seconds[name] += seconds
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **kwargs, out_val=result) if count else 0
            self.operations[Operation(name, float(flops), moved)] += 1
        return result


def _values(
    func: OpOverload[..., Any], args: Sequence[object], kwargs: Mapping[str, object]
) -> list[tuple[torch.Argument, list[Tensor]]]:
    """The tensors that each argument was given."""
    declared = func._schema.arguments
    names = [argument.name for argument in declared]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return [(told, _tensors(given.get(told.name))) for told in declared]


def _moved(
    func: OpOverload[..., Any],
    values: Sequence[tuple[torch.Argument, list[Tensor]]],
    result: object,
) -> float:
    """Bytes that must be read and written; 0 for views and for memory that is only taken."""
    name = func.overloadpacket.__name__
    there = {_storage(tensor) for _, tensors in values for tensor in tensors}
    made = [tensor for tensor in _tensors(result) if _storage(tensor) not in there]
    changed = [each for told, tensors in values if _writes(name, told) for each in tensors]
    only_shapes = "empty" in name or torch.Tag.inplace_view in func.tags
    if only_shapes or not (made or changed):
        return 0.0
    read = [each for told, tensors in values if _reads(name, told) for each in tensors]
    if name in _CHOOSING:
        return 2.0 * _size(made)
    return float(_size(read) + _size(changed) + _size(made))


def _writes(name: str, argument: torch.Argument) -> bool:
    told = argument.alias_info
    return told is not None and told.is_write and (name, argument.name) not in _ONLY_READ


def _reads(name: str, argument: torch.Argument) -> bool:
    if name.endswith("_like") or name.startswith("new_"):
        return False  # of these only the shape matters
    overwritten = name.removeprefix("_foreach_") in _OVERWRITING or argument.is_out
    return not (overwritten and _writes(name, argument))


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes in memory of different tensors: what is expanded lies there once."""
    places = {
        (_storage(tensor), tensor.storage_offset(), tensor.shape, tensor.stride()): tensor
        for tensor in tensors
    }
    return sum(map(_bytes, places.values()))


def _bytes(tensor: Tensor) -> int:
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    size: int = tensor.element_size() * prod(size for size, stride in sizes if stride or not size)
    return size
