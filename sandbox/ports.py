"""Ports for servers that a test starts."""

import random
import socket
from contextlib import suppress

__all__ = ["free_port"]


def free_port() -> int:
    """A port that is free now, as is the next one.

    It is below what systems give to outgoing connections (Linux from 32768, others from 49152):
    one of those would take a server's port while the server is being started, or started again.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
