"""How far a stage is, as a Prefect artifact that grows while the stage works."""

import time
from typing import final
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from pipeline.runtime.progress import percent_in

__all__ = ["StageProgress"]

_INTERVAL_S = 5.0


@final
class StageProgress:
    """The progress artifact of a task; it appears with the first line that tells of progress.

    A server that does not answer costs the artifact, not the stage.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: UUID | None = None
        self._shown_at = -_INTERVAL_S
        self._warned = False

    def read(self, line: str) -> None:
        """Look at a line that the stage has printed."""
        percent = percent_in(line)
        if percent is not None and time.monotonic() - self._shown_at >= _INTERVAL_S:
            self._show(percent)

    def finish(self) -> None:
        """The stage is done."""
        if self._artifact is not None:
            self._show(100.0)

    def _show(self, percent: float) -> None:
        self._shown_at = time.monotonic()
        text = f"Images that {self._stage} has worked through"
        try:
            if self._artifact is None:
                key = f"progress-{self._stage}"
                made = create_progress_artifact(percent, key=key, description=text)
                assert isinstance(made, UUID)  # in a task that is not async
                self._artifact = made
            else:
                update_progress_artifact(self._artifact, percent, description=text)
        except Exception as error:  # whatever the client raises
            if not self._warned:
                get_run_logger().warning("the progress cannot be shown now: %s", error)
            self._warned = True
