"""What is measured: something that a process of its own does again and again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import torch

__all__ = ["MakeWork", "Work"]


@final
@dataclass(frozen=True)
class Work:
    """Something to do, and how much of what it is."""

    do: Callable[[], object]
    """Do it once; if it finds a dictionary, that is told."""

    items: float
    """Images, megabytes, steps, ... in one go."""

    moved: float | None = None
    """Bytes that must be read and written at least, where that is the limit."""

    counted: bool = False
    """Whether PyTorch's operations are the limit, so that they are to be listed."""

    facts: Mapping[str, float] = field(default_factory=dict)
    """What else is to be known of it."""


MakeWork: TypeAlias = Callable[[torch.device, Mapping[str, Any]], Work]
"""Makes work on a device from options that JSON can say."""
