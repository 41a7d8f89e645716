"""Randomness as a function of names and numbers, so that a resumed run draws the same."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import final

import torch
from torch import Tensor

__all__ = [
    "DropoutMasks",
    "batch_indices",
    "current_masks",
    "derive_seed",
    "seeded_dropout",
    "step_generator",
]


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed for the given names and numbers."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def step_generator(seed: int, purpose: str, step: int, device: torch.device) -> torch.Generator:
    """The generator of all random draws of one training step."""
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, step))


@final
class DropoutMasks:
    """Dropout within one step, whose masks belong to whole batches.

    Networks may be given a batch in parts; each part then takes its rows of the masks that the
    whole batch would get.

    Attributes:
        rows: Which rows of a batch networks are given now; None for all.
        total: Rows of that batch.

    Args:
        device: Where networks draw their masks.
    """

    def __init__(self, device: torch.device) -> None:
        self.rows: slice | None = None
        self.total = 0
        self._device = device

    def now(self) -> Tensor:
        """The state of the randomness, for :meth:`parts` to begin with."""
        if self._device.type == "cuda":
            return torch.cuda.get_rng_state(self._device)
        return torch.get_rng_state()

    def parts(
        self, parts: Sequence[slice], total: int, since: Tensor | None = None
    ) -> Iterator[slice]:
        """Each part in turn; networks draw the same for every one of them.

        Args:
            parts: Rows of a batch, all or some of them.
            total: Rows of the whole batch.
            since: State at which each part begins; None for the state now.
        """
        state = self.now() if since is None else since
        for rows in parts:
            self._go_back(state)
            self.take(rows, total)
            yield rows

    def take(self, rows: slice, total: int) -> None:
        """From now on networks are given these rows of a batch of ``total``."""
        self.rows = None if rows == slice(0, total) else rows
        self.total = total

    def _go_back(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)


_masks: ContextVar[DropoutMasks | None] = ContextVar("masks", default=None)


def current_masks() -> DropoutMasks | None:
    """What :func:`seeded_dropout` gave for the step under way; None outside of steps."""
    return _masks.get()


@contextmanager
def seeded_dropout(
    seed: int, purpose: str, step: int, device: torch.device
) -> Iterator[DropoutMasks]:
    """Give dropout, which knows only the global generator, the randomness of this step."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, purpose, "dropout", step))
        masks = DropoutMasks(device)
        token = _masks.set(masks)
        try:
            yield masks
        finally:
            _masks.reset(token)


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
