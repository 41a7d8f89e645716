"""EDM's unconditional DDPM++ as functions of a state dict with its names, written from the paper.

Appendix F.1 of arXiv:2206.00364; checked once against the authors' code (docs/results/method).
"""

import math

import torch
from torch.nn import functional as f


def random_weights(*, channels, resolution, model_channels, channel_mult, num_blocks, attention):
    """A state dict with random numbers, biases and norms included."""
    random = torch.Generator().manual_seed(0)
    weights = {}

    def add(name, *shape):
        scale = 1 / math.sqrt(math.prod(shape[1:]))
        weights[f"{name}.weight"] = scale * torch.randn(shape, generator=random)
        weights[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=random)

    def norm(name, width):
        add(name, width)

    def block(name, c_in, c_out, *, attends=False, resamples=False):
        norm(f"{name}.norm0", c_in)
        add(f"{name}.conv0", c_out, c_in, 3, 3)
        add(f"{name}.affine", c_out, 4 * model_channels)
        norm(f"{name}.norm1", c_out)
        add(f"{name}.conv1", c_out, c_out, 3, 3)
        if resamples or c_in != c_out:
            add(f"{name}.skip", c_out, c_in, 1, 1)
        if attends:
            norm(f"{name}.norm2", c_out)
            add(f"{name}.qkv", 3 * c_out, c_out, 1, 1)
            add(f"{name}.proj", c_out, c_out, 1, 1)

    add("map_layer0", 4 * model_channels, model_channels)
    add("map_layer1", 4 * model_channels, 4 * model_channels)
    weights["map_augment.weight"] = torch.randn(model_channels, 9, generator=random)
    current, skips = model_channels, [model_channels]
    sizes = [resolution >> level for level in range(len(channel_mult))]
    add(f"enc.{resolution}x{resolution}_conv", model_channels, channels, 3, 3)
    for level, (size, mult) in enumerate(zip(sizes, channel_mult, strict=True)):
        if level:
            block(f"enc.{size}x{size}_down", current, current, resamples=True)
            skips.append(current)
        for number in range(num_blocks):
            width = mult * model_channels
            name = f"enc.{size}x{size}_block{number}"
            block(name, current, width, attends=size in attention)
            skips.append(current := width)
    for level, (size, mult) in reversed([*enumerate(zip(sizes, channel_mult, strict=True))]):
        if level == len(sizes) - 1:
            block(f"dec.{size}x{size}_in0", current, current, attends=True)
            block(f"dec.{size}x{size}_in1", current, current)
        else:
            block(f"dec.{size}x{size}_up", current, current, resamples=True)
        for number in range(num_blocks + 1):
            width, last = mult * model_channels, number == num_blocks
            name = f"dec.{size}x{size}_block{number}"
            block(name, current + skips.pop(), width, attends=last and size in attention)
            current = width
    norm(f"dec.{resolution}x{resolution}_aux_norm", current)
    add(f"dec.{resolution}x{resolution}_aux_conv", channels, current, 3, 3)
    return weights


def song_unet(weights, x, c_noise):
    """F(x; c_noise) in the order in which the state dict names the blocks."""

    def norm(name, h):
        groups = min(32, h.shape[1] // 4)
        return f.group_norm(
            h, groups, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6
        )

    def conv(name, h):
        weight = weights[f"{name}.weight"]
        return f.conv2d(h, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def linear(name, h):
        return f.linear(h, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def resample(name, h):
        if name.endswith("_down"):
            return (
                h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]
            ) / 4
        return h.repeat_interleave(2, -1).repeat_interleave(2, -2) if name.endswith("_up") else h

    def block(name, h):
        inner = conv(f"{name}.conv0", resample(name, f.silu(norm(f"{name}.norm0", h))))
        inner = inner + linear(f"{name}.affine", embedding)[..., None, None]
        inner = conv(f"{name}.conv1", f.silu(norm(f"{name}.norm1", inner)))
        h = resample(name, h)
        skip = conv(f"{name}.skip", h) if f"{name}.skip.weight" in weights else h
        h = (inner + skip) / math.sqrt(2)
        if f"{name}.qkv.weight" not in weights:
            return h
        qkv = conv(f"{name}.qkv", norm(f"{name}.norm2", h)).flatten(2)
        query, key, value = qkv[:, 0::3], qkv[:, 1::3], qkv[:, 2::3]
        attention = (query.transpose(1, 2) @ key / math.sqrt(h.shape[1])).softmax(-1)
        mixed = (value @ attention.transpose(1, 2)).unflatten(2, h.shape[2:])
        return (h + conv(f"{name}.proj", mixed)) / math.sqrt(2)

    half = weights["map_layer0.weight"].shape[1] // 2
    angles = c_noise[:, None] * 1e-4 ** (torch.arange(half) / (half - 1))
    embedding = f.silu(linear("map_layer0", torch.cat([angles.sin(), angles.cos()], 1)))
    embedding = f.silu(linear("map_layer1", embedding))
    names = dict.fromkeys(".".join(name.split(".")[:2]) for name in weights)
    encoder = [name for name in names if name.startswith("enc.")]
    decoder = [name for name in names if name.startswith("dec.") and "_aux_" not in name]
    (out,) = {name.rpartition("_")[0] for name in names if "_aux_" in name}
    skips = [x := conv(encoder[0], x)]
    for name in encoder[1:]:
        skips.append(x := block(name, x))
    for name in decoder:
        x = block(name, torch.cat([x, skips.pop()], 1) if "_block" in name else x)
    assert not skips
    return conv(f"{out}_conv", f.silu(norm(f"{out}_norm", x)))
