"""The distillation: the section ``distill``."""

import difflib
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, WithJsonSchema

from dsd.model.config import GeneratorNoise, TeacherNoise
from dsd.selection.config import Selection
from dsd.training.config import TrainingSection
from dsd.utils.config import Count, Fraction, Positive
from dsd.utils.functions import FUNCTION_PATTERN, is_function_name


class Divergence(NamedTuple):
    """A loss of the generator: an entry of :data:`DIVERGENCES`, or a function of a user's own."""

    function: str
    """``package.module:function``, called with generated images and a ``DenoiserPair``."""

    options: tuple[str, ...] = ()
    """Keys of ``distill`` that are further arguments."""

    needs_fake: bool = True
    """Whether a fake denoiser learns. Otherwise the generated image stands for what it returns."""


DIVERGENCES = {
    "sid": Divergence("dsd.distillation.losses:score_identity_loss", options=("alpha",)),
    "dmd": Divergence("dsd.distillation.losses:reverse_kl_loss"),
    "sds": Divergence(
        "dsd.distillation.losses:score_distillation_sampling_loss", needs_fake=False
    ),
}
"""Divergences that come with dsd, by name."""


def _known_divergence(value: str) -> str:
    if value not in DIVERGENCES and not is_function_name(value):
        close = difflib.get_close_matches(value, DIVERGENCES, n=1)
        msg = (
            f'"{value}" must be one of {", ".join(DIVERGENCES)}, or a function '
            f"package.module:function{f'; did you mean {close[0]}?' if close else ''}"
        )
        raise ValueError(msg)
    return value


DivergenceName = Annotated[
    str,
    AfterValidator(_known_divergence),
    WithJsonSchema(
        {"type": "string", "pattern": f"^({'|'.join(DIVERGENCES)}|{FUNCTION_PATTERN})$"}
    ),
]


class Distill(TrainingSection):
    """Distilling the teacher into a one-step generator."""

    kimg: Positive
    """Length of distillation, counted in images generated for the generator's own step."""

    learning_rate: Positive
    """Peak Adam step size of the generator."""

    learning_rate_fake: Positive
    """Peak Adam step size of the fake denoiser. Not used with ``sds``."""

    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    """Adam's decay rates, for both networks."""

    fake_updates_per_step: Count
    """Steps of the fake denoiser for each step of the generator. Not used with ``sds``."""

    divergence: DivergenceName
    """``sid``: Fisher divergence with SiD's gradient; ``dmd``: reverse Kullback-Leibler
    divergence; ``sds``: the teacher alone, without a fake denoiser, which seeks modes.
    ``package.module:function`` is a loss of your own: it is called as ``reverse_kl_loss`` of
    ``dsd.distillation.losses`` is, with the generated images and a ``DenoiserPair``, and returns
    one differentiable loss for each image. DVC does not see the module: add its file to the
    ``deps`` of the stage ``distill``."""

    alpha: Annotated[float, Field(ge=0, le=2)]
    """SiD's alpha: 0.5 is half the gradient of the Fisher divergence; SiD's authors use 1 and 1.2.
    Used with ``sid`` only."""

    sigma_init: Positive
    """Level tau of G(z) = D(tau * z; tau)."""

    clamp_output: bool
    """Whether the generator trains on its images as saved, clamped to [-1, 1]. ``false``: as in
    the paper, and for data that leave [-1, 1] without noise."""

    noise: GeneratorNoise

    fake_noise: TeacherNoise
    """Distribution of the noise level while the fake denoiser trains; its objective is the
    teacher's. Not used with ``sds``."""

    selection: Selection

    @property
    def needs_fake(self) -> bool:
        """Whether the divergence compares the teacher with a fake denoiser."""
        known = DIVERGENCES.get(self.divergence)
        return known is None or known.needs_fake
