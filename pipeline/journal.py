"""Numbers of a stage on local disk, written before anything is sent to MLflow."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

__all__ = ["SYSTEM", "Entry", "Journal"]

SYSTEM = "system/"
"""Begins the names of what is said of the machine; their step counts samples, not images."""


@final
@dataclass(frozen=True)
class Entry:
    """Numbers recorded at one moment.

    Args:
        images: Images seen so far, the step in MLflow.
        milliseconds: When, since 1970. It is kept, so that a number sent twice is recognised.
        values: Numbers by name.
        end: Byte offset in the journal behind this entry.
    """

    images: int
    milliseconds: int
    values: dict[str, float]
    end: int


@final
class Journal:
    """Append-only JSON lines, each on the disk before a state can be that is newer.

    A line that a crash cut short is removed on opening.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: dict[str, int] = {}
        self.first_images: int | None = None
        self._samples = 0
        self._keep_whole_lines()
        for entry in self.entries():
            self._remember(entry.images, entry.values)

    def moved_to(self, folder: Path) -> None:
        """Note that the file lies in another folder now."""
        self._file = folder / self._file.name

    def append(self, images: int, values: Mapping[str, float], milliseconds: int) -> None:
        """Write numbers, without those of steps that a resumed stage goes through again."""
        fresh = {
            name: float(value)
            for name, value in values.items()
            if images > self._seen.get(name, -1)
        }
        if not fresh:
            return
        line = json.dumps({"images": images, "ms": milliseconds, "values": fresh})
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._remember(images, fresh)

    def append_sample(self, values: Mapping[str, float], milliseconds: int) -> None:
        """Write what was measured of the machine, with the next number of a sample."""
        self.append(self._samples, values, milliseconds)

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """Complete entries from byte ``start`` on."""
        if not self._file.exists():
            return
        with self._file.open("rb") as stream:
            stream.seek(start)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                try:
                    raw = json.loads(line)
                except ValueError:  # half a line from a full disk, with the next one behind it
                    continue
                yield Entry(raw["images"], raw["ms"], raw["values"], start)

    def _remember(self, images: int, values: Mapping[str, float]) -> None:
        if any(name.startswith(SYSTEM) for name in values):
            self._samples = images + 1
        elif self.first_images is None:
            self.first_images = images
        self._seen |= dict.fromkeys(values, images)

    def _keep_whole_lines(self) -> None:
        if not self._file.exists():
            return
        whole = self._file.read_bytes().rpartition(b"\n")
        if whole[2]:
            with self._file.open("r+b") as stream:
                stream.truncate(len(whole[0]) + len(whole[1]))
