"""SHA-256 of a source, of large parts on another core while the next part is read."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

__all__ = ["Fingerprint"]

_LARGE = 2**20
"""Bytes from which on another thread is worth its start."""


@final
class Fingerprint:
    """A hash of bytes in the order in which they come; they must not change afterwards."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def update(self, data: bytes | memoryview) -> None:
        """Add some bytes; of large parts at most one waits."""
        self._wait()
        if len(data) < _LARGE:
            self._digest.update(data)
        else:
            self._last = self._pool.submit(self._digest.update, data)

    def hexdigest(self) -> str:
        """Hash of all bytes so far."""
        self._wait()
        return self._digest.hexdigest()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()
            self._last = None
