"""What the sections of both trainings have in common."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dsd.utils.config import Count, NonNegative, Positive, Section

__all__ = ["TrainingSection"]


class TrainingSection(Section):
    """Length, step sizes and averages of a training."""

    batch_size: Count

    kimg: Positive
    """Length of training, in thousands of images."""

    learning_rate: Positive
    """Peak Adam step size."""

    lr_warmup_kimg: NonNegative
    """Linear warm-up of the step size, at most ``kimg``."""

    lr_schedule: Literal["constant", "cosine"]
    """Step size after the warm-up."""

    ema_halflife_kimg: Positive
    """Half-life of the exponential moving average of the weights."""

    ema_rampup_ratio: Annotated[float, Field(gt=0, le=1)]
    """The half-life is at most this fraction of the images seen so far."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "TrainingSection":
        if self.lr_warmup_kimg > self.kimg:
            msg = (
                f"lr_warmup_kimg {self.lr_warmup_kimg:g} exceeds kimg {self.kimg:g}, so the step "
                "size would never reach learning_rate; lower it"
            )
            raise ValueError(msg)
        return self
