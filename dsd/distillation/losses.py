r"""Generator losses of score distillation: how far teacher and fake denoiser disagree.

x_g = G(z) is generated, x_t = x_g + sigma n is diffused; D_teacher and D_fake denoise it. The fake
denoiser knows the distribution of the generator's images, the teacher that of the data, so their
difference is the difference of the two scores times sigma^2. No clean image enters.

Deviates:
    The authors multiply the generator's losses by 100, against underflow in float16, which is not
    used here. The minimum is the same and so are Adam's steps, except that its eps weighs 100
    times more.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from dsd.distillation.config import DIVERGENCES
from dsd.utils.errors import ParamsError
from dsd.utils.functions import import_function
from dsd.utils.shapes import Level, PerSample, State

__all__ = [
    "DenoiserPair",
    "GeneratorLoss",
    "divergence_of",
    "gap",
    "reverse_kl_loss",
    "score_distillation_sampling_loss",
    "score_identity_loss",
]

_MIN_SCALE = 1e-5
"""Least normalising error; only reached when the teacher returns the generated image itself."""


class DenoiserPair(NamedTuple):
    """What teacher and fake denoiser make of the same diffused images."""

    teacher: State
    fake: State


GeneratorLoss: TypeAlias = Callable[[State, DenoiserPair], PerSample]
"""Loss of each generated image, such as :func:`reverse_kl_loss`."""


def divergence_of(name: str, **options: float) -> GeneratorLoss:
    """Return the generator's loss called ``name``.

    Args:
        name: Of :data:`dsd.distillation.config.DIVERGENCES`, or ``package.module:function``. Such
            a function is called as :func:`reverse_kl_loss` is, and its gradient moves the
            generator.
        **options: Values for the options of the divergences, ``alpha`` of ``sid``.

    Raises:
        ParamsError: Nothing can be imported under that name. Or, when it is called, it returns
            anything but one loss for each image.
    """
    divergence = DIVERGENCES.get(name)
    if divergence is None:
        return _own_divergence(name)
    function = import_function(divergence.function, "divergence", of="(x_g, denoised)")
    return partial(function, **{option: options[option] for option in divergence.options})


def _own_divergence(name: str) -> GeneratorLoss:
    """Return the user's loss at ``package.module:function``, with its output checked."""
    function = import_function(name, "divergence", of="(x_g, denoised)")

    def loss_of(x_g: State, denoised: DenoiserPair) -> PerSample:
        loss: Tensor = function(x_g, denoised)
        if getattr(loss, "shape", None) != (len(x_g),) or not loss.requires_grad:
            shape = [*loss.shape] if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            msg = (
                f"divergence {name} returned {shape} for {len(x_g)} images. It must return one "
                "loss for each image, differentiable with respect to the images"
            )
            raise ParamsError(msg)
        return loss

    return loss_of


def gap(denoised: DenoiserPair) -> PerSample:
    """Mean squared difference of the two denoisers: zero when generator and data agree."""
    return (denoised.teacher - denoised.fake).square().flatten(1).mean(1)


def score_identity_loss(x_g: State, denoised: DenoiserPair, *, alpha: float) -> PerSample:
    """SiD's Fisher divergence, the sum over pixels.

    (D_teacher - D_fake) . ((D_teacher - x_g) - alpha (D_teacher - D_fake)) / omega

    Args:
        x_g: Generated images.
        denoised: Both denoisers at the diffused ``x_g``, differentiable with respect to it.
        alpha: 0.5 gives half the gradient of the Fisher divergence of an exact fake denoiser.

    Returns:
        One loss for each sample. Its expectation is (1 - alpha) times the weighted gap, negative
        for ``alpha > 1``: watch :func:`gap`, not this value.

    Gradient:
        Flows through ``x_g`` and both denoisers' inputs; the normalisation omega, the mean of |x_g
        - D_teacher|, is detached.

    Reference:
        Zhou et al. 2024, SiD (arXiv:2404.04057).
    """
    difference = denoised.teacher - denoised.fake
    product = difference * ((denoised.teacher - x_g) - alpha * difference)
    return product.flatten(1).sum(1) / _error_scale(x_g, denoised.teacher)


def reverse_kl_loss(x_g: State, denoised: DenoiserPair) -> PerSample:
    """DMD's surrogate of the reverse Kullback-Leibler divergence, the sum over pixels.

    Its gradient with respect to ``x_g`` is (D_fake - D_teacher) / omega.

    Args:
        x_g: Generated images.
        denoised: Both denoisers at the diffused ``x_g``.

    Returns:
        One value for each sample; only its gradient has a meaning.

    Gradient:
        Flows through ``x_g`` alone; the denoisers are detached.

    Reference:
        Yin et al. 2024, DMD (arXiv:2311.18828), Eqs. 7 and 8.
    """
    teacher, fake = denoised.teacher.detach(), denoised.fake.detach()
    direction = (fake - teacher).flatten(1) / _error_scale(x_g, teacher)[:, None]
    return (x_g.flatten(1) * direction).sum(1)


def score_distillation_sampling_loss(x_g: State, denoised: DenoiserPair) -> PerSample:
    """DreamFusion's surrogate, the sum over pixels: :func:`reverse_kl_loss` without a fake.

    Its gradient with respect to ``x_g`` is (x_g - D_teacher) / omega: the generated image stands
    for what a fake denoiser would expect. It moves images to modes of the data's distribution and
    does not vanish where generator and data agree.

    Args:
        x_g: Generated images.
        denoised: The teacher at the diffused ``x_g``; the fake is not used.

    Returns:
        One value for each sample; only its gradient has a meaning.

    Gradient:
        Flows through the first factor ``x_g`` alone.

    Reference:
        Poole et al. 2022, DreamFusion (arXiv:2209.14988), Eq. 3.
    """
    return reverse_kl_loss(x_g, DenoiserPair(denoised.teacher, fake=x_g))


def _error_scale(x_g: State, teacher: State) -> Level:
    scale: Tensor = (x_g - teacher).detach().abs().flatten(1).mean(1)
    return torch.clamp(scale, min=_MIN_SCALE)
