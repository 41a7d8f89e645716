"""Numbers of a stage on local disk, written before anything is sent to MLflow."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

__all__ = ["NONFINITE_FAILURES", "SYSTEM", "Entry", "Journal"]

SYSTEM = "system/"
"""Begins the names of what is said of the machine; their step counts samples, not images."""

NONFINITE_FAILURES = "nonfinite_failures"
"""Metric: number of attempts that ended with a non-finite value; its step counts all."""

_COUNTED = (SYSTEM, NONFINITE_FAILURES)


@final
@dataclass(frozen=True)
class Entry:
    """Numbers recorded at one moment, up to byte ``end`` of the journal.

    ``images``, those seen so far, are the step in MLflow. ``milliseconds`` are since 1970; by
    them MLflow recognises a number that is sent twice.
    """

    images: int
    milliseconds: int
    values: dict[str, float]
    end: int


@final
class Journal:
    """Append-only JSON lines, each on the disk before a state can be that is newer.

    A line that a crash cut short does not count. What the disk refuses is kept in memory
    and written with the next line, or by :meth:`write`.

    Attributes:
        file: Where it is.
        first: Images seen and value of the first number of each name that belongs to images.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seen: dict[str, int] = {}
        self.first: dict[str, tuple[int, float]] = {}
        self._waiting = b""
        self._size = 0
        if file.exists():
            lines, end, _ = file.read_bytes().rpartition(b"\n")
            self._size = len(lines) + len(end)
        for entry in self.entries():
            self._remember(entry.images, entry.values)

    def append(self, images: int, values: Mapping[str, float], milliseconds: int) -> None:
        """Write numbers, without those of steps that a resumed stage goes through again.

        Raises:
            OSError: The disk refuses; the numbers are written with the next ones.
        """
        fresh = {
            name: float(value)
            for name, value in values.items()
            if images > self._seen.get(name, -1)
        }
        if not fresh:
            return
        line = json.dumps({"images": images, "ms": milliseconds, "values": fresh})
        self._waiting += f"{line}\n".encode()
        self._remember(images, fresh)
        self.write()

    def write(self) -> None:
        """Put on the disk what it refused before.

        Raises:
            OSError: It still does.
        """
        if not self._waiting:
            return
        with self.file.open("ab") as stream:
            stream.truncate(self._size)  # what a crash or an attempt that failed has left
            stream.write(self._waiting)
            stream.flush()
            os.fsync(stream.fileno())
        self._size += len(self._waiting)
        self._waiting = b""

    def append_counted(self, values: Mapping[str, float], milliseconds: int) -> None:
        """Write numbers that do not belong to images: their step is one more than the last."""
        step = 1 + max(self._seen.get(name, -1) for name in values)
        self.append(step, values, milliseconds)

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """Entries from byte ``start`` on, as far as the disk has them for certain."""
        with suppress(FileNotFoundError), self.file.open("rb") as stream:
            stream.seek(start)
            for line in stream:
                start += len(line)
                if start > self._size:
                    return
                try:
                    raw = json.loads(line)
                except (ValueError, RecursionError):  # the disk has spoiled it
                    continue
                yield Entry(raw["images"], raw["ms"], raw["values"], start)

    def _remember(self, images: int, values: Mapping[str, float]) -> None:
        beginnings = {
            name: (images, value)
            for name, value in values.items()
            if not name.startswith(_COUNTED)
        }
        self.first = beginnings | self.first
        self._seen |= dict.fromkeys(values, images)
