"""Files that are either complete or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["published"]


@contextmanager
def published(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when complete; a failure leaves what was there before.

    Raises:
        OSError: The disk refuses. ``path`` is what it was before or, if only its folder could not
            be put on the disk, complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # a disk that refuses to write may refuse this too
            part.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
