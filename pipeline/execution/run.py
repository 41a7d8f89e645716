"""Running a stage: a training on its device and processes, resumed and retried."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import final

import torch

from dsd.training.compiled import Compilation
from dsd.training.distributed import DistributedContext
from dsd.training.memory import DryRunnable
from dsd.training.state import TrainingState
from dsd.utils.config import Precision
from dsd.utils.errors import Interrupted
from pipeline.execution.checkpoints import (
    CheckpointManager,
    StateWriter,
    begin,
    lock_run_dir,
    mark_finished,
    remove_finished,
    remove_superseded,
    retry_on_nonfinite,
)
from pipeline.execution.device import (
    obstacle_to_compiling,
    resolve_device,
    resolve_precision,
)
from pipeline.execution.distributed import choose_micro_batch_size, init_distributed
from pipeline.execution.origin import Origin
from pipeline.params.model import Params
from pipeline.stage_io.context import Attempt, JobT, StageContext
from pipeline.stage_io.log import StageLog
from pipeline.stage_io.outputs import check_outputs, replaced_outputs
from pipeline.stage_io.paths import Paths

__all__ = ["run_stage"]


def run_stage(module: ModuleType, params: Params, paths: Paths, log: StageLog) -> None:
    """Run the stage of ``module``, one of ``pipeline.stages``, in this process."""
    stage = module.__name__.rpartition(".")[2]
    module.run(StageContext(params, paths, log, _Execution(stage, params, paths, log)))


@final
@dataclass(frozen=True)
class _Execution:
    """See :class:`pipeline.stage_io.context.Execution`."""

    stage: str
    params: Params
    paths: Paths
    log: StageLog

    def device(self) -> torch.device:
        """See :func:`pipeline.execution.device.resolve_device`."""
        return resolve_device(self.params.compute)

    def train(self, build: Callable[[Attempt], JobT], inputs: Mapping[str, str]) -> JobT:
        """Train, write the outputs, and return the finished job.

        Raises:
            BusyError: Another process computes the same.
            OSError: The disk refuses; outputs that cannot be replaced are found before training.
            NonFiniteError: All attempts met a non-finite value.
            ParamsError: There is no such device, or there are more processes than images.
        """
        stage, paths, compute = self.stage, self.paths, self.params.compute
        origin = Origin.here(stage, self.params, paths.root, inputs)
        states, name = paths.state(stage), origin.name
        self.log.trains(name)
        with ExitStack() as held:
            batch_size: int = getattr(self.params, stage).batch_size
            with init_distributed(compute, batch_size) as (distributed, device):
                if distributed.is_main_process:
                    check_outputs(paths, stage)
                    remove_finished(states, paths.root, but=name)
                folder = held.enter_context(lock_run_dir(states / name, distributed))
                if distributed.is_main_process:
                    begin(folder, origin, self.log)
                writer = held.enter_context(StateWriter.started()) if _overlaps(device) else None

                def attempt() -> JobT:
                    precision = resolve_precision(compute, device)
                    job = build(
                        _Attempt(
                            distributed, device, precision, folder, self.params, self.log, writer
                        )
                    )
                    job.train()
                    return job

                job = retry_on_nonfinite(attempt, self.params.run.max_nonfinite_retries, self.log)
            if distributed.is_main_process:
                with replaced_outputs(paths, stage) as fresh:
                    job.write(fresh)
                mark_finished(folder, paths.root)
                remove_superseded(folder, origin)
        return job


def _overlaps(device: torch.device) -> bool:
    """Whether a training on ``device`` can go on while the CPU writes a state."""
    return device.type != "cpu"


@final
@dataclass
class _Attempt:
    """See :class:`pipeline.stage_io.context.Attempt`."""

    distributed: DistributedContext
    device: torch.device
    precision: Precision
    folder: Path
    params: Params
    log: StageLog
    writer: StateWriter | None

    def checkpoints(self, state: TrainingState) -> CheckpointManager:
        """The saved states of this run."""
        minutes = self.params.run.checkpoint_minutes
        return CheckpointManager(
            self.folder,
            state,
            minutes=minutes,
            log=self.log,
            distributed=self.distributed,
            writer=self.writer,
        )

    def compilation(self) -> Compilation | None:
        """What a training tells while it compiles; None, and a line that says why, if it is not.

        Raises:
            ParamsError: It has to be compiled and cannot be.
        """
        obstacle = obstacle_to_compiling(self.params.compute, self.device)
        if obstacle is None:
            return Compilation(self.log.say, self._raise_if_stopping)
        self.log.say(f"steps are not compiled: {obstacle}")
        return None

    def _raise_if_stopping(self) -> None:
        if number := self.log.stop_signal():
            msg = "stopped while compiling, before a step; the same command goes on"
            raise Interrupted(msg, number)

    def choose_micro_batch_size(self, training: DryRunnable) -> None:
        """Choose the size of micro-batches, and log it."""
        self.log.say(
            choose_micro_batch_size(training, self.distributed, self.params.compute, self.device)
        )
