"""EDM preconditioning: the denoiser D(x; sigma) around a raw network F.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)

It is the single interface of losses, samplers and generator.

Where data show only part of each image (``dsd.operators``), the denoiser is given a view V of the
state, D(P_V x, V; sigma), and estimates the whole image. What it is not given has no noise level,
or an infinite one: for these coefficients c_skip = 0 and c_out = sigma_data.

Reference:
    Karras et al. 2022 (arXiv:2206.00364), Table 1 and Eq. 7.
"""

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsd.operators.operator import Images, View, Views
from dsd.utils.shapes import Level, State

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
        network: Raw network F(x, c_noise); with views it gets them as one channel more.
        sigma_data: Assumed standard deviation of the clean data.
        views: Law of the views of the data; None where data show whole images.
        view: One view of that law after further masking, for callers that know of none; part of
            the denoiser's state.

    Deviates:
        Ambient Diffusion keeps c_skip and c_out for hidden pixels too, so that its network must
        return numbers of the order 1 / sigma there.
    """

    view: View | None

    def __init__(
        self,
        network: nn.Module,
        *,
        sigma_data: float,
        views: Views | None = None,
        view: View | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.views = views
        self.register_buffer("view", view)

    def forward(self, x: State, sigma: Level, view: View | None = None) -> State:
        """Denoise ``x``; scalings are computed in float32 whatever the network's arithmetic.

        Args:
            x: States; with views only what they show of them is used.
            sigma: Level of each state.
            view: What the network may see of each state; None takes the denoiser's own view.
        """
        c = coefficients(sigma.float(), self.sigma_data)
        x = x.float()
        if self.views is not None:
            return self._of_views(self.views, x, c, self._own_view(x) if view is None else view)
        raw = self.network(per_sample(c.in_, x) * x, c.noise).float()
        return torch.addcmul(per_sample(c.skip, x) * x, per_sample(c.out, x), raw)

    def encode(self, x: State, sigma: Level) -> list[Tensor]:
        """Activations of the network down to its bottleneck, each [b, c, y, x].

        Args:
            x: States; with views the network sees the denoiser's own view of them.
            sigma: Level of each state.
        """
        c = coefficients(sigma.float(), self.sigma_data)
        x = x.float()
        if self.views is None:
            inputs = per_sample(c.in_, x) * x
        else:
            view = self._own_view(x)
            inputs = _with_view(self.views.project(x, view), c, view)
        encode: Callable[[State, Level], list[Tensor]] = self.network.encode  # type: ignore[assignment]
        return encode(inputs, c.noise)

    def _own_view(self, x: Images) -> View:
        assert self.view is not None
        return self.view.expand(len(x), -1, -1, -1)

    def _of_views(self, views: Views, x: Images, c: Coefficients, view: View) -> Images:
        x = views.project(x, view)
        raw = self.network(_with_view(x, c, view), c.noise).float()
        seen = views.project(raw, view)
        hidden: Tensor = self.sigma_data * (raw - seen)
        return per_sample(c.skip, x) * x + per_sample(c.out, x) * seen + hidden


def _with_view(x: Images, c: Coefficients, view: View) -> Float[Tensor, " b _ h w"]:
    """The network's input: scaled images, and the view as one channel more."""
    shown = view.expand(-1, -1, *x.shape[2:]).to(x)
    return torch.cat([per_sample(c.in_, x) * x, shown], 1)
