"""The teacher's training: the section ``pretrain``."""

from typing import Literal

from pydantic import model_validator

from dsd.model.config import TeacherNoise
from dsd.training.config import TrainingSection
from dsd.utils.config import Count, NonNegative, Positive, Section

Objective = Literal["adjusted", "standard"]

Weighting = Literal["edm", "ambient-omni", "inverse-variance"]


class Consistency(Section):
    """Agreement of the teacher with its own reverse process, below the noise of the data."""

    weight: NonNegative
    """Coefficient beside the denoising loss; 0 leaves the term out. The paper's consistency
    baseline fine-tunes with 10."""

    batch_size: Count
    """Images of each step on which it is measured, at most ``pretrain.batch_size``."""

    num_steps: Count
    """Steps of the reverse process from the observation's level down to the pair of near levels
    that are compared, with one evaluation each; the pair takes three more."""


class Pretrain(TrainingSection):
    """Fitting the teacher denoiser to noisy images."""

    objective: Objective
    """``adjusted``: ambient Tweedie, learns E[x0 | x_t]; ``standard``: EDM on y, learns the
    distribution of noisy images."""

    weighting: Weighting
    """Weight of each noise level in the loss. All agree with the objective ``standard``."""

    noise: TeacherNoise

    consistency: Consistency

    sample_every_kimg: Positive
    """Interval of sample grids; there is one at the end in any case."""

    @model_validator(mode="after")
    def _consistency_fits(self) -> "Pretrain":
        if self.consistency.weight == 0:
            return self
        if self.objective == "standard":
            msg = (
                "consistency.weight is for objective: adjusted, because the standard objective "
                "trains at every level; set it to 0.0"
            )
            raise ValueError(msg)
        if self.consistency.batch_size > self.batch_size:
            msg = (
                f"consistency.batch_size {self.consistency.batch_size} exceeds batch_size "
                f"{self.batch_size}; lower it"
            )
            raise ValueError(msg)
        return self
