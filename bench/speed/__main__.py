"""Measure how fast everything is: ``python -m bench.speed``; bench/README.md explains it."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.speed import machine
from bench.speed.contests import GROUPS, Checkouts, contests, limits
from bench.speed.race import Worker, race
from bench.speed.settings import Setting, settings
from bench.speed.table import page
from pipeline.params.reader import load_params
from pipeline.tracking.provenance import commit_of, is_dirty

__all__ = ["main", "measure"]

from sandbox import ROOT

RESULTS = Path("docs/results/speed")
SCRATCH = Path(".dsd/bench/speed")
"""Results of a part, which must not replace a whole one."""

_TURN_SECONDS = 0.7


def measure(
    groups: Sequence[str],
    sizes: Sequence[Setting],
    checkouts: Checkouts,
    device: torch.device,
    *,
    pairs: int,
    seconds: float,
    command: str,
) -> dict[str, Any]:
    """Measure some groups of comparisons, and the machine's peaks.

    Args:
        groups: Names among ``contests.GROUPS``.
        sizes: Of networks, images and batches.
        checkouts: The reference implementations.
        device: Where networks compute.
        pairs: Turns that each way to do something has at most.
        seconds: Of one turn, about.
        command: By which this was asked for.

    Returns:
        All timings and where they come from, as JSON can say it.
    """
    begun, load = datetime.now(UTC), os.getloadavg()[0]
    found = []
    with Worker(limits(device.type), device) as limit:
        threads = limit.begin()["threads"]
        for contest in contests(groups, device.type, sizes, checkouts):
            print(contest.name, file=sys.stderr, flush=True)
            found.append(race(contest, device, limit, pairs=pairs, seconds=seconds))
    return {
        "command": command,
        "date": begun.isoformat(timespec="seconds"),
        "minutes": (datetime.now(UTC) - begun).total_seconds() / 60,
        "commit": commit_of(ROOT),
        "dirty": is_dirty(ROOT),
        "machine": machine.description(device),
        "threads": threads,
        "load": [load, os.getloadavg()[0]],
        "pairs": pairs,
        "contests": found,
    }


def write(results: dict[str, Any], folder: Path, name: str) -> None:
    """Write ``NAME.json``, and ``NAME.md`` made from it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1) + "\n"
    (folder / f"{name}.json").write_text(text)
    (folder / f"{name}.md").write_text(page(json.loads(text)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--edm", type=Path, metavar="DIR", help="a checkout of NVlabs/edm")
    parser.add_argument("--sid", type=Path, metavar="DIR", help="a checkout of mingyuanzhou/SiD")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pairs", type=int, default=15, metavar="N", help="turns of each at most")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"some of {','.join(GROUPS)}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go")
    given = parser.parse_args()
    given.only = given.only.split(",")
    for group in given.only:
        if group not in GROUPS:
            parser.error(f"--only: there is no {group!r}; there are {', '.join(GROUPS)}")
    if given.pairs < 1:
        parser.error(f"--pairs is {given.pairs}: give at least 1")
    for option, file in (("edm", "training/loss.py"), ("sid", "training/sid_loss.py")):
        folder = getattr(given, option)
        if folder is not None and not (folder / file).is_file():
            parser.error(f"--{option}: {folder} has no {file}; clone the repository, name it")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; check the driver with `nvidia-smi`")
    return given


def _command(given: argparse.Namespace) -> str:
    """What was asked for, without the folders, which are nobody's business."""
    words = ["python", "-m", "bench.speed"]
    words += [f"--{name} DIR" for name in ("edm", "sid") if getattr(given, name) is not None]
    words += [f"--device {given.device}", f"--pairs {given.pairs}"]
    if set(given.only) != set(GROUPS):
        words.append(f"--only {shlex.quote(','.join(given.only))}")
    return " ".join(words)


def main() -> None:
    """Measure, write, and print the tables."""
    given = _arguments()
    whole = set(given.only) == set(GROUPS)
    folder = given.out or ROOT / (RESULTS if whole else SCRATCH)
    results = measure(
        given.only,
        settings(load_params(ROOT), given.device),
        Checkouts(given.edm, given.sid),
        torch.device(given.device),
        pairs=given.pairs,
        seconds=_TURN_SECONDS,
        command=_command(given),
    )
    write(results, folder, given.device)
    print((folder / f"{given.device}.md").read_text())
    failed = [
        f"{contest['name']}, {entry['label']}: {entry['missing']}"
        for contest in results["contests"]
        for entry in contest["contestants"]
        if (entry["missing"] or "").startswith("failed")
    ]
    if failed:
        sys.exit("\n".join(["error: not all could be measured", *failed]))


if __name__ == "__main__":
    main()
