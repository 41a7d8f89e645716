"""A flow that is asked to stop ends soon, also where Prefect's server is gone.

Who stops a flow often stops its server with it: Ctrl-C in a terminal and systemd signal all
processes of a group. Prefect would then ask the dead server for minutes how the run ended.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

__all__ = ["end_soon_when_stopped", "signal_group", "stopped_by"]

_SECONDS = 25.0  # who sends SIGTERM kills after half a minute as a rule

_numbers: list[int] = []


def signal_group(process: "subprocess.Popen[Any]", number: signal.Signals) -> None:
    """Send a signal to every process of the group that ``process`` leads, if any is left."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)  # the leader's pid is the group's id


def stopped_by() -> int | None:
    """The signal that asked this process to stop, if any has."""
    return _numbers[0] if _numbers else None


def end_soon_when_stopped(flow: object, flow_run: "FlowRun", state: "State[Any]") -> None:
    """Hook ``on_running`` of every flow: hear of SIGINT and SIGTERM before Prefect does.

    A run that a worker started has a lasting server, and Prefect must see its own handler there
    to tell a cancelled run from a killed one.
    """
    if "PREFECT__FLOW_RUN_ID" in os.environ:  # set by Prefect's workers alone
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        if callable(before) and not isinstance(before, _Ending):
            signal.signal(number, _Ending(before))


@final
class _Ending:
    """A handler of signals that does what the one before it did, and sees to the end."""

    def __init__(self, before: Callable[[int, FrameType | None], Any]) -> None:
        self._before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _numbers and number == signal.SIGTERM:
            return  # a second one would interrupt what ends the stage, and the report of it
        if not _numbers:
            from prefect.settings import get_current_settings

            _numbers.append(number)
            # Prefect must not repeat a request to its dead server for long.
            get_current_settings().client.max_retries = 1
            timer = threading.Timer(_SECONDS, os._exit, [128 + number])
            timer.daemon = True
            timer.start()
        self._before(number, frame)
