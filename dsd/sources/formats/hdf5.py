"""Datasets of HDF5 files. Only what lies in the file itself is read."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from dsd.sources.formats.stack import Stack, UnusableError

__all__ = ["open_hdf5"]

MAX_CHUNK = 2**30
"""Bytes of a chunk, which is unpacked as a whole."""

_CACHE = 2**26


@contextmanager
def open_hdf5(path: Path, key: str | None) -> Iterator[Stack]:
    """Open the dataset ``key``, or the only one of numbers with two axes or more.

    Raises:
        ValueError: There is no such dataset, there are several, it leads to another file, or it
            holds no numbers.
    """
    with h5py.File(path, "r", rdcc_nbytes=_CACHE) as file:
        dataset = _only(file) if key is None else _named(file, key)
        _check(dataset)
        chunk = dataset.chunks[0] if dataset.chunks else 1
        yield Stack(dataset, "HDF5 dataset", chunk=chunk)


def _only(file: Any) -> Any:  # noqa: ANN401 - h5py is untyped
    found: dict[str, Any] = {}

    def visit(name: str, one: Any) -> None:  # noqa: ANN401
        if isinstance(one, h5py.Dataset) and len(one.shape or ()) >= 2 and _is_numeric(one):
            found[name] = one

    # Neither soft nor external links are followed, and each object is visited once.
    file.visititems(visit)
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        msg = "holds no dataset of numbers with two axes or more"
        raise UnusableError(msg)
    msg = f"holds {len(found)} datasets ({', '.join(sorted(found)[:8])}); set data.key to one"
    raise UnusableError(msg)


def _named(file: Any, key: str) -> Any:  # noqa: ANN401
    here, parts = file, [part for part in key.split("/") if part]
    for part in parts:
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
        if link is None:
            msg = f"has no dataset {key}; correct data.key"
            raise UnusableError(msg)
        if not isinstance(link, h5py.HardLink):
            msg = f"has a link at {part} of {key}, which is not followed; name its target"
            raise UnusableError(msg)
        here = here[part]
    if not isinstance(here, h5py.Dataset):
        msg = f"has a group, no dataset, at {key}; correct data.key"
        raise UnusableError(msg)
    return here


def _is_numeric(dataset: Any) -> bool:  # noqa: ANN401
    return dataset.dtype.kind in "buifc" and not dataset.dtype.hasobject


def _check(dataset: Any) -> None:  # noqa: ANN401
    if not _is_numeric(dataset):
        msg = f"holds {dataset.dtype} in {dataset.name}, not numbers"
        raise UnusableError(msg)
    if dataset.external or dataset.is_virtual:
        msg = f"has its numbers of {dataset.name} in other files; write them into this one"
        raise UnusableError(msg)
    if dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > MAX_CHUNK:
        msg = f"has chunks of {dataset.chunks} numbers in {dataset.name}; write it in smaller ones"
        raise UnusableError(msg)
