"""EDM preconditioning: the denoiser D(x; sigma) around a raw network F.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)

It is the single interface of losses, samplers and generator.

Reference:
    Karras et al. 2022 (arXiv:2206.00364), Table 1 and Eq. 7.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsd.model.units import AnyPicture, ImageUnits, Unit
from dsd.operators.gaussian_noise import WHITE, GaussianNoise
from dsd.operators.operator import Images, View, Views
from dsd.utils.images import require_data_units
from dsd.utils.shapes import AnyLevel, Level, NoiseLevels, State, as_levels

__all__ = [
    "AnyDenoiser",
    "Coefficients",
    "Denoiser",
    "MaskedDenoiser",
    "append_dims",
    "coefficients",
    "with_view",
]


class Coefficients(NamedTuple):
    """The four scalings at each noise level."""

    c_skip: Level
    c_out: Level
    c_in: Level
    c_noise: Level


def coefficients(sigma: Level, sigma_data: float) -> Coefficients:
    """EDM's scalings for levels ``sigma > 0`` and data of standard deviation ``sigma_data``."""
    total = (sigma**2 + sigma_data**2).sqrt()
    return Coefficients(
        c_skip=sigma_data**2 / total**2,
        c_out=sigma * sigma_data / total,
        c_in=1 / total,
        c_noise=sigma.log() / 4,
    )


def append_dims(values: NoiseLevels, like: State) -> Tensor:
    """Shape one value for each sample so that it multiplies ``like``; maps have that shape."""
    if values.ndim > 1:
        return values
    return values.reshape(-1, *[1] * (like.ndim - 1))


@final
class Denoiser(nn.Module):
    """D(x; sigma): the estimate of E[x0 | x] for a state ``x`` of total noise level ``sigma``.

    Args:
        network: Raw network F(x, c_noise).
        sigma_data: Assumed standard deviation of the clean data.
        noise: Distribution of the noise that it removes; saved with the weights unless white.
    """

    units: ImageUnits | None = None
    """What the numbers of its images mean; None where that is not known. Likewise ``shape``."""

    shape: tuple[int, int, int] | None = None
    """Channels, height and width of the images that it was trained on."""

    def __init__(
        self, network: nn.Module, *, sigma_data: float, noise: GaussianNoise = WHITE
    ) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.noise = noise

    def forward(self, x: State, sigma: AnyLevel) -> State:
        """Denoise ``x``; scalings are computed in float32 whatever the network's arithmetic.

        Args:
            x: States.
            sigma: Level of each state, or one for all.

        Raises:
            DataError: The states are no floating-point numbers.
            ValueError: There is another number of levels than of states.
        """
        x, c = _with_scalings(x, sigma, self.sigma_data)
        F_x = self.network(append_dims(c.c_in, x) * x, c.c_noise).float()
        return torch.addcmul(append_dims(c.c_skip, x) * x, append_dims(c.c_out, x), F_x)

    def denoise(
        self, y: AnyPicture, sigma: float | None = None, *, unit: Unit = "raw"
    ) -> AnyPicture:
        """Return E[x0 | y] for pictures of any size; see :func:`dsd.model.pictures.denoise`."""
        from dsd.model.pictures import denoise

        return denoise(self, y, sigma, unit=unit)

    def encode(self, x: State, sigma: AnyLevel) -> list[Tensor]:
        """Activations of the network down to its bottleneck, each [b, c, y, x]."""
        x, c = _with_scalings(x, sigma, self.sigma_data)
        return _encode(self.network, append_dims(c.c_in, x) * x, c.c_noise)


@final
class MaskedDenoiser(nn.Module):
    """D(P_V x, V; sigma): an estimate of the whole image from a view V of the state.

    Its noise is white: noise that is correlated would tell of what is hidden. Coefficients outside
    the view have no noise level, or an infinite one: c_skip = 0 and c_out =
    sigma_data there.

    Args:
        network: Raw network F, with the view as one more channel of its input.
        sigma_data: Assumed standard deviation of the clean data.
        views: Distribution of the views of the data.
        view: One view after further masking, for callers without one; saved with the weights.

    Deviates:
        Ambient Diffusion keeps c_skip and c_out for hidden pixels too, so that its network must
        return numbers of the order 1 / sigma there.

    Reference:
        Daras et al. 2023, Ambient Diffusion (arXiv:2305.19256).
    """

    view: View
    units: ImageUnits | None = None
    shape: tuple[int, int, int] | None = None

    def __init__(self, network: nn.Module, *, sigma_data: float, views: Views, view: View) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.noise = WHITE
        self.views = views
        self.register_buffer("view", view)

    def forward(self, x: Images, sigma: AnyLevel, view: View | None = None) -> Images:
        """Denoise what ``view`` shows of ``x``; None takes the denoiser's own view."""
        view = self._own_view(x) if view is None else view
        x, c = _with_scalings(x, sigma, self.sigma_data)
        x = self.views.project(x, view)
        F_x = self.network(_with_channel(x, c, view), c.c_noise).float()
        seen = self.views.project(F_x, view)
        hidden: Tensor = self.sigma_data * (F_x - seen)
        return append_dims(c.c_skip, x) * x + append_dims(c.c_out, x) * seen + hidden

    def encode(self, x: Images, sigma: AnyLevel) -> list[Tensor]:
        """Activations for the denoiser's own view of ``x``; see :meth:`Denoiser.encode`."""
        view = self._own_view(x)
        x, c = _with_scalings(x, sigma, self.sigma_data)
        x = self.views.project(x, view)
        return _encode(self.network, _with_channel(x, c, view), c.c_noise)

    def _own_view(self, x: Images) -> View:
        return self.view.expand(len(x), -1, -1, -1)


AnyDenoiser: TypeAlias = Denoiser | MaskedDenoiser


def with_view(denoiser: Callable[..., State], view: View | None) -> Callable[..., State]:
    """D(x; sigma) of a denoiser that is given ``view``; None for one without views."""
    return denoiser if view is None else lambda x, sigma: denoiser(x, sigma, view)


def _with_scalings(x: State, sigma: AnyLevel, sigma_data: float) -> tuple[State, Coefficients]:
    """States in float32, and the scalings at their levels."""
    require_data_units(x)
    return x.float(), coefficients(as_levels(sigma, x).float(), sigma_data)


def _with_channel(x: Images, c: Coefficients, view: View) -> Float[Tensor, " b _ h w"]:
    """Scaled images, and the view as one more channel."""
    shown = view.expand(-1, -1, *x.shape[2:]).to(x)
    return torch.cat([append_dims(c.c_in, x) * x, shown], 1)


def _encode(network: nn.Module, x: State, c_noise: Level) -> list[Tensor]:
    encode: Callable[[State, Level], list[Tensor]] = network.encode  # type: ignore[assignment]
    return encode(x, c_noise)
