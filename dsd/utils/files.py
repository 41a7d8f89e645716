"""Files and folders that are either complete or absent."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from dsd.utils.errors import DataError

__all__ = [
    "check_replaceable",
    "copy_files",
    "published",
    "read_json",
    "replaced",
    "write_json",
]

_CANNOT_SYNC = {errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}
"""Errors of file systems, some of NFS, SMB and FUSE among them, that cannot sync a folder."""


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


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Make a folder that gets its name when complete; a failure leaves what was there before.

    Its content goes to ``.<name>.new`` beside it, which is empty at first. The files of an old
    folder may be links into a cache, so they are never written to: the old folder is renamed, and
    deleted once the new one has its place. Where ``folder`` is a link to a folder, the link stays
    and the folder behind it is replaced. One process may write to a folder at a time.

    Yields:
        Where to write.

    Raises:
        OSError: The disk refuses. That this user may not replace ``folder`` is known before the
            block begins.
    """
    folder = folder.resolve()
    new, old = (folder.with_name(f".{folder.name}.{end}") for end in ("new", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not folder.exists():  # a process was killed between two renamings
        old.rename(folder)
    check_replaceable(folder)
    for left in (new, old):
        _remove(left)
    new.mkdir()
    try:
        yield new
        _swap(folder, new, old)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _sync_folder(folder.parent)
    _remove(old)


def check_replaceable(folder: Path) -> None:
    """Make sure that this user may replace ``folder``, which need not exist.

    Raises:
        PermissionError: A folder in it, or the one that holds it, is not writable.
    """
    folder = folder.resolve()
    holder = next(parent for parent in folder.parents if parent.exists())
    for place in (holder, *(Path(name) for name, _, _ in os.walk(folder))):
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def _swap(folder: Path, new: Path, old: Path) -> None:
    """Give ``new`` the name ``folder``; what had it becomes ``old``, unless that fails."""
    with suppress(FileNotFoundError):
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        with suppress(OSError):
            old.rename(folder)
        raise


def _remove(path: Path) -> None:
    """Delete a folder, a file or a link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def copy_files(source: Path, target: Path) -> None:
    """Publish a copy of each file below the folder ``source`` at the same place in ``target``.

    Raises:
        OSError: The disk refuses; unlike that of ``shutil.copytree``, the error has a number.
    """
    for file in sorted(source.rglob("*")):
        if file.is_file():
            place = target / file.relative_to(source)
            with published(place) as copy, file.open("rb") as original:
                shutil.copyfileobj(original, copy)


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
    """Put the names in ``folder`` on the disk too, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        _say_that_folders_are_not_synced(os.strerror(error.errno))
    finally:
        os.close(descriptor)


@cache
def _say_that_folders_are_not_synced(reason: str) -> None:
    """Say it once; for each error that a file system gives as the reason."""
    logging.getLogger(__name__).warning(
        "warning: this file system cannot sync folders (%s), so that a power failure may undo "
        "what was written last; everything else is as usual",
        reason,
    )
