"""Arrays of a user's own function ``package.module:function``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dsd.sources.formats.arrays import count_images
from dsd.sources.formats.stack import Stack
from dsd.sources.source import Item, Items, Reading, Source
from dsd.utils.functions import import_function

__all__ = ["find_yielded"]


def find_yielded(path: Path, name: str, reading: Reading) -> Source:
    """Find the arrays that a function yields when it is called with ``path``.

    It is called several times (to count, then to read) and must yield the same arrays each time.

    Raises:
        ParamsError: There is no such function.
    """
    function = import_function(name, "data.name", of="a path that yields arrays")
    count, note = 0, ""
    for array in function(path):
        images, said = count_images(partial(_opened, array), reading.axes)
        count, note = count + images, note or said
    items = Items(partial(_items, function, path, name))
    return Source(count, items, (f"{name}: {note}",) if note else ())


def _items(function: Callable[[Path], Any], path: Path, name: str) -> Iterator[Item]:
    for number, array in enumerate(function(path)):
        yield Item(f"{name}, array {number}", partial(_opened, array))


@contextmanager
def _opened(array: Any) -> Iterator[Stack]:  # noqa: ANN401 - whatever the function yields
    yield Stack(np.asarray(array), "array")
