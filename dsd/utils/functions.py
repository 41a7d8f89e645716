"""Functions of a user's own, named as ``package.module:function`` in parameters."""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from dsd.utils.errors import ParamsError

__all__ = ["FUNCTION_PATTERN", "import_function", "is_function_name"]

FUNCTION_PATTERN = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
"""What the name of such a function looks like."""


def is_function_name(name: str) -> bool:
    """Whether ``name`` has the form ``package.module:function``; nothing is imported."""
    return re.fullmatch(FUNCTION_PATTERN, name) is not None


def import_function(name: str, role: str, *, of: str) -> Callable[..., Any]:
    """Import the function ``package.module:function``.

    Args:
        name: Of the function.
        role: What it is used as, for messages.
        of: Its arguments, for messages.

    Raises:
        ParamsError: Nothing can be imported under that name, or it cannot be called.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        msg = (
            f"{role} {name} cannot be imported ({error}); it must be "
            "package.module:function, importable from the folder in which the command runs"
        )
        raise ParamsError(msg) from error
    if not callable(found):
        msg = f"{role} {name} is a {type(found).__name__}; it must be a function of {of}"
        raise ParamsError(msg)
    called: Callable[..., Any] = found
    return called
