"""What dropout does to a distillation, by where it is on.

``python -m bench.accuracy.dropout --cifar FILE`` runs SiD with dropout 0.13 on two data sets of
8x8 pixels, the embedded clothes and CIFAR-10 in colour (a Parquet file with a column ``image``),
with three seeds. For each of them one teacher is trained and distilled in four ways that differ
only in where dropout is on. Every 100 steps 2,000 images of the averaged generator are compared
with the clean ones.

The ruler is the Frechet distance of the pixels themselves, in units of [-1, 1]: it sees their mean
and covariance. Writes ``docs/results/dropout/runs.csv`` and prints the table of its page. Three
processes, about 25 CPU minutes in all; ``--quick`` is a trial of a minute, which writes nothing.
"""

import argparse
import csv
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from dsd.distillation.trainer import Distillation, _FakeNoise
from dsd.metrics.frechet import Moments, frechet_distance, moments
from dsd.model.checkpoint import build_denoiser
from dsd.model.denoiser import Denoiser
from dsd.pretraining.trainer import TeacherTraining
from dsd.sources.reader import Reader, find_images
from dsd.utils.images import from_uint8
from dsd.utils.shapes import PerSample, Pixels
from pipeline.params.model import Params
from pipeline.params.reader import preview_params
from sandbox import ROOT

RESULTS = ROOT / "docs" / "results" / "dropout"
SEEDS, PROCESSES = (0, 1, 2), 3
BATCH, STEPS, EVERY, SAMPLES = 32, 400, 100, 2000
BATCH_OF_TEACHER, STEPS_OF_TEACHER = 64, 2000
SETTINGS: dict[str, Any] = {
    "network.patch_size": 1,
    "network.model_channels": 16,
    "network.channel_mult": [1],
    "network.attention_resolutions": [],
    "network.dropout": 0.13,
    "pretrain.batch_size": BATCH_OF_TEACHER,
    "pretrain.lr_warmup_kimg": 12.8,
    "distill.batch_size": BATCH,
}
"""What differs from params.yaml."""


class Data(NamedTuple):
    """Clean images and the level of the noise that teachers see on them."""

    name: str
    clean: Pixels
    sigma: float


def everywhere(run: Distillation) -> None:
    """The generator and the fake have dropout wherever they are called."""
    run.generator.train()
    run.fake.eval = lambda: run.fake  # type: ignore[method-assign]


def not_while_judging(run: Distillation) -> None:
    """The fake has none while it judges; it learns the generator's images with dropout."""
    run.generator.train()


def as_the_authors(run: Distillation) -> None:
    """The fake learns images without dropout and judges images with it."""
    follow = run._update_fake

    def separately(_v: list[Tensor], fakes: list[_FakeNoise]) -> PerSample | None:
        run.generator.eval()
        loss = follow(run._generate_all(fakes[0].z, retain_graph=False), fakes)
        run.generator.train()
        return loss

    run.generator.train()
    run._update_fake = separately  # type: ignore[method-assign]


def as_now(run: Distillation) -> None:
    """The generator has no dropout, the fake only while it learns."""


ARMS: dict[str, Callable[[Distillation], None]] = {
    "everywhere": everywhere,
    "not while judging": not_while_judging,
    "authors": as_the_authors,
    "now": as_now,
}


def images_of(path: Path, *, pad: int) -> Pixels:
    """The first 18,000 images of a file at 8x8."""
    source = find_images("parquet", path, None)
    reader = Reader(source, pad=pad, resolution=8, on_error="raise", max_images=18_000)
    return torch.from_numpy(np.concatenate(list(reader.blocks())))


def pixel_moments(images: Pixels) -> Moments:
    """Mean and covariance of pixels in [-1, 1]."""
    return moments(from_uint8(images).flatten(1))


