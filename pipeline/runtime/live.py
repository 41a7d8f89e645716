"""What a stage at work has to show: its numbers, how far it is and where its pictures are.

A small file beside the workspace says so to ``python -m pipeline watch``, another process. The
training does not wait for it: the thread of the :class:`pipeline.runtime.progress.Speaker` writes.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, final

from dsd.utils.files import write_json
from pipeline.runtime.progress import Speaker
from pipeline.stage_io.log import Progress, StageLog
from pipeline.stage_io.paths import Paths

__all__ = ["LiveLog"]

_WRITE_SECONDS = 2.0


@final
class LiveLog(AbstractContextManager["LiveLog"]):
    """A stage's log that passes everything on, and keeps what ``watch`` shows.

    Args:
        stage: Stage of the pipeline.
        paths: Its workspace.
        log: Where everything goes.
        speaker: Knows what the stage does and how far it is.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self,
        stage: str,
        paths: Paths,
        log: StageLog,
        speaker: Speaker,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage, self._paths, self._log, self._speaker = stage, paths, log, speaker
        self._clock, self._written_at = clock, -_WRITE_SECONDS
        self._file = paths.live / f"{socket.gethostname()}-{os.getpid()}.json"
        self._guard = threading.Lock()
        self._curves: dict[str, dict[int, float]] = {}
        self._state: str | None = None
        self.nonfinite_failures = log.nonfinite_failures
        self.reads = log.reads
        self.progress: Callable[[int], Progress] = log.progress
        self.say = log.say
        self.doing = log.doing
        self.stop_signal = log.stop_signal

    def __exit__(self, *error: object) -> None:
        """Remove the note."""
        with self._guard, suppress(OSError):
            self._written_at = float("inf")
            self._file.unlink(missing_ok=True)

    def metrics(self, images: int, values: Mapping[str, float]) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.metrics`."""
        with self._guard:
            for name, value in values.items():
                self._curves.setdefault(name, {})[images] = value
        self._log.metrics(images, values)

    def trains(self, name: str) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.trains`."""
        self._state = str(self._paths.state(self._stage) / name)
        self._log.trains(name)

    def write(self) -> None:
        """Write the note, at most every two seconds."""
        with self._guard:
            if self._clock() - self._written_at >= _WRITE_SECONDS:
                self._written_at = self._clock()
                # A full disk is reported by what matters.
                with suppress(OSError):
                    write_json(self._file, self._note())

    def _note(self) -> dict[str, Any]:
        speaker = self._speaker
        return {
            "stage": self._stage,
            "root": str(self._paths.root.resolve()),
            "experiment": os.environ.get("DVC_EXP_NAME"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "at": time.time(),
            "doing": speaker.what,
            "images": speaker.images,
            "total_images": speaker.total_images,
            "seconds_left": speaker.seconds_left,
            "later_seconds": speaker.later_seconds,
            "state": self._state,
            "curves": {name: _pairs(curve) for name, curve in self._curves.items()},
        }


def _pairs(curve: Mapping[int, float]) -> Sequence[tuple[int, float]]:
    return sorted(curve.items())
