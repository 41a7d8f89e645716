"""What the command lines of flows have in common: signals, messages and exit codes."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

from dsd.errors import DsdError

__all__ = ["run_flow"]


def run_flow(flow: Callable[[], bool]) -> int:
    """Run a flow and turn what comes of it into an exit code.

    Args:
        flow: Runs the flow, and says whether it did what was wanted.

    Returns:
        0; 1 if the flow ended without an error but not well; else the error's own code, after its
        message. Errors that are ours leave a traceback.
    """
    from flows.dvc_runner import DvcError, StageFailedError

    # Otherwise a SIGTERM ends the process so abruptly that Prefect's own server stays behind.
    signal.signal(signal.SIGTERM, _stop)
    try:
        return 0 if flow() else 1
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 128 + signal.SIGINT
    except (DsdError, DvcError, StageFailedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return max(error.exit_code, 1)


def _stop(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
