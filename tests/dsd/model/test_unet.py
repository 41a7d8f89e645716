"""The network's shapes and sizes."""

import pytest
import torch
from song_unet import random_weights, song_unet

from dsd.model.checkpoint import build_denoiser
from dsd.model.config import UNetConfig
from dsd.model.networks.edm_weights import from_song_unet
from dsd.model.networks.unet import UNet
from dsd.utils.random import derive_seed


def network(**changes):
    values = {
        "kind": "unet", "patch_size": 2, "model_channels": 8, "channel_mult": [1, 2],
        "num_blocks": 1, "attention_resolutions": [4], "dropout": 0.0, "sigma_data": 0.5,
    }  # fmt: skip
    return UNetConfig(**{**values, **changes})


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("mult", [[1], [1, 2], [2, 1, 2]])
@pytest.mark.parametrize("channels", [1, 3])
def test_output_has_the_shape_of_the_input(patch, mult, channels):
    net = UNet(
        network(patch_size=patch, channel_mult=mult, attention_resolutions=[]),
        channels=channels,
        resolution=16,
    )
    x = torch.randn(2, channels, 16, 16)
    assert net(x, torch.zeros(2)).shape == x.shape


def test_the_papers_network_has_the_papers_size():
    """DDPM++ for CIFAR-10, as the authors' code makes it without augmentation labels."""
    config = network(
        patch_size=1,
        model_channels=128,
        channel_mult=[2, 2, 2],
        num_blocks=4,
        attention_resolutions=[16],
    )
    with torch.device("meta"):
        net = UNet(config, channels=3, resolution=32)
    assert sum(p.numel() for p in net.parameters()) == 55_732_739


def test_a_resolution_that_does_not_fit_is_refused_with_the_multiple():
    with pytest.raises(ValueError, match=r"18 pixels.*multiple of 4"):
        UNet(network(), channels=1, resolution=18)


def test_images_need_not_be_square():
    x = torch.randn(2, 1, 8, 16)
    assert build_denoiser(network(), (1, 8, 16), seed=0)(x, torch.ones(2)).shape == x.shape
    with pytest.raises(ValueError, match=r"18 pixels.*multiple of 4"):
        build_denoiser(network(), (1, 8, 18), seed=0)


@pytest.mark.parametrize("width", [8, 40, 72, 136, 264])
def test_every_width_can_be_normalised_in_groups_of_at_least_four(width):
    net = UNet(network(model_channels=width), channels=1, resolution=16)
    norms = [module for module in net.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert all(norm.num_channels // norm.num_groups >= 4 for norm in norms)
    # Where EDM's number divides the channels, it is that.
    for norm in norms:
        usual = min(32, norm.num_channels // 4)
        assert norm.num_groups == usual or norm.num_channels % usual
    assert net(torch.zeros(1, 1, 8, 8), torch.zeros(1)).shape == (1, 1, 8, 8)


def test_every_weight_is_used():
    net = UNet(network(), channels=1, resolution=16)
    for parameter in net.parameters():  # zero gains would hide a path
        torch.nn.init.normal_(parameter, std=0.1)
    net(torch.randn(2, 1, 16, 16), torch.randn(2)).square().sum().backward()
    unused = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # The keys' bias shifts all logits of a softmax alike, so only its own third has no gradient.
    assert unused == []


def test_the_output_depends_on_the_noise_level():
    net = UNet(network(), channels=1, resolution=16)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(1, 1, 16, 16).repeat(2, 1, 1, 1)
    out = net(x, torch.tensor([0.0, 1.0]))
    assert not torch.allclose(out[0], out[1])


def test_fresh_weights_are_a_function_of_the_seed_alone():
    before = torch.get_rng_state()
    first, second, other = (
        build_denoiser(network(), (1, 16, 16), seed=derive_seed(s, "weights")) for s in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert _same(first, second)
    assert not _same(first, other)


def _same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


SONG = {
    "channels": 3,
    "resolution": 16,
    "model_channels": 16,
    "channel_mult": [1, 2, 2],
    "num_blocks": 2,
}


def as_ours(attention):
    return network(
        patch_size=1,
        attention_resolutions=attention,
        **{key: SONG[key] for key in ("model_channels", "channel_mult", "num_blocks")},
    )


@pytest.mark.parametrize("attention", [[8], [16, 4], []])
def test_with_edms_weights_it_is_edms_network(attention):
    weights = random_weights(**SONG, attention=attention)
    net = UNet(as_ours(attention), channels=3, resolution=16).eval()
    net.load_state_dict(from_song_unet(weights, as_ours(attention), 16))
    x, c_noise = torch.randn(2, 3, 16, 16), torch.tensor([-1.5, 0.8])
    with torch.no_grad():
        ours, theirs = net(x, c_noise), song_unet(weights, x, c_noise)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_weights_of_another_architecture_are_refused_by_name():
    weights = random_weights(**SONG, attention=[8])
    weights["map_label.weight"] = torch.zeros(16, 10)
    with pytest.raises(
        ValueError, match=r"^map_label\.weight: no such weight in an unconditional"
    ):
        from_song_unet(weights, as_ours([8]), 16)
