"""Pictures in a ZIP archive, such as EDM's ``dataset.zip``; nothing is unpacked to the disk."""

import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dsd.sources.decoding import MAX_BYTES
from dsd.sources.finders.folders import suffix_of
from dsd.sources.formats.pictures import SUFFIXES
from dsd.sources.source import CORRECT, Item, Items, Source
from dsd.utils.errors import DataError, one_line

__all__ = ["find_zipped"]

_DAMAGED = (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError, ValueError)


def find_zipped(path: Path) -> Source:
    """Find the pictures in an archive, by their names; each file in it is one picture.

    Raises:
        DataError: It is no archive, or holds no picture.
    """
    members = _members(path)
    taken = [one for one in members if suffix_of(one.filename) in SUFFIXES]
    if not taken:
        msg = f"{path} holds no images ({' '.join(sorted(SUFFIXES))}): {CORRECT}"
        raise DataError(msg)
    other = Counter(suffix_of(one.filename) for one in members) - Counter(
        suffix_of(one.filename) for one in taken
    )
    left_out = ", ".join(f"{count} {one_line(suffix)}" for suffix, count in other.most_common(5))
    notes = (f"left out: {left_out} (not read)",) if left_out else ()
    return Source(len(taken), Items(partial(_items, path, taken)), notes)


def _members(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            files = [one for one in archive.infolist() if not one.is_dir()]
    except _DAMAGED as error:
        msg = f"{path} is no readable ZIP archive ({one_line(error)}): {CORRECT}"
        raise DataError(msg) from error
    return sorted(files, key=lambda one: one.filename)


def _items(path: Path, members: list[zipfile.ZipInfo]) -> Iterator[Item]:
    with zipfile.ZipFile(path) as archive:
        for one in members:
            name = one_line(f"{path}, {one.filename}")
            try:
                with archive.open(one) as file:
                    # What the archive says of a size may be wrong.
                    content = file.read(MAX_BYTES + 1)
            except _DAMAGED as error:
                msg = f"{name} cannot be unpacked ({one_line(error)}): fetch the archive again"
                raise DataError(msg) from error
            yield Item(name, content)
