"""Weights of EDM's ``SongUNet`` (DDPM++) under the names of :class:`dsd.model.networks.unet.UNet`.

Reference:
    Karras et al. 2022 (arXiv:2206.00364); names are those of ``training/networks.py`` of its code.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from dsd.model.config import UNetConfig

__all__ = ["from_song_unet"]

_BLOCK = {
    "norm0": "norm_in",
    "conv0": "conv_in",
    "affine": "shift",
    "norm1": "norm_out",
    "conv1": "conv_out",
    "skip": "skip",
    "norm2": "attention.norm",
    "qkv": "attention.qkv",
    "proj": "attention.project",
}
_UNUSED = "map_augment.weight"
"""Augmentation labels are zero when images are sampled or denoised."""


def from_song_unet(
    weights: Mapping[str, Tensor], network: UNetConfig, resolution: int
) -> dict[str, Tensor]:
    """Rename the weights of a ``SongUNet`` with ``embedding_type="positional"``.

    Args:
        weights: Its state dict.
        network: The same network as a section of parameters, with ``patch_size`` 1.
        resolution: Height and width of its images.

    Returns:
        The state dict of our U-Net.

    Raises:
        ValueError: A weight has no counterpart, as those of class labels and of NCSN++.
    """
    modules = dict(_modules(network, resolution))
    renamed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        module, _, kind = name.rpartition(".")
        if name == _UNUSED or kind == "resample_filter":
            continue
        if module not in modules:
            msg = f"{name}: no such weight in an unconditional DDPM++. Choose other weights."
            raise ValueError(msg)
        renamed[f"{modules[module]}.{kind}"] = (
            _grouped(weight) if module.endswith("qkv") else weight
        )
    return renamed


def _grouped(qkv: Tensor) -> Tensor:
    """All queries, then keys, then values; theirs alternate by channel."""
    grouped: Tensor = qkv.unflatten(0, (-1, 3)).transpose(0, 1)
    return grouped.flatten(0, 1).contiguous()


def _modules(network: UNetConfig, resolution: int) -> Iterator[tuple[str, str]]:
    """Their name and ours of each module that has weights."""
    sizes = network.level_sizes(resolution)
    top, bottom = sizes[0], sizes[-1]
    yield "map_layer0", "embed.expand"
    yield "map_layer1", "embed.mix"
    yield f"enc.{top}x{top}_conv", "stem"
    yield f"dec.{top}x{top}_aux_norm", "norm_out"
    yield f"dec.{top}x{top}_aux_conv", "conv_out"
    encoder = [
        *(f"{size}x{size}_{part}" for size in sizes for part in _parts("down", size, top, network))
    ]
    decoder = [
        f"{size}x{size}_{part}"
        for size in reversed(sizes)
        for part in _parts("up", size, bottom, network)
    ]
    yield from _blocks("enc", encoder, "encoder")
    yield from _blocks("dec", [f"{bottom}x{bottom}_in0", f"{bottom}x{bottom}_in1"], "middle")
    yield from _blocks("dec", decoder, "decoder")


def _parts(resampling: str, size: int, first: int, network: UNetConfig) -> list[str]:
    """Blocks of one level; the first level begins without resampling."""
    count = network.num_blocks + (resampling == "up")
    return [*[resampling] * (size != first), *(f"block{number}" for number in range(count))]


def _blocks(theirs: str, names: list[str], ours: str) -> Iterator[tuple[str, str]]:
    for number, name in enumerate(names):
        for their_part, our_part in _BLOCK.items():
            yield f"{theirs}.{name}.{their_part}", f"{ours}.{number}.{our_part}"
