"""Randomness as a function of names and numbers, so that a resumed run draws the same."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["batch_indices", "derive_seed", "seeded_dropout", "step_generator"]


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed for the given names and numbers."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def step_generator(seed: int, purpose: str, step: int, device: torch.device) -> torch.Generator:
    """The generator of all random draws of one training step."""
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, step))


@contextmanager
def seeded_dropout(seed: int, purpose: str, step: int, device: torch.device) -> Iterator[None]:
    """Give dropout, which knows only the global generator, the randomness of this step."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, purpose, "dropout", step))
        yield


def batch_indices(seed: int, step: int, *, batch_size: int, count: int) -> Tensor:
    """Images of one step; every epoch visits each of ``count`` images once, in its own order."""
    start = step * batch_size
    stop = start + batch_size
    chosen = []
    for epoch in range(start // count, (stop - 1) // count + 1):
        order = _epoch_order(seed, epoch, count)
        chosen.append(order[max(start - epoch * count, 0) : stop - epoch * count])
    return torch.cat(chosen)


def _epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator)
