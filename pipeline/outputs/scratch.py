"""Arrays larger than memory, on the disk beside the file that they become."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

__all__ = ["scratch_array"]


@contextmanager
def scratch_array(beside: Path, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.memmap]:
    """Zeros in a file without a name, which is gone with the block or the process."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=beside.parent) as file:
        yield np.memmap(file, dtype, "w+", shape=shape)
