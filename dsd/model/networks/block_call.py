"""How a network calls its blocks: as they are, or compiled."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

__all__ = ["BlockCall", "plain_call"]

BlockCall: TypeAlias = Callable[..., Tensor]
"""Calls its first argument with the others, which are tensors, modules or None."""


def plain_call(block: Callable[..., Tensor], *inputs: nn.Module | Tensor | None) -> Tensor:
    """Call a block as it is."""
    return block(*inputs)
