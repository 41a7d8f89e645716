"""The network's shapes and sizes."""

import pytest
import torch

from dsd.checkpoint import build_denoiser
from dsd.config import Network
from dsd.networks.unet import UNet
from dsd.seeds import derive_seed


def network(**changes):
    values = {
        "patch": 2, "width": 8, "channel_mult": [1, 2], "num_blocks": 1,
        "attention_resolutions": [4], "dropout": 0.0, "sigma_data": 0.5,
    }  # fmt: skip
    return Network(**{**values, **changes})


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("mult", [[1], [1, 2], [2, 1, 2]])
@pytest.mark.parametrize("channels", [1, 3])
def test_output_has_the_shape_of_the_input(patch, mult, channels):
    net = UNet(network(patch=patch, channel_mult=mult), channels=channels, resolution=16)
    x = torch.randn(2, channels, 16, 16)
    assert net(x, torch.zeros(2)).shape == x.shape


def test_the_papers_network_has_the_papers_size():
    """DDPM++ for CIFAR-10: 55.7 million parameters in EDM's table."""
    config = network(
        patch=1, width=128, channel_mult=[2, 2, 2], num_blocks=4, attention_resolutions=[16]
    )
    with torch.device("meta"):
        net = UNet(config, channels=3, resolution=32)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(55.7e6, rel=0.03)


def test_a_resolution_that_does_not_fit_is_refused_with_the_multiple():
    with pytest.raises(ValueError, match=r"18 pixels.*multiple of 4"):
        UNet(network(), channels=1, resolution=18)


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match=r"16 x 8.*data\.resolution"):
        build_denoiser(network(), (1, 8, 16), seed=0)


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
