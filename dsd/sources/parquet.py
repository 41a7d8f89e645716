"""Encoded images in the rows of Parquet files."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dsd.utils.errors import DataError, one_line

__all__ = ["count_rows", "is_parquet", "read_rows"]


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet files do, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def count_rows(path: Path) -> int:
    """Rows of a file with a column ``image``: encoded, or a struct with a field ``bytes``.

    Raises:
        DataError: It is no such file.
    """
    return int(_opened(path).metadata.num_rows)


def _opened(path: Path) -> pq.ParquetFile:
    """A Parquet file with a column ``image``: encoded, or a struct with a field ``bytes``."""
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        columns = [one_line(name) for name in schema.names]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = one_line(error)
        msg = f"{path} is no readable Parquet file ({reason}): correct data.path in params.yaml"
        raise DataError(msg) from error
    _check_column(path, schema, columns)
    return file


_BYTES = (
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)  # fmt: skip
"""Arrow's types of bytes."""


def _check_column(path: Path, schema: pa.Schema, columns: list[str]) -> None:
    """Raise DataError unless there is one column ``image`` of bytes."""
    if "image" not in columns:
        msg = f"{path} has no column 'image', only {columns}: rename the column of images"
        raise DataError(msg)
    if columns.count("image") > 1:
        msg = f"{path} has several columns 'image': rename those that are not meant"
        raise DataError(msg)
    kind = schema.field("image").type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not any(is_kind(kind) for is_kind in _BYTES):
        msg = (
            f"{path}: column 'image' is {kind}: it must hold the bytes of encoded images (PNG, "
            "JPEG, ...), alone or as the field 'bytes' of a struct; write it so"
        )
        raise DataError(msg)


def read_rows(path: Path) -> Iterator[bytes | None]:
    """The images of a Parquet file, one row in memory at a time.

    A few hundred bytes can say that any number of rows repeat one large value, so more rows at a
    time would let a small file fill the memory; they would not be faster either.
    """
    number, file = 0, _opened(path)
    try:
        for batch in file.iter_batches(batch_size=1, columns=["image"]):
            for value in batch.column(0).to_pylist():
                content = value["bytes"] if isinstance(value, dict) else value
                yield content
                number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = one_line(error)
        msg = f"{path} is damaged near row {number} ({reason}): fetch the file again"
        raise DataError(msg) from error
