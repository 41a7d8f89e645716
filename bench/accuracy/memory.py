"""Does the paper's CIFAR-10 setting fit into 8 GB, and does the estimate hold?

``python -m bench.accuracy.memory`` prints two tables: in how many parts both trainings of the
preset ``cifar10`` take a batch on a device of 8 GB, by our estimate on fake tensors, which need
neither a GPU nor time; then estimates beside the resident memory that real steps of the same
networks had at their peak, each in a process of its own, on the CPU. About 10 minutes on one core.
"""

import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dsd.distillation.trainer import Distillation
from dsd.model.denoiser import Denoiser
from dsd.model.networks.unet import UNet
from dsd.pretraining.trainer import TeacherTraining
from dsd.training.distributed import Team
from dsd.training.memory import Part, bytes_of_parts, bytes_to_come, largest_part
from pipeline.params.model import Params
from pipeline.params.presets import apply_preset
from pipeline.params.reader import load_params
from pipeline.planning.gauge import peak_memory
from sandbox import ROOT

CPU = torch.device("cpu")
SHAPE = (3, 32, 32)
COUNT = 50_000
DEVICE_BYTES = 8e9
CONTEXT_BYTES = 0.5e9
"""What a CUDA context takes, about."""

REAL = (
    ("pretrain", 8, 8, False),
    ("pretrain", 8, 4, False),
    ("pretrain", 16, 16, True),
    ("distill", 8, 4, False),
    ("distill", 8, 4, True),
)
"""Stage, batch, images at once, activation checkpointing."""


def settings() -> Params:
    """The preset on top of the committed parameters."""
    with TemporaryDirectory() as folder:
        shutil.copy(ROOT / "params.yaml", folder)
        apply_preset("cifar10", Path(folder))
        return load_params(Path(folder))


def training(
    stage: str, batch: int, at_once: int | None, *, checkpointing: bool, count: int = COUNT
) -> TeacherTraining | Distillation:
    """A training of the preset with fresh weights and images without content."""
    params, sigma = settings(), torch.full((count,), 0.2)
    denoiser = Denoiser(
        UNet(params.network, channels=3, resolution=32), sigma_data=params.network.sigma_data
    )
    config = params.pretrain.model_copy(update={"batch_size": batch})
    if stage == "pretrain":
        return TeacherTraining(
            denoiser, torch.zeros(count, *SHAPE), sigma, config, seed=0, precision="float32",
            team=Team(at_once=at_once), activation_checkpointing=checkpointing,
        )  # fmt: skip
    return Distillation(
        denoiser, sigma, SHAPE, params.distill.model_copy(update={"batch_size": batch}), config,
        seed=0, precision="float32", team=Team(at_once=at_once),
        activation_checkpointing=checkpointing,
    )  # fmt: skip


def resident(run: TeacherTraining | Distillation) -> int:
    """Bytes of weights and of the images that the training keeps on the device."""
    modules = [value for value in vars(run).values() if isinstance(value, torch.nn.Module)]
    weights = {parameter for module in modules for parameter in module.parameters()}
    images = [value for value in vars(run).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in (*weights, *images))


def estimated(stage: str, *, checkpointing: bool) -> tuple[int, Part]:
    """What is there before the first step, and the largest part that fits beside it."""
    params = settings()
    batch = getattr(params, stage).batch_size
    with FakeTensorMode(allow_non_fake_inputs=True):
        run = training(stage, batch, None, checkpointing=checkpointing)
        there = resident(run)
        free = DEVICE_BYTES - CONTEXT_BYTES - there
        return there, largest_part(run, Team(), free=free, device=CPU)


def peak(stage: str, batch: int, at_once: int, checkpointing: bool) -> float:
    """Most resident memory that two real steps added to what the process had."""
    before = psutil.Process().memory_info().rss
    run = training(stage, batch, at_once, checkpointing=checkpointing, count=batch)
    for _, _ in zip(range(2), run.steps(), strict=False):
        pass
    return float(peak_memory(CPU).host - before)


def predicted(stage: str, batch: int, at_once: int, checkpointing: bool) -> float:
    """What we say of the same, by rehearsals on fake tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        run = training(stage, batch, None, checkpointing=checkpointing, count=batch)
        to_come = bytes_to_come(run.optimizers)
        run.rehearse(Team(0, batch))
        line = bytes_of_parts(run, parts=1 if at_once == batch else 2, device=CPU)
        return resident(run) + to_come + line.at(at_once)


def main() -> None:
    """Print both tables."""
    print("| stage | checkpointing | there before | images at once | parts | needed besides |")
    print("|---|---|---|---|---|---|")
    for stage in ("pretrain", "distill"):
        for checkpointing in (False, True):
            there, part = estimated(stage, checkpointing=checkpointing)
            parts = -(-part.share // part.images) if part.images else 0
            print(
                f"| {stage} | {checkpointing} | {there / 1e9:.2f} GB | {part.images} of "
                f"{part.share} | {parts} | {part.needed / 1e9:.2f} GB |",
                flush=True,
            )
    print("\n| stage | batch | at once | checkpointing | predicted | resident at the peak |")
    print("|---|---|---|---|---|---|")
    for case in REAL:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            said, real = predicted(*case), pool.submit(peak, *case).result()
        cells = " | ".join(map(str, case))
        print(f"| {cells} | {said / 1e9:.2f} GB | {real / 1e9:.2f} GB |", flush=True)


if __name__ == "__main__":
    main()
