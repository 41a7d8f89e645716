"""Training stages that an interruption does not set back.

The state lies outside DVC's outputs (DVC deletes those before each run), in a folder named by a
fingerprint of
everything the result depends on: parameters, inputs and code. The same command therefore continues
exactly the run that was interrupted and never one with other parameters. The folder goes when the
stage is done.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import final

from pydantic import JsonValue

import dsd
from dsd.checkpoint import TrainingState
from dsd.errors import Interrupted
from pipeline.stagelog import StageLog

__all__ = ["Resumable", "fingerprint"]


def fingerprint(values: Mapping[str, JsonValue]) -> str:
    """Name of the run that has these parameters and inputs, with the library as it is now."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    package = Path(dsd.__file__).parent
    for source in sorted(package.rglob("*.py")):
        digest.update(source.relative_to(package).as_posix().encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@final
class Resumable:
    """The saved state of one training run.

    Args:
        folder: Where the states of this stage are.
        name: Fingerprint of the run.
        state: Modules and optimisers to save.
        minutes: Time between two saves.
        log: Where to say that the run was resumed or stopped.
    """

    def __init__(
        self, folder: Path, name: str, state: TrainingState, *, minutes: float, log: StageLog
    ) -> None:
        self.folder = folder / name
        self._state = state
        self._seconds = minutes * 60
        self._saved_at = time.monotonic()
        self._log = log

    def restore(self) -> dict[str, JsonValue] | None:
        """Bring back the state of an interrupted run, or return None where there is none.

        Raises:
            DataError: The state is damaged.
        """
        try:
            info = self._state.load(self.folder / "state")
        except FileNotFoundError:
            return None
        self._log.say(f"resumed after {info['images_seen']:,} images")
        return info

    def save(self, info: Mapping[str, JsonValue]) -> None:
        """Save now."""
        self._state.save(self.folder / "state", info)
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save, or the user asked to stop."""
        waited = time.monotonic() - self._saved_at
        return waited > self._seconds or self._log.stop_signal() is not None

    def stop_if_asked(self, images_seen: int) -> None:
        """Raise :class:`Interrupted` if the user asked to stop; call after :meth:`save`."""
        signal_number = self._log.stop_signal()
        if signal_number is not None:
            msg = f"stopped after {images_seen:,} images; the same command continues from there"
            raise Interrupted(msg, signal_number)

    def clear(self) -> None:
        """Forget the run, which is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)