def teacher_of(data: Data, params: Params, seed: int) -> Denoiser:
    """The average of a teacher of noisy images."""
    random = torch.Generator().manual_seed(seed)
    clean = from_uint8(data.clean)
    noisy = clean + data.sigma * torch.randn(clean.shape, generator=random)
    training = TeacherTraining(
        build_denoiser(params.network, clean.shape[1:], seed=seed),
        noisy,
        torch.full((len(clean),), data.sigma),
        params.pretrain,
        seed=seed,
        precision="float32",
    )
    for _ in training.steps():
        pass
    return training.average


def distances(
    teacher: Denoiser, data: Data, params: Params, seed: int, arm: str
) -> Iterator[dict[str, Any]]:
    """Distance and gap of one distillation, every so many steps."""
    run = Distillation(
        teacher,
        torch.full((len(data.clean),), data.sigma),
        data.clean.shape[1:],
        params.distill,
        params.pretrain,
        seed=seed,
        precision="float32",
    )
    ARMS[arm](run)
    reference, gaps = pixel_moments(data.clean), []
    for record in run.steps():
        gaps.append(float(record.gap.mean()))
        if run.step % EVERY == 0:
            found = frechet_distance(
                pixel_moments(run.average.sample(SAMPLES, seed=seed)), reference
            )
            yield {
                "data": data.name, "seed": seed, "arm": arm, "step": run.step,
                "frechet": round(found, 5), "gap": round(statistics.mean(gaps[-EVERY:]), 7),
            }  # fmt: skip


def one_seed(data: Data, params: Params, seed: int) -> list[dict[str, Any]]:
    """All arms from one teacher."""
    torch.set_num_threads(1)
    teacher, rows = teacher_of(data, params, seed), []
    for arm in ARMS:
        for row in distances(teacher, data, params, seed, arm):
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    print(f"{time.process_time():.0f} CPU seconds", file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Mean and standard deviation over the seeds of each arm, and of its difference to now."""
    steps = sorted({row["step"] for row in rows})
    yield f"| data | dropout | {' | '.join(map(str, steps))} | gap of the last {EVERY} |"
    yield "|---|---" + "|---" * (len(steps) + 1) + "|"
    for name, arm in dict.fromkeys((row["data"], row["arm"]) for row in rows):
        cells = []
        for step in steps:
            here = {
                (row["arm"], row["seed"]): row["frechet"]
                for row in rows
                if (row["data"], row["step"]) == (name, step)
            }
            seeds = [seed for other, seed in here if other == arm]
            over = [here[arm, seed] - here["now", seed] for seed in seeds if ("now", seed) in here]
            cell = _shown([here[arm, seed] for seed in seeds])
            cells.append(cell if arm == "now" else f"{cell} (now {_shown([-o for o in over])})")
        last = [
            row["gap"]
            for row in rows
            if (row["data"], row["arm"], row["step"]) == (name, arm, steps[-1])
        ]
        yield f"| {name} | {arm} | {' | '.join(cells)} | {statistics.mean(last):.5f} |"


def _shown(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} +- {spread:.3f}"


def main() -> None:
    """Run all and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cifar", type=Path, required=True, help="Parquet file of CIFAR-10")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    clothes = ROOT / "data" / "embedded" / "fashion-mnist.parquet"
    sets = (
        Data("clothes", images_of(clothes, pad=2), 0.5),
        Data("CIFAR-10", images_of(given.cifar, pad=0), 0.2),
    )
    lengths = {
        "pretrain.kimg": (250 if given.quick else STEPS_OF_TEACHER) * BATCH_OF_TEACHER / 1000,
        "distill.kimg": (EVERY if given.quick else STEPS) * BATCH / 1000,
    }
    params = preview_params(ROOT, {**SETTINGS, **lengths})
    tasks = [(data, params, seed) for seed in SEEDS[: 1 if given.quick else None] for data in sets]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        rows = [row for found in pool.starmap(one_seed, tasks, chunksize=1) for row in found]
    rows.sort(key=lambda row: row["data"], reverse=True)
    if not given.quick:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / "runs.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
