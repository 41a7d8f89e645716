"""Carrying out a training: alone or in a team, from its last state, within its strikes."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import torch

from dsd.config import Compute
from dsd.training.team import Team
from pipeline.origin import Origin
from pipeline.outputs import check_outputs, replaced_outputs
from pipeline.paths import Paths
from pipeline.resume import (
    Resumable,
    begin,
    forget_done,
    forget_superseded,
    reserved,
    within_strikes,
)
from pipeline.stagelog import StageLog
from pipeline.team import joined_team

__all__ = ["Trainable", "carry_out"]


class Trainable(Protocol):
    """One attempt at a training.

    Attributes:
        state: Its saved states.
    """

    state: Resumable

    def train(self) -> None:
        """Run all steps that are left; all processes of the team do."""
        ...

    def write(self, paths: Paths) -> None:
        """Write the stage's outputs into empty folders; only the process that leads does."""
        ...


TrainableT = TypeVar("TrainableT", bound=Trainable)
Build: TypeAlias = Callable[[Path, Team, torch.device], TrainableT]


def carry_out(
    build: Build[TrainableT],
    paths: Paths,
    stage: str,
    origin: Origin,
    compute: Compute,
    batch_size: int,
    log: StageLog,
) -> TrainableT:
    """Train, and write the outputs.

    Args:
        build: Makes an attempt as the last state in a folder left it.
        paths: The workspace.
        stage: Of the pipeline.
        origin: All that the result depends on.
        compute: The ``compute`` section.
        batch_size: Images of a step.
        log: Of the stage.

    Returns:
        The attempt that came to its end.

    Raises:
        BusyError: Another process computes the same.
        OSError: The disk refuses. That this user may not replace the outputs is known before the
            training begins.
        NonFiniteError: As many attempts as there may be met a number that is not finite.
        ParamsError: There is no such device, or there are more processes than images.
    """
    states, name = paths.state(stage), origin.name
    log.trains(name)
    with ExitStack() as held:
        with joined_team(compute, batch_size) as (team, device):
            if team.leads:
                check_outputs(paths, stage)
                forget_done(states, paths.root, but=name)
            folder = held.enter_context(reserved(states / name, team))
            if team.leads:
                begin(folder, origin, log)

            def attempt() -> TrainableT:
                run = build(folder, team, device)
                run.train()
                return run

            run = within_strikes(attempt, compute.strikes, log)
        if team.leads:
            with replaced_outputs(paths, stage) as fresh:
                run.write(fresh)
            run.state.done(paths.root)
            forget_superseded(folder, origin)
    return run
