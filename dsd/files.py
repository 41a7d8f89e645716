"""Files that are either complete or absent."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from dsd.errors import DataError

__all__ = ["published", "read_json", "write_json"]


@contextmanager
def published(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when complete; a failure leaves what was there before.

    Its content goes to ``<path>.part`` first, which is always a new file: what lies there, if only
    a link to elsewhere, is removed unread. One process may write to a path at a time.

    Raises:
        OSError: The disk refuses. ``path`` is what it was before or, if only its folder could not
            be put on the disk, complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # a disk that refuses to write may refuse this too
            part.unlink()
        raise
    _sync_folder(path.parent)


def write_json(path: Path, document: object) -> None:
    """Publish a document as JSON that people can read, too.

    Raises:
        OSError: As :func:`published`.
    """
    with published(path) as file:
        file.write((json.dumps(document, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """The document in a JSON file.

    Raises:
        DataError: It is no JSON, or nested too deeply to be read.
        OSError: It cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        msg = f"{path} is no JSON ({error}); run `dvc repro` to make it anew"
        raise DataError(msg) from error


def _sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
