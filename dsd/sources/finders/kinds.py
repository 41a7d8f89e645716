"""What finds the images below a path, by the value of ``data.source``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from dsd.sources.finders.arrays import find_arrays
from dsd.sources.finders.folders import find_pictures, one_picture, remedy_for, suffix_of
from dsd.sources.finders.parquet import find_rows, is_parquet
from dsd.sources.finders.torchvision_sets import find_set, preview_set
from dsd.sources.finders.user_function import find_yielded
from dsd.sources.finders.zip_pictures import find_zipped
from dsd.sources.formats.arrays import ARRAYS
from dsd.sources.formats.pictures import SUFFIXES
from dsd.sources.source import CORRECT, PICTURES, Reading, Source
from dsd.utils.errors import DataError

__all__ = ["FINDERS", "find_images"]


def _find_folder(path: Path, reading: Reading) -> Source:
    if path.is_dir():
        return find_pictures(path, reading)
    raise _other_kind(path, "folder")


def _find_file(path: Path, reading: Reading) -> Source:
    if path.is_file() and suffix_of(path.name) in SUFFIXES:
        return one_picture(path, reading)
    raise _other_kind(path, "file")


def _other_kind(path: Path, kind: str) -> DataError:
    if path.is_dir():
        return DataError(f"{path} is a folder: set data.source to folder")
    suffix = ".parquet" if is_parquet(path) else suffix_of(path.name)
    return DataError(f"{path} is a file {suffix}: {remedy_for(suffix, kind) or CORRECT}")


def _find_zipped(path: Path, _: Reading) -> Source:
    return find_zipped(path)


FINDERS: dict[str, Callable[[Path, Reading], Source]] = {
    "parquet": find_rows,
    "folder": _find_folder,
    "file": _find_file,
    "zip": _find_zipped,
    **{kind: partial(find_arrays, kind) for kind in ARRAYS},
}


def find_images(
    kind: str,
    path: Path,
    name: str | None,
    *,
    preview: bool = False,
    reading: Reading = PICTURES,
) -> Source:
    """Find the images of a source without decoding any.

    Args:
        kind: A key of ``FINDERS``, ``torchvision`` or ``function``.
        path: The file, or a folder of these; for torchvision its folder for downloads; for a
            function its argument.
        name: Which torchvision set (cifar10, fashion-mnist or celeba, its training part), or
            which function.
        preview: Whether a black image may stand in for those that would have to be downloaded.
        reading: How numbers are read.

    Raises:
        DataError: There is nothing at ``path``, it is of another kind, or a download failed.
        ParamsError: There is no such function.
    """
    if kind == "torchvision":
        return preview_set(name or "") if preview else find_set(path, name or "")
    if not path.exists():
        msg = f"{path} does not exist: {CORRECT}"
        raise DataError(msg)
    if not (path.is_dir() or path.is_file()):
        msg = f"{path} is neither a file nor a folder: {CORRECT}"
        raise DataError(msg)
    if kind == "function":
        return find_yielded(path, name or "", reading)
    return FINDERS[kind](path, reading)
