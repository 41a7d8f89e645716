r"""Consistency of a denoiser with its own reverse process, for levels below that of the data.

The exact denoiser is a martingale along the reverse process: for sigma_low < sigma

    D(x; sigma) = E[D(x_low; sigma_low) | x],      x_low ~ p(x_low | x).

A teacher of noisy data learns D(.; sigma) for sigma > sigma_y only. Asking for this identity with
sigma_low < sigma_y passes what it knows down to the levels that no data reach.

The identity holds at every state of the upper level, whatever their distribution. So the two
levels may be near each other, and one step, drawn twice, serves as p(x_low | x). Where both are
below the level of the data, a state first walks down to the upper one; the walk's errors only
change which states are compared.

Deviates:
    The authors compare the observation's level with a lower one directly, by EDM's sampler in six
    steps from one state, average six copies and square the difference; their lower level is that
    of the observation's own draw, here it is drawn by itself. Over far levels, draws by few steps
    lack variance, so that the exact denoiser has a loss: for two clusters at -0.5 and 0.5 of
    deviation 0.05, from level 0.6 to 0.1 by :func:`reverse_steps`, it is 0.019, 0.0076, 0.0024 and
    0.0007 with 1, 2, 4 and 8 steps. The square adds the variance of the average. Near levels give
    a smaller loss for the same error of a denoiser, 0.06 times that of far ones where the error is
    the same at both: a weight means less than in their code.

Reference:
    Daras et al. 2023 (arXiv:2302.09057) for the property and for near levels; Daras et al. 2024
    (arXiv:2404.10177) for its use below the level of the data, with the product that makes the
    estimate unbiased.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dsd.model.denoiser import append_dims
from dsd.utils.shapes import Level, PerSample, State

__all__ = ["PAIR_RATIO", "consistency_loss", "posterior_draw", "reverse_steps"]

PAIR_RATIO = 1.15
"""The upper level of a pair, relative to the lower one.

What remains of the exact denoiser's loss, at the level where most remains: 5e-4 for pixels that
are -1 or 1 with equal probability, the widest distribution, 1e-4 for -0.5 or 0.5. It grows as the
square of the pixels' scale; 1.1, 1.3, 1.5 and 2 would leave 0.4, 5, 13 and 42e-4 of the latter.
States that a walk of two steps makes leave up to 7e-4 of the former, where 2e-4 is the standard
error.
"""


def consistency_loss(denoised: State, first: State, second: State) -> PerSample:
    """Unbiased estimate of |E[D(x_low)] - D(x)|^2, the mean over pixels.

    Args:
        denoised: D(x; sigma).
        first: D(x_low; sigma_low) for one draw of ``x_low`` given ``x``.
        second: The same for an independent draw.

    Returns:
        One value for each sample, which may be negative. A single draw squared would add the
        variance of D(x_low), whose descent blurs the denoiser.

    Gradient:
        Flows through all three.
    """
    return ((first - denoised) * (second - denoised)).flatten(1).mean(1)


@torch.no_grad()
def reverse_steps(
    denoiser: Callable[[State, Level], State],
    x: State,
    *,
    sigma: Level,
    sigma_low: Level,
    noise: Float[Tensor, " b steps *d"],
) -> State:
    """Draw ``x_low`` given ``x`` by steps of the reverse process, geometric in the level.

    Each step draws from p(x' | x, x0 = D(x)), the posterior of a known image, so that the mean of
    ``x'`` is exact and its variance lacks what D leaves open; more steps leave less open.

    Args:
        denoiser: D(x; sigma).
        x: States of level ``sigma``.
        sigma: Level of each state.
        sigma_low: Level to reach, ``0 < sigma_low <= sigma``; where they are equal ``x`` stays.
        noise: Standard normal noise of each step; a step calls the denoiser once.

    Returns:
        States of level ``sigma_low``, without gradient.

    Reference:
        Ho et al. 2020, DDPM (arXiv:2006.11239), Eqs. 6 and 7, in the variance-exploding form.
    """
    ratio, num_steps = sigma_low / sigma, noise.shape[1]
    for step, n in enumerate(noise.unbind(1)):
        current = sigma * ratio ** (step / num_steps)
        following = sigma * ratio ** ((step + 1) / num_steps)
        x = posterior_draw(x, denoiser(x, current), n, current=current, following=following)
    return x


def posterior_draw(x: State, x0: State, n: State, *, current: Level, following: Level) -> State:
    """Draw from p(x' | x, x0) for level ``following`` below ``current``, both diffused from x0."""
    kept = (following / current) ** 2
    spread = following * (1 - kept).clamp(min=0).sqrt()
    return torch.lerp(x0, x, append_dims(kept, x)) + append_dims(spread, x) * n
