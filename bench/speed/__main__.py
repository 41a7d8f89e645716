"""Measure how fast everything is: ``python -m bench.speed [--parts PART ...]``."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.runtime.signals import set_up_cpu

set_up_cpu()  # before torch loads, as for the stages

import torch  # noqa: E402

from bench.common import CPU, origin  # noqa: E402
from bench.speed import others, trainings  # noqa: E402
from bench.speed.timing import Comparison, measure, table  # noqa: E402

__all__ = ["PARTS", "main"]

PARTS = ("teacher", "distill", "sampling", "frechet", "data", "startup")


def comparisons(given: argparse.Namespace, device: torch.device) -> Iterator[Comparison]:
    """All comparisons of the parts that were asked for; each is built when it is its turn."""
    quick, edm, sid = given.quick, given.edm, given.sid
    sizes = [_tiny()] if quick else trainings.settings()
    made: dict[str, Callable[[], Iterable[Comparison]]] = {
        "teacher": lambda: (trainings.compare_teachers(size, device, edm) for size in sizes),
        "distill": lambda: (trainings.compare_distillations(size, device, sid) for size in sizes),
        "sampling": lambda: chain.from_iterable(
            others.compare_samplers(size, device, edm) for size in sizes
        ),
        "frechet": lambda: others.distances((32,) if quick else (1280, 2048)),
        "data": lambda: others.data_stages(sizes[0], device, 300 if quick else 16_000),
        "startup": others.startup,
    }
    for part in given.parts:
        yield from made[part]()


def _tiny() -> trainings.Setting:
    changes = {"model_channels": 8, "channel_mult": [1], "attention_resolutions": []}
    network = trainings.parameters().network.model_copy(update=changes)
    return trainings.Setting("tiny", (1, 16, 16), network, 4, 2, 2)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--edm", type=Path, metavar="DIR", help="a checkout of NVlabs/edm")
    parser.add_argument("--sid", type=Path, metavar="DIR", help="a checkout of mingyuanzhou/SiD")
    parser.add_argument("--seconds", type=float, default=10.0, help="least time for each way")
    parser.add_argument("--quick", action="store_true", help="a tiny network, to see it work")
    parser.add_argument("--out", type=Path, metavar="FILE", help="every timing, as JSON")
    given = parser.parse_args(arguments)
    for option, file in (("edm", "training/loss.py"), ("sid", "training/sid_loss.py")):
        folder = getattr(given, option)
        if folder is not None and not (folder / file).is_file():
            parser.error(f"--{option}: {folder} has no {file}; clone the repository, name it")
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print each table when it is there."""
    given = _arguments(arguments)
    device, results = CPU, list[dict[str, Any]]()
    document = {
        **origin(device),
        "threads": torch.get_num_threads(),
        "comparisons": results,
    }
    for comparison in comparisons(given, device):
        print(comparison.title, file=sys.stderr, flush=True)
        results.append(measure(comparison, 0.03 if given.quick else given.seconds))
        print(table(results[-1]), flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
