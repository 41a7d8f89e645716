"""EDM's DDPM++ U-Net, with pixels folded into channels where that is asked for.

With ``patch_size = 1`` it is the published network, weight for weight: :mod:`scripts.import_edm`
loads published weights into it.

Reference:
    Song et al. 2021 (arXiv:2011.13456) for DDPM++, Karras et al. 2022 (arXiv:2206.00364), appendix
    F, for its use in EDM.

Deviates:
    ``patch_size`` above 1 folds pixels into channels before the first level (pixel-unshuffle),
    which makes a CPU fast enough to train on.
"""

import math
from functools import partial
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dsd.model.config import UNetConfig
from dsd.model.networks.block_call import BlockCall, plain_call
from dsd.utils.shapes import Level

__all__ = ["UNet"]

_SKIP_SCALE = math.sqrt(0.5)
"""Keeps the variance of the sum of a block's input and output at that of its input."""


@final
class _GroupNorm(nn.GroupNorm):
    """Group norm with statistics in float32 and the output in its input's type.

    As many groups as divide the channels: at most 32, of at least 4 channels.
    """

    def __init__(self, channels: int) -> None:
        fitting = (n for n in range(min(32, channels // 4), 0, -1) if channels % n == 0)
        super().__init__(num_groups=next(fitting), num_channels=channels, eps=1e-6)

    def forward(self, h: Float[Tensor, " b c y x"]) -> Float[Tensor, " b c y x"]:
        if torch.compiler.is_compiling():
            return self._in_two_stages(h)
        if h.dtype == torch.float32:
            return super().forward(h)
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if h.is_cuda:  # whose kernel takes one type only; it computes in float32 inside
            weight, bias = weight.to(h.dtype), bias.to(h.dtype)
        # Autocast would make activations float32, and autograd keep them so.
        with torch.autocast(h.device.type, enabled=False):
            return functional.group_norm(h, self.num_groups, weight, bias, self.eps)

    def _in_two_stages(self, h: Float[Tensor, " b c y x"]) -> Float[Tensor, " b c y x"]:
        """Moments of channels, then of groups: a compiler reads channels-last memory in order."""
        variance, mean = torch.var_mean(h.float(), (2, 3), correction=0, keepdim=True)
        variance, mean = (t.unflatten(1, (self.num_groups, -1)) for t in (variance, mean))
        between, centre = torch.var_mean(mean, 2, correction=0, keepdim=True)
        scale = (variance.mean(2, keepdim=True) + between + self.eps).rsqrt()
        gain, offset = (t.view(1, self.num_groups, -1, 1, 1) for t in (self.weight, self.bias))
        slope = scale * gain
        shift = offset - centre * slope
        out: Tensor = h * slope.flatten(1, 2) + shift.flatten(1, 2)
        return out.to(h.dtype)


def _conv(channels_in: int, channels_out: int, kernel: int, *, gain: float = 1.0) -> nn.Conv2d:
    """Convolution with Xavier-uniform weights times ``gain`` and no initial bias."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(conv.weight)
    with torch.no_grad():
        conv.weight.mul_(gain)
    _zero_bias(conv)
    return conv


def _linear(features_in: int, features_out: int) -> nn.Linear:
    """Linear layer with Xavier-uniform weights and no initial bias."""
    linear = nn.Linear(features_in, features_out)
    nn.init.xavier_uniform_(linear.weight)
    _zero_bias(linear)
    return linear


def _zero_bias(layer: nn.Conv2d | nn.Linear) -> None:
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


@final
class _NoiseEmbedding(nn.Module):
    """Sinusoids of ``c_noise`` and two linear layers.

    Frequencies go from 1 down to 1e-4 per unit of ``c_noise``. The embedding varies slowly, also
    at noise levels below that of the data, where the network is not trained but is used by
    distillation.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        # On the CPU, also in a network without memory ("meta"), where a division imports torch's
        # compiler, which takes seconds.
        frequencies = 1e-4 ** (torch.arange(width // 2, device="cpu") / (width // 2 - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.expand = _linear(width, 4 * width)
        self.mix = _linear(4 * width, 4 * width)

    def forward(self, c_noise: Level) -> Float[Tensor, " b e"]:
        angles = c_noise[:, None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        return functional.silu(self.mix(functional.silu(self.expand(waves))))


@final
class _Attention(nn.Module):
    """Self-attention over positions, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _GroupNorm(channels)
        self.qkv = _conv(channels, 3 * channels, 1, gain=math.sqrt(0.2))
        self.project = _conv(channels, channels, 1, gain=1e-5)

    def forward(self, h: Float[Tensor, " b c y x"]) -> Float[Tensor, " b c y x"]:
        # With a dimension for heads, which fused kernels of GPUs ask for.
        positions = self.qkv(self.norm(h)).flatten(2).transpose(1, 2).unsqueeze(1)
        query, key, value = positions.chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.project(mixed.squeeze(1).transpose(1, 2).reshape(h.shape))
        return out


@final
class _Block(nn.Module):
    """Residual block: two convolutions, a shift by the embedding; optionally resampled."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        embedding: int,
        dropout: float,
        attention: bool = False,
        resample: float = 1.0,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm_in = _GroupNorm(channels_in)
        self.conv_in = _conv(channels_in, channels_out, 3)
        self.shift = _linear(embedding, channels_out)
        self.norm_out = _GroupNorm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = _conv(channels_out, channels_out, 3, gain=1e-5)
        plain = channels_in == channels_out and resample == 1
        self.skip: nn.Module = nn.Identity() if plain else _conv(channels_in, channels_out, 1)
        self.attention = _Attention(channels_out) if attention else None

    def _resampled(self, h: Float[Tensor, " b c y x"]) -> Float[Tensor, " b c v u"]:
        if self.resample < 1:
            return functional.avg_pool2d(h, 2)
        if self.resample > 1:
            return functional.interpolate(h, scale_factor=2, mode="nearest")
        return h

    def forward(
        self,
        h: Float[Tensor, " b _ y x"],
        embedding: Float[Tensor, " b e"],
        skip: Float[Tensor, " b _ y x"] | None = None,
    ) -> Float[Tensor, " b d v u"]:
        if skip is not None:
            h = torch.cat([h, skip], dim=1)
        inner = self.conv_in(self._resampled(functional.silu(self.norm_in(h))))
        inner = inner + self.shift(embedding)[:, :, None, None].to(inner.dtype)
        inner = self.conv_out(self.dropout(functional.silu(self.norm_out(inner))))
        h = (inner + self.skip(self._resampled(h))) * _SKIP_SCALE
        if self.attention is not None:
            h = (h + self.attention(h)) * _SKIP_SCALE
        return h


@final
class UNet(nn.Module):
    """Raw network ``F(x; c_noise)`` of the EDM preconditioning.

    Args:
        config: Width, depth, attention and dropout.
        channels: Colour channels of the images.
        extra_channels: Channels of the input that tell about it and are not in the output.
        resolution: Height of the images, which ``config.check_images`` accepts.

    Attributes:
        recomputes: Whether blocks keep only their inputs for the gradient and are computed again
            for the rest: activation checkpointing, which saves memory and changes no bit. No
            part of a saved model.
        call_block: How a block is called with its inputs; a compiled function compiles each kind
            of block once for each shape. No part of a saved model either.

    Raises:
        ValueError: The resolution does not fit.
    """

    def __init__(
        self, config: UNetConfig, *, channels: int, resolution: int, extra_channels: int = 0
    ) -> None:
        super().__init__()
        levels = len(config.channel_mult)
        widths = [config.model_channels * mult for mult in config.channel_mult]
        sizes = config.level_sizes(resolution)
        new_block = partial(_Block, embedding=4 * config.model_channels, dropout=config.dropout)

        def block(c_in: int, level: int, *, attends: bool = True) -> _Block:
            attention = attends and sizes[level] in config.attention_resolutions
            return new_block(c_in, widths[level], attention=attention)

        folded = channels * config.patch_size**2
        self.recomputes = False
        self.call_block: BlockCall = plain_call
        self.patch = config.patch_size
        self.embed = _NoiseEmbedding(config.model_channels)
        self.stem = _conv(folded + extra_channels * config.patch_size**2, config.model_channels, 3)
        self.encoder = nn.ModuleList()
        skips = [config.model_channels]
        current = config.model_channels
        for level, width in enumerate(widths):
            if level:
                self.encoder.append(new_block(current, current, resample=0.5))
                skips.append(current)
            for _ in range(config.num_blocks):
                self.encoder.append(block(current, level))
                current = width
                skips.append(current)
        bottom = levels - 1
        self.middle = nn.ModuleList(
            [new_block(current, current, attention=True), new_block(current, current)]
        )
        self.decoder = nn.ModuleList()
        for level in reversed(range(levels)):
            if level < bottom:
                self.decoder.append(new_block(current, current, resample=2.0))
            for number in range(config.num_blocks + 1):
                last = number == config.num_blocks
                self.decoder.append(block(current + skips.pop(), level, attends=last))
                current = widths[level]
        self.norm_out = _GroupNorm(current)
        self.conv_out = _conv(current, folded, 3, gain=1e-5)

    def forward(self, x: Float[Tensor, " b _ h w"], c_noise: Level) -> Float[Tensor, " b c h w"]:
        """Raw output for scaled images ``x`` (extra channels last) and noise conditioning."""
        embedding = self.embed(c_noise)
        skips = self._encode(x, embedding)
        h = self._turn(skips[-1], embedding)
        for layer in self.decoder:
            skip = skips.pop() if layer.resample == 1 else None
            h = self._through(layer, h, embedding, skip)
        out = self.call_block(_read_out, self.norm_out, self.conv_out, h)
        return functional.pixel_shuffle(out, self.patch)

    def encode(
        self, x: Float[Tensor, " b _ h w"], c_noise: Level
    ) -> list[Float[Tensor, " b _ y x"]]:
        """What the encoder passes on from each resolution, fine to coarse, and the bottleneck."""
        embedding = self.embed(c_noise)
        outputs = self._encode(x, embedding)
        levels = {h.shape[-1]: h for h in outputs}
        return [*levels.values(), self._turn(outputs[-1], embedding)]

    def _encode(
        self, x: Float[Tensor, " b _ h w"], embedding: Float[Tensor, " b e"]
    ) -> list[Float[Tensor, " b _ y x"]]:
        """Output of the stem and of each block of the encoder."""
        outputs = [self.stem(functional.pixel_unshuffle(x, self.patch))]
        for layer in self.encoder:
            outputs.append(self._through(layer, outputs[-1], embedding))
        return outputs

    def _turn(
        self, h: Float[Tensor, " b c y x"], embedding: Float[Tensor, " b e"]
    ) -> Float[Tensor, " b c y x"]:
        """The blocks between encoder and decoder."""
        for layer in self.middle:
            h = self._through(layer, h, embedding)
        return h

    def _through(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.recomputes and torch.is_grad_enabled():
            out: Tensor = checkpoint(self.call_block, block, *inputs, use_reentrant=False)
            return out
        return self.call_block(block, *inputs)


def _read_out(norm: nn.Module, conv: nn.Module, h: Tensor) -> Tensor:
    out: Tensor = conv(functional.silu(norm(h)))
    return out
