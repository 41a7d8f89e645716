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
from dsd.errors import DataError, Interrupted
from dsd.training.team import Team
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
        team: The processes of the run; all read the state, one writes it, and all stop together.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        state: TrainingState,
        *,
        minutes: float,
        log: StageLog,
        team: Team,
    ) -> None:
        self.folder = folder / name
        self._state = state
        self._team = team
        self._signal = 0
        self._seconds = minutes * 60
        self._saved_at = time.monotonic()
        self._log = log

    def restore(self) -> dict[str, JsonValue] | None:
        """Bring back the state of an interrupted run, or return None where there is none.

        Raises:
            DataError: The state is damaged, or not the same for all processes.
        """
        info = self._load()
        seen = -1 if info is None else info["images_seen"]
        assert isinstance(seen, int)
        most, least = self._team.largest(seen, -seen)
        if most != -least:
            msg = (
                f"{self.folder} is not the same for all processes: let them share one workspace, "
                "or delete it everywhere"
            )
            raise DataError(msg)
        if info is not None:
            self._log.say(f"resumed after {seen:,} images")
        return info

    def _load(self) -> dict[str, JsonValue] | None:
        try:
            return self._state.load(self.folder / "state")
        except FileNotFoundError:
            return None

    def save(self, info: Mapping[str, JsonValue]) -> None:
        """Save now, in the process that leads."""
        if self._team.leads:
            self._state.save(self.folder / "state", info)
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save, or one process was asked to stop; all hear the same."""
        waited = time.monotonic() - self._saved_at > self._seconds
        late, number = self._team.largest(waited, self._log.stop_signal() or 0)
        self._signal = int(number)
        return bool(late or number)

    def stop_if_asked(self, images_seen: int) -> None:
        """Raise :class:`Interrupted` if :meth:`due` heard of a signal; call after :meth:`save`."""
        if self._signal:
            msg = f"stopped after {images_seen:,} images; the same command continues from there"
            raise Interrupted(msg, self._signal)

    def clear(self) -> None:
        """Forget the run, which is complete."""
        # First the state: killed in between, a run must not go on without the files it counts on.
        (self.folder / "state").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
