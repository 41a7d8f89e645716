"""Checks that every number of a training is finite.

Nothing is masked, clamped or left out: a NaN or infinite value aborts the attempt. Checkpoints are
written only after all earlier steps were verified.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsd.training.distributed import DistributedContext
from dsd.utils.errors import NonFiniteError
from dsd.utils.shapes import Level

__all__ = ["FiniteCheck", "NonFiniteMonitor", "Norms", "StepOutput", "norm_checks", "norms"]

T = TypeVar("T")

_NAMED = 4
"""Most noise levels or weights that a message names."""

_LAG = 2
"""Steps for which the answer of a GPU may be outstanding."""


@final
@dataclass(frozen=True)
class FiniteCheck:
    """Numbers of one step that must be finite; on the device until read.

    Args:
        term: Name in messages, such as "the teacher's loss".
        values: The numbers.
        sigma: Noise level of each, where each is of one sample.
        module: Network of which they are norms of weights or gradients.
    """

    term: str
    values: Float[Tensor, " n"]
    sigma: Level | None = None
    module: nn.Module | None = None


@runtime_checkable
class StepOutput(Protocol):
    """Record of a step."""

    @property
    def images_seen(self) -> int:
        """Images of all steps so far."""

    @property
    def checks(self) -> Sequence[FiniteCheck]:
        """Numbers that must be finite, causes before effects."""


class Norms(NamedTuple):
    """Norms of a network's gradients and of its weights, in the order of its parameters."""

    gradients: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]


@torch.no_grad()
def norms(weights: list[Tensor]) -> Norms:
    """The norms of weights and of their gradients, after a step of their optimiser.

    A norm is not finite if one number in it is not, or if the sum of their squares is too large
    for float32. Adam could not take such a gradient either: its second moment would be infinite
    and the weight would never move again.

    Args:
        weights: All weights of a network; a missing gradient counts as zero.
    """
    gradients = [w.new_zeros(()) if w.grad is None else w.grad for w in weights]
    pair = (torch.stack(torch._foreach_norm(tensors, 2)) for tensors in (gradients, weights))
    return Norms(*pair)


def norm_checks(name: str, module: nn.Module, found: Norms) -> tuple[FiniteCheck, FiniteCheck]:
    """What must be finite of a network.

    Args:
        name: Name in messages, such as "the teacher".
        module: The network.
        found: Its :func:`norms`.
    """
    return (
        FiniteCheck(f"{name}'s gradients", found.gradients, module=module),
        FiniteCheck(f"{name}'s weights", found.weights, module=module),
    )


@final
class NonFiniteMonitor:
    """Verifies every step; on a GPU two steps later, so that the GPU does not wait.

    Args:
        distributed: The processes of the training, which all raise at the same step.
    """

    def __init__(self, distributed: DistributedContext) -> None:
        self._distributed = distributed
        self._waiting: deque[tuple[StepOutput, _DeferredFlag]] = deque()

    def check(self, step: StepOutput) -> None:
        """Verify a step, or an earlier one.

        Raises:
            NonFiniteError: A number of it is NaN or infinite; the message names the step's images,
                the terms, and their noise levels or weights.
        """
        numbers = torch.cat([vital.values.detach().float() for vital in step.checks])
        answer = _DeferredFlag(numbers.isfinite().all())
        self._waiting.append((step, answer))
        self._verify(_LAG if answer.late else 0)

    def flush(self) -> None:
        """Verify all outstanding steps, as before a state is saved; raises as :meth:`check`."""
        self._verify(0)

    def on_main_process(self, work: Callable[[], T], images_seen: int) -> T | None:
        """Do ``work`` in the main process; where it meets a non-finite pixel all processes raise.

        Returns:
            The result of ``work``; None in all other processes.

        Raises:
            NonFiniteError: ``work`` raised it; ``images_seen`` is added to the message.
        """
        done, found = None, None
        if self._distributed.is_main_process:
            try:
                done = work()
            except NonFiniteError as error:
                found = error
        (bad,) = self._distributed.all_reduce_max(found is not None)
        if bad:
            what = found or "pixels in the main process"
            msg = f"NaN or infinite after {images_seen:,} images: {what}"
            raise NonFiniteError(msg, images_seen) from found
        return done

    def _verify(self, left: int) -> None:
        while len(self._waiting) > left:
            step, answer = self._waiting.popleft()
            (bad,) = self._distributed.all_reduce_max(not answer.read())
            if bad:
                raise NonFiniteError(_diagnosis(step), step.images_seen)


@final
class _DeferredFlag:
    """A truth value on its way from the device."""

    def __init__(self, value: Tensor) -> None:
        self.late = value.is_cuda
        self._value = value
        if self.late:
            self._value = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> bool:
        if self.late:
            self._arrived.synchronize()
        return bool(self._value)


def _diagnosis(step: StepOutput) -> str:
    """Message about a step that is not finite."""
    found = [part for vital in step.checks if (part := _findings(vital))]
    terms = "; ".join(found) or "a number in another process of the training"
    return f"NaN or infinite after {step.images_seen:,} images: {terms}"


def _findings(vital: FiniteCheck) -> str:
    """The numbers that are not finite, in words; empty if there are none."""
    bad = (~vital.values.isfinite()).nonzero().flatten().tolist()
    if not bad:
        return ""
    share = f"{vital.term} ({len(bad)} of {len(vital.values)})"
    if vital.sigma is not None:
        levels = sorted(
            {f"{vital.sigma[number].item():.3g}" for number in bad[:_NAMED]}, key=float
        )
        return f"{share} at sigma {', '.join(levels)}"
    if vital.module is not None:
        named = [name for name, _ in vital.module.named_parameters()]
        return f"{share}, {', '.join(named[number] for number in bad[:_NAMED])}"
    return share
