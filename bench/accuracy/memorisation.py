"""Measure how well copies of training images are found.

``python -m bench.accuracy.memorisation [--cifar FILE]``

Writes ``docs/results/memorisation/power.csv``. No network is trained: "generated" images are
copies, mixtures and fresh images of the set, drawn again for each seed. The embedded clothes are
always used; ``FILE`` is a Parquet file of 32 x 32 colour images, averaged to 16 x 16. About 3
minutes on one core.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dsd.evaluation.memorisation import ALARM, Memorisation, Observations, memorisation
from dsd.operators.config import DownsampleOperator, IdentityOperator, MaskOperator, OperatorChoice
from dsd.operators.operator import Operator
from dsd.sources.reader import Reader, find_images
from dsd.utils.images import from_uint8, to_uint8
from pipeline.stage_io.tables import write_csv
from sandbox import ROOT
from scripts.fit_fashion_classifier import SOURCE

RESULTS = ROOT / "docs" / "results" / "memorisation"
NUM_IMAGES = 20_000
PART = 10
"""A tenth of a set is held out, a tenth generated, and a tenth (fresh) takes part in nothing."""

LEVELS = (0.5, 0.2, 0.05, 1.0, 0.1)
IDENTITY = IdentityOperator(kind="identity")


class Images(NamedTuple):
    """One random split of a set, in data units."""

    training: Tensor
    observed: Tensor
    """Their observations."""

    fresh: Tensor


def _mixed(copies: Tensor, others: Tensor, share: float) -> Tensor:
    count = round(share * len(others))
    return torch.cat([copies[:count], others[count:]])


def _blurred(x: Tensor) -> Tensor:
    """Convolved with (1, 2, 4, 2, 1) / 10 along both axes."""
    kernel = torch.tensor([1.0, 2.0, 4.0, 2.0, 1.0]) / 10
    weight = torch.outer(kernel, kernel).expand(x.shape[1], 1, 5, 5)
    padded = functional.pad(x, (2, 2, 2, 2), mode="reflect")
    return functional.conv2d(padded, weight, groups=x.shape[1])


Make: TypeAlias = Callable[[Images], Tensor]

CASES: dict[str, Make] = {
    "fresh": lambda of: of.fresh,
    "fresh, blurred": lambda of: _blurred(of.fresh),
    "copies": lambda of: of.training[: len(of.fresh)],
    "copies, blurred": lambda of: _blurred(of.training[: len(of.fresh)]),
    "copies of observations": lambda of: of.observed[: len(of.fresh)],
    "20 % copies, others fresh": lambda of: _mixed(of.training, of.fresh, 0.2),
    "20 % copies, others blurred": lambda of: _mixed(of.training, _blurred(of.fresh), 0.2),
    "100 copies, 20 times each": lambda of: of.training[:100].repeat(20, 1, 1, 1),
}
FEW = ("fresh", "copies", "20 % copies, others fresh")
COLOUR = (*FEW, "20 % copies, others blurred", "100 copies, 20 times each")


class Study(NamedTuple):
    """What is tried on one set."""

    name: str
    images: Tensor
    seeds: int
    levels: tuple[float, ...] = LEVELS
    cases: tuple[str, ...] = tuple(CASES)
    operator: OperatorChoice = IDENTITY
    clean: float = 0.0
    """Share of observations without noise."""


def studies(cifar: Path | None) -> Iterator[Study]:
    """All of them; the last is to see how often fresh images raise an alarm."""
    clothes = _read(ROOT / SOURCE, pad=2)
    yield Study("clothes", clothes, 2)
    mask = MaskOperator(kind="mask", keep_prob=0.6, further_mask_prob=0.1)
    half = DownsampleOperator(kind="downsample", factor=2)
    yield Study("clothes, 60 % of the pixels", clothes, 1, (0.2, 0.5), FEW, mask)
    yield Study("clothes, downsampled to 8 x 8", clothes, 1, (0.2, 0.5), FEW, half)
    yield Study("clothes, 10 % without noise", clothes, 1, (0.5,), FEW, clean=0.1)
    if cifar is not None:
        yield Study("CIFAR-10", _read(cifar, pad=0), 1, (0.5, 0.2, 1.0), COLOUR)
    some = clothes[:5000]
    yield Study("5,000 clothes", some, 60, (0.05, 0.5), ("fresh", "fresh, blurred"))


def _read(file: Path, *, pad: int) -> Tensor:
    source = find_images("parquet", file, None)
    reader = Reader(
        source, pad=pad, resolution=16, on_error="raise", max_images=NUM_IMAGES, noisy=False
    )
    return torch.from_numpy(np.concatenate([*reader.blocks()]))


def search(study: Study, sigma: float, case: str, seed: int) -> Memorisation:
    """Split, observe, make the "generated" images and search among them."""
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(study.images), generator=random)
    x = from_uint8(study.images[order])
    part = len(x) // PART
    known, fresh = x[:-part], x[-part:]
    operator = Operator(study.operator, tuple(known.shape[1:]))
    mapped = operator.mapped(known)
    noisy = torch.rand(len(known), generator=random) >= study.clean
    level = sigma * noisy.float()
    view = None if operator.views is None else operator.views.draw(len(known), random)
    noise = torch.randn(mapped.shape, generator=random)
    y = operator.project(mapped + level[:, None, None, None] * noise, view)
    training, heldout = (
        Observations.of(y[rows], level[rows], None if view is None else view[rows])
        for rows in (slice(part, None), slice(part))
    )
    images = CASES[case](Images(known[part:], y[part:], fresh))
    return memorisation(to_uint8(images), training, heldout, operator=operator, seed=seed)


class Row(NamedTuple):
    """One case at one level: sums and means over seeds."""

    images: str
    sigma: float
    generated: str
    seeds: int
    below_1_percent: int
    below_5_percent: int
    median_p: float
    matched_training: float
    by_chance: float
    recognised: float
    noticed_from: float | None
    """The largest of the seeds; empty if no share would be noticed in one of them."""

    repeated: float
    distinct: float | None
    """The mean; empty if nothing is repeated in one of the seeds."""


def summed(study: Study, sigma: float, case: str) -> Row:
    """All seeds of one case at one level."""
    found = [search(study, sigma, case, seed) for seed in range(study.seeds)]
    p = np.array([one.p_value for one in found])
    shares = [one.noticed_from for one in found]
    counts = [one.distinct for one in found]
    return Row(
        study.name,
        sigma,
        case,
        len(found),
        int((p < ALARM).sum()),
        int((p < 0.05).sum()),
        float(f"{np.median(p):.2g}"),
        round(float(np.mean([one.matched_training for one in found])), 4),
        round(found[0].by_chance, 4),
        round(float(np.mean([one.recognised for one in found])), 3),
        None if None in shares else max(share for share in shares if share is not None),
        round(float(np.mean([one.repeated for one in found])), 4),
        None if None in counts else round(float(np.mean([c for c in counts if c is not None]))),
    )


def main() -> None:
    """Read the command line, run all studies, write the table."""
    parser = argparse.ArgumentParser(description="how well copies of training images are seen")
    parser.add_argument("--cifar", type=Path, help="Parquet file of 32 x 32 colour images")
    args = parser.parse_args()
    rows = []
    for study in studies(args.cifar):
        for sigma, case in product(study.levels, study.cases):
            rows.append(summed(study, sigma, case))
            print(*rows[-1], sep=", ", flush=True)
            RESULTS.mkdir(parents=True, exist_ok=True)
            write_csv(RESULTS / "power.csv", list(Row._fields), rows)


if __name__ == "__main__":
    main()
