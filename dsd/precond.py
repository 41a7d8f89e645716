"""EDM preconditioning: the denoiser D(x; sigma) around a raw network F.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)

It is the single interface of losses, samplers and generator.

Reference:
    Karras et al. 2022 (arXiv:2206.00364), Table 1 and Eq. 7.
"""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from dsd.shapes import Level, State

__all__ = ["Coefficients", "Denoiser", "coefficients", "per_sample"]


class Coefficients(NamedTuple):
    """The four scalings at each noise level."""

    skip: Level
    out: Level
    in_: Level
    noise: Level


def coefficients(sigma: Level, sigma_data: float) -> Coefficients:
    """EDM's scalings for levels ``sigma > 0`` and data of standard deviation ``sigma_data``."""
    total = (sigma**2 + sigma_data**2).sqrt()
    return Coefficients(
        skip=sigma_data**2 / total**2,
        out=sigma * sigma_data / total,
        in_=1 / total,
        noise=sigma.log() / 4,
    )


def per_sample(values: Level, like: State) -> Tensor:
    """``values`` shaped to multiply ``like`` sample by sample."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


@final
class Denoiser(nn.Module):
    """D(x; sigma): the estimate of E[x0 | x] for a state ``x`` of total noise level ``sigma``.

    Args:
        network: Raw network F(x, c_noise).
        sigma_data: Assumed standard deviation of the clean data.
    """

    def __init__(self, network: nn.Module, *, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x: State, sigma: Level) -> State:
        """Denoise ``x``; scalings are computed in float32 whatever the network's arithmetic."""
        c = coefficients(sigma.float(), self.sigma_data)
        x = x.float()
        raw = self.network(per_sample(c.in_, x) * x, c.noise).float()
        return torch.addcmul(per_sample(c.skip, x) * x, per_sample(c.out, x), raw)
