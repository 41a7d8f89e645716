"""Small tables as CSV, for DVC's plots and for people."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from dsd.utils.files import published

__all__ = ["read_csv", "write_csv"]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Publish ``rows`` under ``header``.

    Raises:
        OSError: As :func:`dsd.utils.files.published`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    with published(path) as file:
        file.write(text.getvalue().encode())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a table that :func:`write_csv` wrote, by column."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
