"""Command line of the flow ``train``: ``python -m flows.train``.

Without a server the flow brings its own for as long as it runs; with ``prefect server start`` and
``PREFECT_API_URL=http://127.0.0.1:4200/api`` it reports there.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the flow, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.train", description="Bring all stages up to date."
    )
    parser.add_argument("--force", action="store_true", help="run all stages, even unchanged ones")
    parser.add_argument("--push", action="store_true", help="send the results to the DVC remote")
    options = parser.parse_args(arguments)
    # Prefect takes a second to import, too long for --help.
    from flows.dvc_runner import DvcError, StageFailedError
    from flows.training_flow import train

    # Otherwise a SIGTERM ends the process so abruptly that Prefect's own server stays behind.
    signal.signal(signal.SIGTERM, _stop)
    try:
        train(force=options.force, push=options.push)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 128 + signal.SIGINT
    except (DvcError, StageFailedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return max(error.exit_code, 1)
    return 0


def _stop(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
