"""How to compute: the sections ``compute`` and ``run``."""

from typing import Annotated, Literal

from pydantic import Field

from dsd.utils.config import AutoCount, Count, Positive, Section


class Compute(Section):
    """How to compute. Results differ in the last digits, so that a change reruns stages."""

    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "tf32", "bfloat16"]
    """Arithmetic inside the networks while training; weights, losses and metrics stay float32 or
    better. ``float32``: in full, on GPUs too; ``tf32``: products with factors of 10 bits, on
    NVIDIA GPUs since 2020; ``auto``: bfloat16 where the machine has units for it, else
    float32."""

    compile: Literal["auto", "on", "off"]
    """Whether to compile the networks' blocks while training and, on one GPU, to replay whole
    steps as CUDA graphs (docs/running.md): faster steps after about a minute. ``auto``: on GPUs
    for which there is a compiler; ``on``: on CPUs too, or an error."""

    micro_batch_size: AutoCount
    """Most images in one forward pass of a process while training; a larger share of a batch is
    split, and its gradients accumulate (docs/running.md). ``auto``: on a GPU the
    share is halved until a step fits into memory; on a CPU it stays whole."""

    activation_checkpointing: bool
    """Whether to keep only the inputs of the network's blocks while training and compute the rest
    again for the gradient: less memory (docs/running.md), a third more arithmetic for the teacher,
    on a CPU the same bits."""


class Run(Section):
    """How to run. No result depends on these, so that a change reruns nothing."""

    eval_batch_size: Count
    """Images in a batch when nothing is trained."""

    checkpoint_minutes: Positive
    """Interval of resumable states, in minutes."""

    max_nonfinite_retries: Annotated[int, Field(ge=0)]
    """Maximum number of restarts from the last checkpoint after a NaN or infinite value. Nothing
    is changed for a restart."""
