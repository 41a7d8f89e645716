"""The five stages of dvc.yaml, each a module with ``run(context)``."""

from typing import NamedTuple

__all__ = ["STAGES", "TRAININGS", "Stage"]


class Stage(NamedTuple):
    """A stage, for commands and reports."""

    description: str

    trains: bool = False
    """Whether several processes may share it, and whether it saves its state on a signal; all
    others are interrupted."""


STAGES = {
    "prepare": Stage("bring the source's images to one layout"),
    "corrupt": Stage("make one fixed noisy observation of each image"),
    "pretrain": Stage("fit the teacher to noisy images", trains=True),
    "distill": Stage("distil the teacher into a one-step generator", trains=True),
    "evaluate": Stage("measure the generator and its teacher"),
}
"""In the order of the pipeline."""

TRAININGS = tuple(name for name, stage in STAGES.items() if stage.trains)
