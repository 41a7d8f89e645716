"""The distillation: the section ``distill``."""

import difflib
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from dsd.model.config import GeneratorNoise, TeacherNoise
from dsd.selection.config import Selection
from dsd.training.config import _check_warmup
from dsd.utils.config import Count, Fraction, NonNegative, Positive, Section
from dsd.utils.functions import FUNCTION_PATTERN, is_function_name

DIVERGENCES = ("sid", "dmd", "sds")
"""Divergences that come with dsd."""


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


class Distill(Section):
    """Distilling the teacher into a one-step generator."""

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

    batch_size: Count
    kimg: Positive
    """Length of distillation, counted in images generated for the generator's own step."""

    learning_rate: Positive
    """Peak Adam step size of the generator."""

    learning_rate_fake: Positive
    """Peak Adam step size of the fake denoiser. Not used with ``sds``."""

    lr_warmup_kimg: NonNegative
    """Linear warm-up of both step sizes, at most ``kimg``."""

    lr_schedule: Literal["constant", "cosine"]
    """Both step sizes after the warm-up."""

    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    """Adam's decay rates, for both networks."""

    fake_updates_per_step: Count
    """Steps of the fake denoiser for each step of the generator. Not used with ``sds``."""

    ema_halflife_kimg: Positive
    """Half-life of the exponential moving average of the generator's weights."""

    ema_rampup_ratio: Annotated[float, Field(gt=0, le=1)]
    """The half-life is at most this fraction of the images seen so far."""

    selection: Selection

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "Distill":
        _check_warmup(self.lr_warmup_kimg, self.kimg)
        return self
