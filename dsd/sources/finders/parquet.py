"""Encoded images in the rows of Parquet files."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dsd.sources.finders.folders import PARQUET_SUFFIXES, list_folder, remedy_for, suffix_of
from dsd.sources.source import CORRECT, PICTURES, Item, Items, Reading, Source
from dsd.utils.errors import DataError, one_line

__all__ = ["find_rows", "is_parquet"]

_BYTES = (
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)  # fmt: skip
"""Arrow's types of bytes."""


def is_parquet(path: Path) -> bool:
    """Say whether a file begins as Parquet files do, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def find_rows(path: Path, reading: Reading = PICTURES) -> Source:
    """Find the rows of a Parquet file, or of all in a folder and its subfolders, by their names.

    Raises:
        DataError: There is no such file, or one without the column of bytes.
    """
    column = reading.column
    if not path.is_dir():
        suffix = suffix_of(path.name)
        remedy = remedy_for(suffix, "parquet")
        if remedy is not None and not is_parquet(path):
            msg = f"{path} is a file {suffix}: {remedy}"
            raise DataError(msg)
        return Source(_opened(path, column).metadata.num_rows, Items(partial(_rows, column, path)))
    content = list_folder(path, PARQUET_SUFFIXES)
    if not content.taken:
        raise content.nothing("parquet", "Parquet files", PARQUET_SUFFIXES)
    paths = [content.taken[name] for name in sorted(content.taken)]
    count = sum(_opened(one, column).metadata.num_rows for one in paths)
    rows = Items(lambda: chain.from_iterable(map(partial(_rows, column), paths)))
    return Source(count, rows, tuple(content.notes()))


def _opened(path: Path, column: str) -> pq.ParquetFile:
    """A Parquet file with a column of pictures: encoded, or a struct with a field ``bytes``."""
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        columns = [one_line(name) for name in schema.names]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        msg = f"{path} is no readable Parquet file ({one_line(error)}): {CORRECT}"
        raise DataError(msg) from error
    if column not in columns:
        msg = f"{path} has no column {column!r}, only {columns}: set data.column to one of them"
        raise DataError(msg)
    if columns.count(column) > 1:
        msg = f"{path} has several columns {column!r}: rename those that are not meant"
        raise DataError(msg)
    kind = schema.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not any(is_kind(kind) for is_kind in _BYTES):
        msg = (
            f"{path}: column {column!r} is {kind}: it must hold the bytes of encoded images (PNG, "
            "JPEG, ...), alone or as the field 'bytes' of a struct; write it so"
        )
        raise DataError(msg)
    return file


def _rows(column: str, path: Path) -> Iterator[Item]:
    """The images of a Parquet file, one row in memory at a time.

    A few hundred bytes can say that any number of rows repeat one large value, so more rows at a
    time would let a small file fill the memory; they would not be faster either.
    """
    number, file = 0, _opened(path, column)
    try:
        for batch in file.iter_batches(batch_size=1, columns=[column]):
            for value in batch.column(0).to_pylist():
                content = value["bytes"] if isinstance(value, dict) else value
                yield Item(f"{path}, row {number}", content)
                number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        msg = f"{path} is damaged near row {number} ({one_line(error)}): fetch the file again"
        raise DataError(msg) from error
