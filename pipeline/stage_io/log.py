"""What a stage may say while it runs: numbers, progress and lines for the user.

Stages see these protocols only. Where the numbers go (MLflow, a terminal, a log) is decided
outside, so that no stage has to rerun because the tracking changed.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

__all__ = ["Progress", "StageLog"]


class Progress(Protocol):
    """How far a stage is, shown to people; a context manager that ends the display."""

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the display, whatever happened."""
        ...

    def update(self, images: int, **shown: float) -> None:
        """Show that ``images`` are done in total, those of an interrupted run included.

        Args:
            images: Images done so far; the rate counts only those of this process.
            shown: Further values, such as ``proximal_frechet=3.1``; each stays until it changes.
        """
        ...


class StageLog(Protocol):
    """The one object through which a stage reports."""

    def metrics(self, images: int, values: Mapping[str, float]) -> None:
        """Record numbers against the images seen so far; never raises or waits for a server."""
        ...

    def trains(self, name: str) -> None:
        """Say which training it is, by the name of its state.

        Numbers of another training with the same parameters (its code or images were others) are
        no part of this run.
        """
        ...

    def nonfinite_failures(self, count: int) -> None:
        """Record how often this training has met a number that is not finite by now."""
        ...

    def reads(self, name: str, *, digest: str, count: int, shape: Sequence[int]) -> None:
        """Record a set of images that the stage depends on.

        Args:
            name: Which, for people.
            digest: SHA-256 of its content.
            count: Number of images.
            shape: Of one image, [C, H, W].
        """
        ...

    def progress(self, total_images: int) -> Progress:
        """Begin a display that ends at ``total_images``."""
        ...

    def say(self, text: str) -> None:
        """Print one line for the user."""
        ...

    def doing(self, text: str) -> None:
        """Note what is done from now on; printed if nothing else is for some seconds."""
        ...

    def stop_signal(self) -> int | None:
        """Number of the signal that asked the stage to stop, or None.

        Only trainings (``pipeline.stages.STAGES``) have to ask, between steps; once asked
        to stop they save their state and raise :class:`dsd.utils.errors.Interrupted`. All others
        are interrupted at once.
        """
        ...
