"""One run at a time computes a stage; runs that need the same find it in DVC's cache afterwards.

A sweep over the distiller needs each teacher several times. Two runs that trained the same one at
the same time would waste a GPU and write the same resumable state.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows.dvc.runner import OnLine, PlannedStage
from pipeline.execution.locks import BusyError, exclusive
from pipeline.params.model import Params
from pipeline.params.reader import leaves

__all__ = ["in_stage_turn"]

_PAUSE_S = 1.0


@contextmanager
def in_stage_turn(
    home: Path, stage: PlannedStage, params: Params, on_line: OnLine
) -> Iterator[None]:
    """Hold the right to compute a stage with these parameters for the length of the block.

    Args:
        home: The workspace whose runs take turns.
        stage: What is to be computed.
        params: Of this run.
        on_line: Told once if another run has to be waited for.
    """
    lock = home / ".dsd" / "locks" / "flows" / f"{stage.name}-{_key(stage, params)}"
    with ExitStack() as stack:
        told = False
        while True:
            try:
                stack.enter_context(exclusive(lock, f"stage {stage.name} with these parameters"))
                break
            except BusyError as error:
                if not told:
                    on_line(f"waiting for another run's result: {error}")
                told = True
                time.sleep(_PAUSE_S)
        yield


def _key(stage: PlannedStage, params: Params) -> str:
    """Equal for runs in which the stage and all before it have equal parameters."""
    values = leaves(params.model_dump(mode="json"))
    sections = tuple(f"{key}." for key in stage.params)
    relevant = {key: value for key, value in values.items() if f"{key}.".startswith(sections)}
    return hashlib.sha256(json.dumps(relevant).encode()).hexdigest()[:16]
