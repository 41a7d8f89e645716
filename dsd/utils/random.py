"""Randomness as a function of names and numbers, so that a resumed run draws the same."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from types import TracebackType
from typing import final

import torch
from torch import Tensor

__all__ = [
    "BatchOrder",
    "DropoutMasks",
    "current_masks",
    "derive_seed",
    "recalled_masks",
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

    def parts(self, parts: Sequence[slice], total: int) -> Iterator[slice]:
        """Each part in turn; networks draw the same for every one of them.

        Args:
            parts: Rows of a batch, all or some of them.
            total: Rows of the whole batch.
        """
        state = self._now()
        for rows in parts:
            self._go_back(state)
            self.take(rows, total)
            yield rows

    def take(self, rows: slice, total: int) -> None:
        """From now on networks are given these rows of a batch of ``total``."""
        self.rows = None if rows == slice(0, total) else rows
        self.total = total

    def _now(self) -> Tensor:
        if self._device.type == "cuda":
            return torch.cuda.get_rng_state(self._device)
        return torch.get_rng_state()

    def _go_back(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)


_masks: ContextVar[DropoutMasks | None] = ContextVar("masks", default=None)


def current_masks() -> DropoutMasks | None:
    """What :func:`seeded_dropout` gave for the step under way; None outside of steps."""
    return _masks.get()


@final
class _Recalled(AbstractContextManager[None]):
    """Gives dropout the rows that were current when this was made, as often as it is entered."""

    def __init__(self) -> None:
        self._then = copy.copy(_masks.get())
        self._token: Token[DropoutMasks | None] | None = None

    def __enter__(self) -> None:
        self._token = _masks.set(self._then)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._token is not None
        _masks.reset(self._token)


def recalled_masks() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a computation now and of its repetition for the gradient.

    By then the step has gone on to other rows of the batch, and for a GPU autograd repeats it in a
    thread of its own, which knows of no step. To be given to ``torch.utils.checkpoint``, which
    itself brings back the state of the randomness.
    """
    return nullcontext(), _Recalled()


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


@final
class BatchOrder:
    """Which images each step takes: every epoch visits each once, in an order of its own.

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
