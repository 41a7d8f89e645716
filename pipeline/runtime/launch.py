"""Running one stage in several processes: how many, how they start, and how their end is told.

The command that the user or DVC started becomes PyTorch's launcher. The processes that it starts
run the same command; the first of them does all that one process alone would do, the others only
compute. What goes wrong in any of them is told once, by the launcher.
"""

import json
import logging
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Self, final

from dsd.utils.errors import DsdError, ParamsError
from pipeline.runtime.parent_death import end_with_parent
from pipeline.runtime.signals import StopSignal
from pipeline.stages import TRAININGS

# torch is imported where it is used: --help must not wait for it.
if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import (
        ChildFailedError,
        ProcessFailure,
    )
    from torch.distributed.launcher.api import LaunchConfig

    from pipeline.params.model import Params

__all__ = [
    "PROCESSES",
    "FollowerLog",
    "WorkerError",
    "become_worker",
    "is_worker",
    "leads",
    "num_processes",
    "start",
    "tell",
    "wait_for_the_end",
]

PROCESSES = "DSD_PROCESSES"
"""Environment variable with the number of processes of a training; unset: one for each GPU."""

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_END_SECONDS = 60


@final
class WorkerError(DsdError):
    """What ended one of several processes first, and all others after it.

    Args:
        message: Of that process.
        exit_code: Of that process.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class FollowerLog:
    """The log of a process that only computes: silent, but it hears signals.

    It is its own display of progress too.
    """

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop

    def metrics(self, images: int, values: Mapping[str, float]) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.metrics`."""

    def trains(self, name: str) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.trains`."""

    def nonfinite_failures(self, count: int) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.nonfinite_failures`."""

    def reads(self, name: str, *, digest: str, count: int, shape: Sequence[int]) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.reads`."""

    def progress(self, total_images: int) -> Self:
        """See :meth:`pipeline.stage_io.log.StageLog.progress`."""
        return self

    def say(self, text: str) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.say`."""

    def stop_signal(self) -> int | None:
        """See :meth:`pipeline.stage_io.log.StageLog.stop_signal`."""
        return self._stop.number

    def update(self, images: int, **shown: float) -> None:
        """See :meth:`pipeline.stage_io.log.Progress.update`."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to end."""


def is_worker() -> bool:
    """Whether PyTorch's launcher started this process, be it ours or ``torchrun``."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def leads() -> bool:
    """Whether this process writes and speaks for all."""
    return not is_worker() or os.environ["RANK"] == "0"


def become_worker(stage: str) -> None:
    """Tie this process to its launcher: end with it, and leave what goes wrong to it to tell.

    Raises:
        ParamsError: The stage has nothing for several processes to do.
    """
    end_with_parent(os.getppid())
    sys.excepthook = _tell_all
    if stage not in TRAININGS:
        msg = f"{stage} runs in one process: start `python -m pipeline {stage}` without torchrun"
        raise ParamsError(msg)


def num_processes(stage: str, params: "Params") -> int:
    """In how many processes a stage is to run here.

    Raises:
        ParamsError: ``DSD_PROCESSES`` is no count, or more than there is work or are GPUs for.
    """
    if stage not in TRAININGS:
        return 1
    batch: int = getattr(params, stage).batch_size
    asked = os.environ.get(PROCESSES, "")
    count, gpus = _count(asked), 0 if params.compute.device == "cpu" else _visible_gpus()
    if count is None:
        return max(1, min(gpus, batch))
    if count > batch:
        msg = (
            f"{PROCESSES} is {count}, but {stage}.batch_size is {batch}: lower it to that at most"
        )
        raise ParamsError(msg)
    if 0 < gpus < count:
        msg = f"{PROCESSES} is {count}, but torch sees {gpus} GPUs: lower it, or unset it"
        raise ParamsError(msg)
    return count


def _count(asked: str) -> int | None:
    if not asked:
        return None
    if not asked.isdecimal() or int(asked) < 1:
        msg = (
            f"{PROCESSES} is {asked!r}, but must be a whole number >= 1; unset it to use all GPUs"
        )
        raise ParamsError(msg)
    return int(asked)


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def start(stage: str, count: int) -> None:
    """Run a stage in ``count`` processes on this machine, and wait for their end.

    Raises:
        WorkerError: One of them failed, or all were stopped.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    # One message tells what happened; the launcher would tell it in many lines.
    logging.disable()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with TemporaryDirectory(prefix="dsd-processes-") as folder:
        run = elastic_launch(_config(count, folder), sys.executable)
        try:
            run("-m", "pipeline", stage)
        except ChildFailedError as error:
            raise _cause(error, folder) from error
        except SignalException as error:
            raise _leaders_word(folder, 128 + error.sigval) from error


def _config(count: int, folder: str) -> "LaunchConfig":
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    # Like StopSignal: a hang-up that is ignored, as under nohup, stays ignored.
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    heard = [n.name for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
    silent = dict.fromkeys(range(1, count), Std.ALL)
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(folder, redirects=silent),
        signals_to_handle=",".join(heard),
    )


def tell(message: str, code: int) -> int:
    """Tell what ended this process: the user, or the launcher, which tells what came first.

    Returns:
        The exit code.
    """
    file = os.environ.get(_ERROR_FILE)
    if file is None:
        print(f"error: {message}", file=sys.stderr)
    else:
        # The format of PyTorch's launcher, with the exit code besides.
        told = {"message": message, "timestamp": time.time(), "code": code}
        Path(file).write_text(json.dumps(told), encoding="utf-8")
    return code


def _tell_all(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    lines = traceback.format_exception(kind, error, trace)
    tell("".join(lines).rstrip(), 1)


def wait_for_the_end() -> None:
    """Wait until the launcher, which hears from the process that failed, ends this one too."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_END_SECONDS)


def _cause(error: "ChildFailedError", folder: str) -> WorkerError:
    """What ended the first process that was seen to fail; the others were ended because of it."""
    rank, failure = next(iter(error.failures.items()))
    told = failure.error_file_data
    if "code" in told:
        return WorkerError(told["message"], told["code"])
    return _untold(rank, failure, folder)


def _leaders_word(folder: str, code: int) -> WorkerError:
    """What the process that leads has told when all were asked to stop."""
    for file in Path(folder).rglob("0/error.json"):
        told = json.loads(file.read_text(encoding="utf-8"))
        return WorkerError(told["message"], told["code"])
    return WorkerError("stopped before it began; the same command starts it again", code)


def _untold(rank: int, failure: "ProcessFailure", folder: str) -> WorkerError:
    """The end of a process that could not tell."""
    if failure.exitcode < 0:
        msg = (
            f"process {rank} was ended by {failure.signal_name()} (is memory short?); the same "
            "command continues from the last saved state"
        )
        return WorkerError(msg, 128 - failure.exitcode)
    files = Path(folder).rglob(f"{failure.local_rank}/stderr.log")
    last = [line for file in files for line in file.read_text("utf-8", "replace").splitlines()]
    msg = f"process {rank} ended with code {failure.exitcode}: {' '.join(last[-1:])}"
    return WorkerError(msg, failure.exitcode)
