"""Ports for servers that a test starts."""

import random
import socket
from contextlib import closing

__all__ = ["free_port"]

# Below what systems give to outgoing connections (Linux from 32768, others from 49152): one of
# those would take a server's port while the server is being started, or started again.
_FIRST, _LAST = 20_000, 32_000


def free_port() -> int:
    """A port that is free now, as is the next one."""
    while True:
        port = random.randrange(_FIRST, _LAST)
        if _is_free(port) and _is_free(port + 1):
            return port


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
