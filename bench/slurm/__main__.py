"""Stop runs in every way that SLURM has: ``python -m bench.slurm [--parts ...] [--out FOLDER]``.

Brings up a SLURM of two nodes (:mod:`bench.slurm.lab`; root, Debian's ``slurm-wlm``) with a clone
of this project on the folder that the nodes share, and writes what was seen as JSON and as a page.
Parts that are not asked for stay in the page as they are.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, final

from bench.common import RESULTS, markdown, origin
from bench.slurm.clones import Clone, copy, fresh, prepared
from bench.slurm.lab import Lab, missing
from bench.slurm.sharing import Row, array, locks, one_clone, shells
from bench.slurm.stops import STAGES, STOPS, interrupted
from bench.slurm.teams import two_nodes, worker
from dsd.utils.files import write_json

__all__ = ["PARTS", "main", "render"]


@final
class Bench:
    """A SLURM, and clones in which the first stages are done.

    Args:
        folder: Which all hosts share.
        lab: Running.
    """

    def __init__(self, folder: Path, lab: Lab) -> None:
        self.folder = folder
        self.lab = lab

    @cached_property
    def base(self) -> Clone:
        """With `prepare` and `corrupt` done."""
        return prepared(self.folder / "base")

    @cached_property
    def whole(self) -> Clone:
        """With all up to `distill` done, without interruption."""
        return self._whole(self.base, "whole")

    def clone(self, name: str, **changes: object) -> Clone:
        """One like the base."""
        made = copy(self.base, self.folder / name)
        made.set(changes)
        return made

    def fresh(self, name: str) -> Clone:
        """One in which nothing is computed, with short trainings."""
        short = {"pretrain.kimg": 1.28, "pretrain.sample_every_kimg": 1.28, "distill.kimg": 0.64}
        return fresh(self.folder / name, **short)

    def stop(self, name: str) -> Iterator[Row]:
        """Stop a run in both trainings in one way."""
        row = Row(name)
        changes = {"run.checkpoint_minutes": 0.05} if name == "node death" else {}
        clone, whole = self.clone(name.replace(" ", "-"), **changes), self.whole
        if name == "time limit":  # SLURM looks at limits every 30 s
            longer = {"pretrain.kimg": 76.8, "distill.kimg": 20.48}
            clone.set(longer)
            whole = self._whole(clone, "longer")
        row.seen, row.findings = interrupted(self.lab, clone, STOPS[name])
        changed = clone.differences(whole.files(), STAGES)
        row.expect(not changed, f"differs: {', '.join(changed)}" if changed else "same bytes")
        yield row

    def _whole(self, clone: Clone, name: str) -> Clone:
        done = copy(clone, self.folder / name)
        done.run("dvc", "repro", "distill")
        return done


Part: TypeAlias = Callable[[Bench], Iterator[Row]]


def _stop(name: str) -> Part:
    return lambda bench: bench.stop(name)


PARTS: Mapping[str, Part] = {
    **{name.replace(" ", "-"): _stop(name) for name in STOPS},
    # Far longer than it takes to start a second run on a busy machine; it is cancelled.
    "one-clone": lambda bench: one_clone(
        bench.lab, bench.clone("one-clone", **{"pretrain.kimg": 3840})
    ),
    "locks": lambda bench: locks(bench.lab, bench.clone("locks", **{"pretrain.kimg": 3840})),
    "shells": lambda bench: shells(bench.lab, bench.clone("shells")),
    "array": lambda bench: array(
        bench.lab,
        prepared(bench.folder / "array", **{"pretrain.kimg": 1.28, "distill.kimg": 0.64}),
    ),
    "worker": lambda bench: worker(bench.lab, bench.clone("worker", **{"pretrain.kimg": 38.4})),
    "two-nodes": lambda bench: two_nodes(bench.lab, bench.base, bench.whole),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Try everything; the exit code is 1 if something is not as promised."""
    parser = argparse.ArgumentParser(prog="python -m bench.slurm", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART")
    parser.add_argument("--out", type=Path, default=RESULTS / "slurm", metavar="FOLDER")
    given = parser.parse_args(arguments)
    if reason := missing():
        print(f"skipped: {reason}")
        return 0
    wrong = 0
    with TemporaryDirectory(prefix="slurm-") as name, Lab(Path(name) / "lab") as lab:
        bench = Bench(Path(name), lab)
        for part in given.parts:
            rows, begun = [], time.monotonic()
            try:
                rows.extend(PARTS[part](bench))
            except Exception as error:
                rows.append(Row(part, findings=[f"ended with {type(error).__name__}: {error}"]))
            for row in rows:
                print(f"{part}: {row.tried}", *row.seen, sep="\n  ", flush=True)
                print(*(f"  WRONG: {finding}" for finding in row.findings), sep="\n", flush=True)
                wrong += len(row.findings)
            _write(given.out, part, rows, time.monotonic() - begun)
    return int(wrong > 0)


def _write(folder: Path, part: str, rows: Sequence[Row], seconds: float) -> None:
    """Add a part to the result on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "seen.json"
    document = json.loads(file.read_text()) if file.is_file() else {}
    document[part] = {**origin(), "seconds": round(seconds), "rows": [asdict(row) for row in rows]}
    write_json(file, {name: document[name] for name in PARTS if name in document})
    (folder / "README.md").write_text(render(document))


def render(document: Mapping[str, Any]) -> str:
    """The page of a result."""
    rows, wrong = [], 0
    for name in filter(document.__contains__, PARTS):
        part = document[name]
        for row in part["rows"]:
            wrong += len(row["findings"])
            seen = [*row["seen"], *(f"**not as promised: {text}**" for text in row["findings"])]
            cell = "<br>".join(text.replace("|", "\\|").replace("\n", " ") for text in seen)
            right = "no" if row["findings"] else "yes"
            rows.append((name, row["tried"], cell, right, f"{part['commit'][:7]}"))
    lines = [
        "# On a SLURM of two nodes",
        "",
        "Written by `python -m bench.slurm`, which brings up SLURM on one machine "
        "([lab.py](../../../bench/slurm/lab.py)): a login host and two nodes with networks, "
        "names, processes and process ids of their own, and one shared folder. Networks are tiny. "
        "`run.checkpoint_minutes` is 60, so that nothing but a stop saves a state (0.05 where a "
        "node dies, which has no time to save). The yardstick is an uninterrupted run, byte for "
        "byte. Other work ran on the machine.",
        "",
        f"**{len(rows)} rows, {wrong} not as promised.** Parts not run: "
        f"{', '.join(name for name in PARTS if name not in document) or 'none'}.",
        "",
        markdown(["part", "tried", "seen", "right", "commit"], rows),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
