"""Randomness as a function of names and numbers, so that a resumed run draws the same."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

__all__ = ["EpochSampler", "derive_seed", "seeded_dropout", "step_generator"]


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed for the given names and numbers."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def step_generator(seed: int, purpose: str, step: int, device: torch.device) -> torch.Generator:
    """The generator of all random draws of one training step."""
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, step))


@contextmanager
def seeded_dropout(
    seed: int, purpose: str, step: int, device: torch.device, rank: int = 0
) -> Iterator[None]:
    """Seed dropout, which draws from the global generator, for one step of one process."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, purpose, "dropout", step, rank))
        yield


@final
class EpochSampler:
    """Numbers of the images of each step: every epoch visits each once, in another order.

    The order of one epoch stays on the device, so that a step neither shuffles all images nor
    sends anything there.

    Args:
        seed: Of the orders.
        count: Number of images.
        device: Where their numbers are needed.
    """

    def __init__(self, seed: int, count: int, device: torch.device) -> None:
        self._seed = seed
        self._count = count
        self._device = device
        self._epoch = -1
        self._order = torch.empty(0)

    def batch(self, step: int, batch_size: int) -> Tensor:
        """Numbers of the images of one step, a function of ``step``."""
        start, count = step * batch_size, self._count
        stop = start + batch_size
        return torch.cat(
            [
                self._of(epoch)[max(start - epoch * count, 0) : stop - epoch * count]
                for epoch in range(start // count, (stop - 1) // count + 1)
            ]
        )

    def _of(self, epoch: int) -> Tensor:
        """The order of an epoch: the one that is kept, or another one, to be kept from now on."""
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
            order = torch.randperm(self._count, generator=generator)
            self._epoch, self._order = epoch, order.to(self._device)
        return self._order
