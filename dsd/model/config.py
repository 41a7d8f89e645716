"""The network, noise distributions and samplers."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from dsd.utils.config import Count, Finite, Fraction, NonNegative, Positive, Rho, Section, TopLevel

if TYPE_CHECKING:
    from torch import nn


class UNetConfig(Section):
    """EDM's DDPM++ U-Net, optionally on folded pixels."""

    kind: Literal["unet"]

    patch_size: Literal[1, 2, 4]
    """Pixels a side that are folded into channels at the input (pixel-unshuffle); 1 keeps the
    image as it is."""

    model_channels: Annotated[int, Field(ge=8, le=1024, multiple_of=8)]
    """Channels at the finest level."""

    channel_mult: Annotated[list[Count], Field(min_length=1, max_length=6)]
    """Channels of each level as a multiple of ``model_channels``, finest level first."""

    num_blocks: Annotated[int, Field(ge=1, le=64)]
    """Residual blocks at each level."""

    attention_resolutions: list[Count]
    """Feature-map heights at which blocks have self-attention; each must be that of a level.
    The middle of the network attends in any case."""

    dropout: Fraction
    """Dropout probability inside residual blocks."""

    sigma_data: Positive
    """Standard deviation assumed by the EDM preconditioning."""

    @property
    def multiple(self) -> int:
        """The number of pixels that must divide the height and the width of an image."""
        return self.patch_size << len(self.channel_mult) - 1

    def level_sizes(self, resolution: int) -> list[int]:
        """Heights (or widths) of the feature maps, finest level first.

        Raises:
            ValueError: The resolution cannot be halved as often as needed.
        """
        if resolution % self.multiple:
            msg = (
                f"images of {resolution} pixels do not fit the network: network.patch_size "
                f"{self.patch_size} and {len(self.channel_mult)} levels in network.channel_mult "
                f"need a multiple of {self.multiple}. Lower one of the two"
            )
            raise ValueError(msg)
        return [
            resolution // self.patch_size // 2**level for level in range(len(self.channel_mult))
        ]

    def check_images(self, height: int, width: int) -> None:
        """Refuse images that the network cannot take.

        Args:
            height: Of the images, in pixels.
            width: Likewise.

        Raises:
            ValueError: One of the two cannot be halved as often as needed, or no level has a
                height at which attention is asked for.
        """
        self.level_sizes(width)
        sizes = self.level_sizes(height)
        nowhere = [str(size) for size in self.attention_resolutions if size not in sizes]
        if nowhere:
            msg = (
                f"network.attention_resolutions names {', '.join(nowhere)}, but the levels of the "
                f"network have the sizes {', '.join(map(str, sizes))} with these images. Choose "
                "among these, or leave it empty: []"
            )
            raise ValueError(msg)

    def build(self, *, channels: int, resolution: int, extra_channels: int = 0) -> "nn.Module":
        """Build the network with fresh weights; the arguments are those of :class:`UNet`."""
        from dsd.model.networks.unet import UNet

        return UNet(self, channels=channels, resolution=resolution, extra_channels=extra_channels)


NetworkConfig = UNetConfig
"""Section ``network``, by ``kind``: the registry of networks. Another one is a module in
:mod:`dsd.model.networks` and a class here with ``kind``, ``sigma_data``, ``multiple``,
``check_images`` and ``build``. The name is then ``Annotated[UNetConfig | ..., Field(discriminator=
"kind")]``."""


class TeacherNoise(Section):
    """Distribution of the diffusion noise level while denoisers train."""

    distribution: Literal["added", "truncated", "clamped"]
    """``added``: the noise put on top of y is log-normal; ``truncated``: the total level is
    log-normal above sigma;
    ``clamped``: the reference code's maximum of log-normal and sigma, which wastes the clamped
    samples."""

    P_mean: Finite
    """Mean of the logarithm of the level."""

    P_std: Positive
    """Standard deviation of the logarithm of the level."""


class GeneratorNoise(Section):
    """Levels at which teacher and fake denoiser are compared: a Karras grid, uniform in index."""

    sigma_min: Positive
    sigma_max: TopLevel
    rho: Rho
    t_max: Annotated[float, Field(gt=0, le=1)]
    """Largest relative index from the low end: 0.8 of (0.002, 80, rho 7) reaches 24.4."""

    @model_validator(mode="after")
    def _ordered(self) -> "GeneratorNoise":
        if self.sigma_min >= self.sigma_max:
            msg = f"sigma_min {self.sigma_min:g} must be below sigma_max {self.sigma_max:g}"
            raise ValueError(msg)
        return self


class Churn(Section):
    """Fresh noise before the steps that start within a range: EDM's stochastic sampler."""

    S_churn: NonNegative
    """Amount over all steps; a step raises its level at most by a factor sqrt(2). 0 adds none and
    makes sampling deterministic."""

    S_min: NonNegative
    """Lowest level at which noise is added; ``corrupt.sigma`` keeps it where the teacher was
    trained."""

    S_max: Positive
    """Highest level at which noise is added."""

    S_noise: Positive
    """Standard deviation of the new noise; 1 keeps the distribution of an exact denoiser."""

    @model_validator(mode="after")
    def _ordered(self) -> "Churn":
        if self.S_churn > 0 and self.S_min > self.S_max:
            msg = (
                f"S_min {self.S_min:g} is above S_max {self.S_max:g}, so no noise would be added; "
                "lower it, or set S_churn to 0.0"
            )
            raise ValueError(msg)
        return self


class Sampler(Section):
    """EDM's sampler for the teacher, on a Karras grid."""

    method: Literal["heun", "euler"]
    """``heun``: second order, two evaluations a step; ``euler``: first order, one."""

    num_steps: Annotated[int, Field(ge=2)]
    sigma_min: Positive
    sigma_max: TopLevel
    rho: Rho

    churn: Churn

    @model_validator(mode="after")
    def _ordered(self) -> "Sampler":
        if self.sigma_min >= self.sigma_max:
            msg = f"sigma_min {self.sigma_min:g} must be below sigma_max {self.sigma_max:g}"
            raise ValueError(msg)
        return self
