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

__all__ = ["stage_lock"]

_PAUSE_S = 1.0


@contextmanager
def stage_lock(home: Path, stage: PlannedStage, params: Params, on_line: OnLine) -> Iterator[None]:
    """Hold the right to compute a stage with these parameters for the length of the block.

    Args:
        home: The workspace whose runs take turns.
        stage: What is to be computed.
        params: Of this run.
        on_line: Called once if another run has to be waited for.
    """
    # Equal for runs in which the stage and all before it have equal parameters.
    sections = tuple(f"{key}." for key in stage.params)
    values = leaves(params.model_dump(mode="json")).items()
    relevant = {key: value for key, value in values if f"{key}.".startswith(sections)}
    digest = hashlib.sha256(json.dumps(relevant).encode()).hexdigest()[:16]
    lock = home / ".dsd" / "locks" / "flows" / f"{stage.name}-{digest}"
    with ExitStack() as stack:
        waiting = False
        while True:
            try:
                stack.enter_context(exclusive(lock, f"stage {stage.name} with these parameters"))
                break
            except BusyError as error:
                if not waiting:
                    on_line(f"waiting for another run's result: {error}")
                waiting = True
                time.sleep(_PAUSE_S)
        yield
