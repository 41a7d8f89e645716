"""Small tables as CSV, for DVC's plots and for people."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["read_csv", "write_csv"]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write ``rows`` under ``header``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a table that :func:`write_csv` wrote, by column."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
