"""Files of arrays in a folder, and how many images they hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dsd.sources.finders.folders import list_folder, suffix_of
from dsd.sources.formats.arrays import ARRAYS, ArrayFormat, count_images, readable
from dsd.sources.formats.stack import Stack
from dsd.sources.source import Item, Reading, Source, require_regular
from dsd.utils.errors import DataError, one_line

__all__ = ["find_arrays"]


@contextmanager
def _opened(form: ArrayFormat, path: Path, key: str | None) -> Iterator[Stack]:
    if not path.is_dir():
        require_regular(path)
    with readable(form.name, form.open(path, key)) as stack:
        yield stack


def find_arrays(kind: str, path: Path, reading: Reading) -> Source:
    """Find the arrays in a file, or in all files of a folder and its subfolders, by their names.

    Raises:
        DataError: There is none, or the package for such files is missing.
    """
    form, notes = ARRAYS[kind], list[str]()
    paths = [path]
    if kind == "zarr":
        paths = _zarr_folders(path)
    elif path.is_dir():
        content = list_folder(path, form.suffixes)
        paths = [content.taken[name] for name in sorted(content.taken)]
        paths = [one for one in paths if suffix_of(one.name)[0] == "." or _begins_as_dicom(one)]
        if not paths:
            raise content.nothing(kind, f"{form.name} files", form.suffixes)
        notes += content.notes()
    openers = [partial(_opened, form, one, reading.key) for one in paths]
    counts = [count_images(opener, reading.axes) for opener in openers]
    if counts[0][1]:
        notes.append(f"{one_line(paths[0].name)}: {counts[0][1]}")
    items = [Item(one_line(one), opener) for one, opener in zip(paths, openers, strict=True)]
    return Source(sum(count for count, _ in counts), items, tuple(notes))


def _zarr_folders(path: Path) -> list[Path]:
    if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray")):
        return [path]
    found = sorted(one for one in path.rglob("*.zarr") if one.is_dir())
    found = [one for one in found if not any(above.suffix == ".zarr" for above in one.parents)]
    if not found:
        msg = f"{path} is no Zarr folder and holds none (*.zarr): correct data.path"
        raise DataError(msg)
    return found


def _begins_as_dicom(path: Path) -> bool:
    """Whether a file without suffix is of DICOM, whose files often have none."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
