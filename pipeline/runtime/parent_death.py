"""Child processes that end with their parent.

Run as a script this module ties a command to its starter: ``tether(["sleep", "60"])`` is the
command to start instead of ``sleep 60``. Only the standard library, because it runs by its file's
name in folders that know nothing of this project.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["end_with_parent", "main", "tether"]

_PR_SET_PDEATHSIG = 1


def tether(command: Sequence[str]) -> list[str]:
    """``command`` such that it gets SIGTERM when the thread that starts it, or its process, ends.

    A SIGKILL leaves a process no chance to stop its children; this lets Linux do it. Elsewhere
    the command just runs.
    """
    # -P: the script's own folder must not hide modules of the standard library.
    return [sys.executable, "-P", str(Path(__file__).resolve()), str(os.getpid()), *command]


def end_with_parent(parent: int) -> bool:
    """Ask Linux for a SIGTERM when the parent process ends; it holds also after an exec.

    Args:
        parent: Process id of the parent that is meant.

    Returns:
        Whether that process is still the parent. If not, it ended before Linux was asked.
    """
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        except (OSError, AttributeError):
            return True  # a C library without prctl: nothing to ask
    return os.getppid() == parent


def main(arguments: Sequence[str]) -> None:
    """Become the command ``arguments[1:]``, tied to the process ``arguments[0]``."""
    parent, *command = arguments
    if not end_with_parent(int(parent)):
        sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
