"""Faults at every place where a program touches files: it dies there, or the disk refuses.

A *boundary* is a call that opens, writes, flushes, syncs, closes, renames or removes a file, or
makes a folder. A write counts twice: before it, and when half of it is on the disk.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

CALLS = ("open", "fsync", "close", "replace", "rename", "unlink", "rmdir", "mkdir")


class Boundaries:
    """Counts boundaries and acts at one of them.

    Args:
        act: What happens at the boundary with number ``at``, before the call itself.
        at: Number from 1; 0 only counts.
        below: Only files below this folder count, where a call names one.

    Attributes:
        names: What was done so far.
    """

    def __init__(self, act: Callable[[], None], at: int = 0, below: Path | None = None) -> None:
        self.names: list[str] = []
        self._act, self._at, self._below = act, at, below

    def reached(self, name: str, path: object = None) -> None:
        """Count, and act if it is time; leases are another library's."""
        if ".lock" in str(path):
            return
        if self._below is None or path is None or str(path).startswith(str(self._below)):
            self.names.append(name)
            if len(self.names) == self._at:
                self._act()

    @contextmanager
    def watched(self) -> Iterator["Boundaries"]:
        """Watch what this process does with files."""
        opened, originals = io.open, {name: getattr(os, name) for name in CALLS}

        def open_file(path: object, mode: str = "r", *args: object, **options: object) -> object:
            if isinstance(path, int) or not set(mode) & set("wax+"):
                return opened(path, mode, *args, **options)
            self.reached("open", path)
            file = opened(path, mode, *args, **options)
            return _File(file, self, path)

        def call(name: str) -> Callable[..., object]:
            def watched(*args: object, **options: object) -> object:
                self.reached(name, _named(*args, **options))
                return originals[name](*args, **options)

            return watched

        patches = [patch.object(os, name, call(name)) for name in CALLS]
        with ExitStack() as stack:
            for each in (patch.object(io, "open", open_file), *patches):
                stack.enter_context(each)
            yield self


def _named(path: object = None, *_: object, dir_fd: int | None = None, **__: object) -> object:
    """The path that a call is about, if that can be known."""
    if isinstance(path, int):  # or else the calls of other threads would count too
        opened = Path(f"/proc/self/fd/{path}")
        return opened.readlink() if opened.is_symlink() else None
    # As shutil.rmtree removes files: named from an open folder.
    return path if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink() / str(path)


class _File:
    """A file whose writing is watched."""

    def __init__(self, file: io.IOBase, boundaries: Boundaries, path: object) -> None:
        self._file, self._boundaries, self._path = file, boundaries, path

    def write(self, data: bytes) -> int:
        self._boundaries.reached("write", self._path)
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._boundaries.reached("write", self._path)
        self._file.write(data[half:])
        return len(data)

    def flush(self) -> None:
        self._boundaries.reached("flush", self._path)
        self._file.flush()

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._boundaries.reached("close", self._path)
        finally:
            self._file.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)
