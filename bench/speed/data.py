"""Images on their way from the source to a training step."""

from collections.abc import Mapping
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.speed.trainings import new_training
from bench.speed.work import Work
from dsd.storage.image_store import ImageStore
from dsd.utils.random import step_generator
from pipeline.execution.run import run_stage
from pipeline.params.model import Params
from pipeline.params.reader import load_params
from pipeline.runtime.launch import FollowerLog
from pipeline.runtime.signals import StopSignal
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, prepare
from pipeline.tracking import tracker as tracking  # noqa: F401 - stages import tracking too

__all__ = ["corrupt_stage", "load_store", "prepare_stage", "training_step", "waiting"]

from sandbox import ROOT as _ROOT


class _Stages:
    """The first two stages, on the embedded images, in a folder that goes with the process."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._folder = TemporaryDirectory()
        self.paths = Paths(Path(self._folder.name))
        self._params = _params(options["images"])
        self.noisy = self.paths.artifact("corrupt") / "train"
        self._log = FollowerLog(StopSignal())

    def prepare(self) -> None:
        """Write ``data/prepare``."""
        run_stage(prepare, self._params, self.paths, self._log)

    def corrupt(self) -> None:
        """Write ``data/corrupt``."""
        run_stage(corrupt, self._params, self.paths, self._log)


def _params(images: int) -> Params:
    """params.yaml's, with so many images of the embedded set."""
    params = load_params(_ROOT)
    path = str(_ROOT / params.data.path)
    data = params.data.model_copy(update={"path": path, "max_images": images})
    few = params.corrupt.model_copy(update={"num_heldout": images // 10})
    return params.model_copy(update={"data": data, "corrupt": few})


def _bytes(folder: Path) -> int:
    """Of the images of a store."""
    return sum(block.nbytes for block in ImageStore.open(folder).raw())


def prepare_stage(device: torch.device, options: Mapping[str, Any]) -> Work:
    """The stage ``prepare``: decode, pad, scale down, write with a hash."""
    stages = _Stages(options)
    stages.prepare()
    return Work(stages.prepare, 1e-6 * _bytes(stages.paths.artifact("prepare")))


def corrupt_stage(device: torch.device, options: Mapping[str, Any]) -> Work:
    """The stage ``corrupt``: check a hash, draw noise, add it, write with a hash."""
    stages = _Stages(options)
    stages.prepare()
    stages.corrupt()
    parts = [stages.paths.artifact("corrupt") / part for part in ("train", "heldout")]
    written = sum(map(_bytes, parts))
    moved = _bytes(stages.paths.artifact("prepare")) + written
    return Work(stages.corrupt, 1e-6 * written, moved=moved)


def load_store(device: torch.device, options: Mapping[str, Any]) -> Work:
    """What a training does first: check the noisy images' hashes, and take them into memory."""
    stages = _Stages(options)
    stages.prepare()
    stages.corrupt()
    size = _bytes(stages.noisy)

    def load() -> None:
        ImageStore.open(stages.noisy).all().to(device)

    return Work(load, 1e-6 * size, moved=2 * size)


def training_step(device: torch.device, options: Mapping[str, Any]) -> Work:
    """A whole step of the teacher's training."""
    return Work(partial(next, new_training(device, options).steps()), 1.0)


def waiting(device: torch.device, options: Mapping[str, Any]) -> Work:
    """What a step does before the network can work: choose images, gather them, draw noise."""
    training = new_training(device, options)
    numbers = count()

    def draw() -> None:
        training.step = next(numbers)
        training._draw(step_generator(0, "pretrain", training.step, device))

    return Work(draw, 1.0)
