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
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.common import EMBEDDED, RESULTS, images_of, write_rows
from dsd.evaluation.memorisation import ALARM, Memorisation, Observations, memorisation
from dsd.operators.config import DownsampleOperator, IdentityOperator, MaskOperator, OperatorChoice
from dsd.operators.operator import Operator
from dsd.utils.images import from_uint8, to_uint8

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


CASES: dict[str, Callable[[Images], Tensor]] = {
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
    clothes = images_of(EMBEDDED, count=NUM_IMAGES, pad=2, resolution=16)
    yield Study("clothes", clothes, 2)
    mask = MaskOperator(kind="mask", keep_prob=0.6, further_mask_prob=0.1)
    half = DownsampleOperator(kind="downsample", factor=2)
    yield Study("clothes, 60 % of the pixels", clothes, 1, (0.2, 0.5), FEW, mask)
    yield Study("clothes, downsampled to 8 x 8", clothes, 1, (0.2, 0.5), FEW, half)
    yield Study("clothes, 10 % without noise", clothes, 1, (0.5,), FEW, clean=0.1)
    if cifar is not None:
        colour = images_of(cifar, count=NUM_IMAGES, resolution=16)
        yield Study("CIFAR-10", colour, 1, (0.5, 0.2, 1.0), COLOUR)
    some = clothes[:5000]
    yield Study("5,000 clothes", some, 60, (0.05, 0.5), ("fresh", "fresh, blurred"))


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


def summed(study: Study, sigma: float, case: str) -> dict[str, object]:
    """Sums and means over the seeds of one case at one level.

    ``noticed_from`` is the largest of the seeds, and ``distinct`` the mean; both are empty where
    one of the seeds has none.
    """
    found = [search(study, sigma, case, seed) for seed in range(study.seeds)]
    p = np.array([one.p_value for one in found])
    shares = [one.noticed_from for one in found if one.noticed_from is not None]
    counts = [one.distinct for one in found if one.distinct is not None]
    return {
        "images": study.name,
        "sigma": sigma,
        "generated": case,
        "seeds": len(found),
        "below_1_percent": int((p < ALARM).sum()),
        "below_5_percent": int((p < 0.05).sum()),
        "median_p": float(f"{np.median(p):.2g}"),
        "matched_training": round(float(np.mean([one.matched_training for one in found])), 4),
        "by_chance": round(found[0].by_chance, 4),
        "recognised": round(float(np.mean([one.recognised for one in found])), 3),
        "noticed_from": max(shares) if len(shares) == len(found) else None,
        "repeated": round(float(np.mean([one.repeated for one in found])), 4),
        "distinct": round(float(np.mean(counts))) if len(counts) == len(found) else None,
    }


def main() -> None:
    """Read the command line, run all studies, write the table."""
    parser = argparse.ArgumentParser(description="how well copies of training images are seen")
    parser.add_argument("--cifar", type=Path, help="Parquet file of 32 x 32 colour images")
    rows = []
    for study in studies(parser.parse_args().cifar):
        for sigma, case in product(study.levels, study.cases):
            rows.append(summed(study, sigma, case))
            print(*rows[-1].values(), sep=", ", flush=True)
            write_rows(RESULTS / "memorisation" / "power.csv", rows)


if __name__ == "__main__":
    main()
