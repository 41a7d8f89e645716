"""Theorem 1 in numbers: ``python -m studies.theorem`` descends, compares and draws.

Data of 3 dimensions lie in a space of 6. From random starts, each divergence takes a linear
generator downhill in four set-ups, and the result is held against the closed form. Needs no data
and no parameters; writes ``reports/theorem/table.csv`` and ``theorem.png``.
"""

from pathlib import Path

from rich.console import Console

from pipeline.runtime.signals import set_up_cpu
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import write_csv
from studies.theorem_cases import Row, all_cases, measure
from studies.theorem_report import draw, print_tables

__all__ = ["run"]


def run(paths: Paths) -> None:
    """Measure, write the table and the picture, print both tables."""
    rows = [row for case in all_cases() for row in measure(*case)]
    folder = paths.report("theorem")
    write_csv(folder / "table.csv", Row._fields, ([*map(_short, row)] for row in rows))
    draw(rows, folder / "theorem.png")
    print_tables(rows, Console())
    print(f"Table:    {(folder / 'table.csv').relative_to(paths.root)}")
    print(f"Picture:  {(folder / 'theorem.png').relative_to(paths.root)}")


def _short(value: object) -> object:
    return f"{value:.3g}" if isinstance(value, float) else value


if __name__ == "__main__":
    set_up_cpu()
    run(Paths(Path.cwd()))
