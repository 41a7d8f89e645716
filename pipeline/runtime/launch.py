"""Running one stage in several processes and reporting the first failure.

The command that the user or DVC started becomes PyTorch's launcher. The processes that it starts
run the same command; the first of them does all that one process alone would do, the others only
compute. The launcher reports the first error, once.
"""

import json
import logging
import os
import signal
import sys
import time
import traceback
import uuid
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from dsd.utils.errors import DsdError, ParamsError
from pipeline.runtime.hosts import Meeting, joined_by
from pipeline.runtime.limits import available_cpus
from pipeline.runtime.parent_death import end_with_parent
from pipeline.runtime.signals import StopSignal
from pipeline.stage_io.log import Progress
from pipeline.stages import TRAININGS

# torch is imported where it is used: --help must not wait for it.
if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

    from pipeline.params.model import Params

__all__ = [
    "PROCESSES",
    "NullLog",
    "WorkerError",
    "is_main_process",
    "is_worker",
    "num_processes",
    "report_error",
    "setup_worker",
    "start",
    "wait_for_termination",
]

PROCESSES = "DSD_PROCESSES"
"""Environment variable with the number of processes of a training; unset: one for each GPU."""

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_END_SECONDS = 10
"""For the launcher to end this process, which it does within a moment."""


@final
class WorkerError(DsdError):
    """The first failure of several processes, which ended the others.

    Args:
        message: Of that process.
        exit_code: Of that process.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NullLog(AbstractContextManager[Any]):
    """The log of a process that only computes: silent, except that it receives signals.

    It is its own display of progress too.
    """

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop

    def _ignore(self, *args: object, **kwargs: object) -> None:
        """Do nothing; see :class:`pipeline.stage_io.log.StageLog`."""

    metrics = trains = nonfinite_failures = reads = _ignore

    def say(self, text: str) -> None:
        """Do nothing; see :meth:`pipeline.stage_io.log.StageLog.say`."""

    def doing(self, text: str) -> None:
        """Do nothing; see :meth:`pipeline.stage_io.log.StageLog.doing`."""

    def update(self, images: int, **shown: float) -> None:
        """Do nothing; see :meth:`pipeline.stage_io.log.Progress.update`."""

    def progress(self, total_images: int) -> Progress:
        """See :meth:`pipeline.stage_io.log.StageLog.progress`."""
        return self

    def stop_signal(self) -> int | None:
        """See :meth:`pipeline.stage_io.log.StageLog.stop_signal`."""
        return self._stop.number

    def __exit__(self, *error: object) -> None:
        """Do nothing."""


def is_worker() -> bool:
    """Whether PyTorch's launcher started this process, be it ours or ``torchrun``."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_main_process() -> bool:
    """Whether this process writes and logs for all."""
    return not is_worker() or os.environ["RANK"] == "0"


def setup_worker(stage: str) -> None:
    """Tie this process to its launcher: end with it, and let it report errors.

    Raises:
        ParamsError: The stage has nothing for several processes to do.
    """
    end_with_parent(os.getppid())
    sys.excepthook = _report_traceback
    if stage not in TRAININGS:
        msg = f"{stage} runs in one process: start `python -m pipeline {stage}` without torchrun"
        raise ParamsError(msg)


def num_processes(stage: str, params: "Params", hosts: int = 1) -> int:
    """Number of processes in which a stage is to run here, and on each other host.

    Raises:
        ParamsError: ``DSD_PROCESSES`` is no count, or more than there is work or are GPUs for.
    """
    if stage not in TRAININGS:
        return 1
    import torch

    batch: int = getattr(params, stage).batch_size
    gpus = 0 if params.compute.device == "cpu" else torch.cuda.device_count()
    asked = os.environ.get(PROCESSES, "")
    if not asked:
        return max(1, min(gpus, batch // hosts))
    if not asked.isdecimal() or int(asked) < 1:
        msg = (
            f"{PROCESSES} is {asked!r}, but must be a whole number >= 1; unset it to use all GPUs"
        )
        raise ParamsError(msg)
    if int(asked) * hosts > batch:
        msg = (
            f"{PROCESSES} is {asked}, but {stage}.batch_size is {batch}: lower it to "
            f"{batch // hosts} at most"
        )
        raise ParamsError(msg)
    if 0 < gpus < int(asked):
        msg = f"{PROCESSES} is {asked}, but torch sees {gpus} GPUs: lower it, or unset it"
        raise ParamsError(msg)
    return int(asked)


def start(stage: str, count: int, hosts: int = 1) -> None:
    """Run a stage in ``count`` processes on each of these hosts, and wait for their end.

    Raises:
        WorkerError: One of them failed, or all were stopped.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    logging.disable()  # the launcher would tell in many lines what one message tells
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // count)))
    with ExitStack() as held:
        folder = held.enter_context(TemporaryDirectory(prefix="dsd-processes-"))
        config, others = _config(count, folder), None
        if hosts > 1:
            meeting = Meeting(hosts)
            _meet(config, meeting)
            others = held.enter_context(joined_by(meeting, stage, count))
        try:
            elastic_launch(config, sys.executable)("-m", "pipeline", stage)
        except ChildFailedError as error:
            rank, failure = next(iter(error.failures.items()))
            raise _error_of(rank, failure, folder) from error
        except SignalException as error:
            if others is not None and others.poll():
                msg = "processes on other hosts ended; the same command continues"
                raise WorkerError(msg, 128 + signal.SIGKILL) from error
            reports = [json.loads(file.read_text()) for file in Path(folder).rglob("0/error.json")]
            told = "stopped before it began; the same command starts it again"
            reports.append({"message": told, "code": 128 + error.sigval})
            raise _reported(reports[0]) from error


def _config(count: int, folder: str) -> "LaunchConfig":
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    # Like StopSignal: a hang-up that is ignored, as under nohup, stays ignored.
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    handled = [n.name for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(1, count), Std.ALL)),
        signals_to_handle=",".join(handled),
    )


def _meet(config: "LaunchConfig", meeting: Meeting) -> None:
    """Let the processes of this host be the first of several hosts'."""
    config.min_nodes = config.max_nodes = meeting.hosts
    config.run_id, config.rdzv_backend = meeting.name, "static"
    config.rdzv_endpoint = f"{meeting.address}:{meeting.port}"
    config.rdzv_configs = {"rank": 0, "timeout": 300}
    config.local_addr = meeting.address


def _error_of(rank: int, failure: "ProcessFailure", folder: str) -> WorkerError:
    """The error of the process that failed first."""
    if "code" in failure.error_file_data:
        return _reported(failure.error_file_data)
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


def _reported(report: dict[str, Any]) -> WorkerError:
    return WorkerError(report["message"], report["code"])


def report_error(message: str, code: int) -> int:
    """Print the error that ended this process, or leave it to the launcher.

    Returns:
        The exit code.
    """
    file = os.environ.get(_ERROR_FILE)
    if file is None:
        print(f"error: {message}", file=sys.stderr)
    else:
        # The format of PyTorch's launcher, with the exit code besides.
        report = {"message": message, "timestamp": time.time(), "code": code}
        Path(file).write_text(json.dumps(report), encoding="utf-8")
    return code


def _report_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    report_error("".join(traceback.format_exception(kind, error, trace)).rstrip(), 1)


def wait_for_termination() -> None:
    """Wait until the launcher, to which another process reported its error, ends this one too."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_END_SECONDS)
