"""What the command lines of flows have in common: options, signals, messages and exit codes."""

import argparse
import signal
import sys
from collections.abc import Callable
from types import FrameType

from dsd.utils.errors import DsdError

__all__ = ["flow_parser", "run_flow"]


def flow_parser(flow: str, description: str, name: str) -> argparse.ArgumentParser:
    """A parser with the options that all flows have; ``name`` explains ``--name``."""
    parser = argparse.ArgumentParser(prog=f"python -m flows.{flow}", description=description)
    parser.add_argument("--name", default="", help=name)
    parser.add_argument("--push", action="store_true", help="send the results to the DVC remote")
    return parser


def run_flow(flow: Callable[[], bool]) -> int:
    """Run a flow and turn what comes of it into an exit code.

    Args:
        flow: Runs the flow; whether it did what was wanted.

    Returns:
        0; 1 if the flow ended without an error but not well; 128 plus the number of the signal
        that stopped it; else the error's own code, after its message. Errors that are ours leave
        a traceback.
    """
    from flows.dvc.repository import tell_dvc
    from flows.runtime.environment import ROOT

    # Otherwise a SIGTERM ends the process so abruptly that Prefect's own server stays behind.
    signal.signal(signal.SIGTERM, _stop)
    try:
        tell_dvc(ROOT)
        return 0 if flow() else 1
    except KeyboardInterrupt:
        return _stopped(signal.SIGINT)
    except DsdError as error:
        return _fail(error)
    except Exception as error:
        from flows.runtime.stopping import stopped_by
        from flows.services.prefect_server import explained

        if number := stopped_by():  # its server was stopped too
            return _stopped(number)
        if known := explained(error):
            return _fail(known)
        raise


def _stop(number: int, _frame: FrameType | None) -> None:
    sys.exit(_stopped(number))


def _stopped(number: int) -> int:
    print("stopped; the same command continues", file=sys.stderr)
    return 128 + number


def _fail(error: DsdError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return max(error.exit_code, 1)  # a negative one is a signal's
