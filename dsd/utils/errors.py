"""Errors that a user can act on.

Each carries one message that names the thing, what is wrong with it and the remedy; the pipeline
prints that message alone, without a traceback, and exits with the error's code.
"""

__all__ = [
    "DataError",
    "DsdError",
    "Interrupted",
    "LostProcessError",
    "NonFiniteError",
    "ParamsError",
    "one_line",
]


def one_line(text: object) -> str:
    """Foreign text for a message: on one line, and without what a terminal would obey."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode()
        for sign in str(text)
    )


class DsdError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = 1


class ParamsError(DsdError):
    """A parameter is unknown, of the wrong type, out of range or does not go with others."""

    exit_code = 2


class DataError(DsdError):
    """An image, a folder or a stored artifact is missing, broken or of the wrong kind."""

    exit_code = 3


class NonFiniteError(DsdError):
    """A loss, gradient, weight or pixel became NaN or infinite.

    Args:
        message: Which, and where.
        images_seen: Of the training step in which it appeared, where it was one.
    """

    exit_code = 4

    def __init__(self, message: str, images_seen: int | None = None) -> None:
        super().__init__(message)
        self.images_seen = images_seen


class LostProcessError(DsdError):
    """Another process of the same training has ended, and knows why."""


class Interrupted(DsdError):  # noqa: N818 - being asked to stop is no error
    """The process was asked to stop; its state is saved and the same command continues.

    Args:
        message: What was saved and how to continue.
        signal_number: The signal that asked; the exit code is 128 plus it, as shells expect.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
