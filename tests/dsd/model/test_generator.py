"""The one-step generator."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsd.model.denoiser import Denoiser
from dsd.model.generator import OneStepGenerator, make_latents
from dsd.utils.images import to_uint8

SHAPE = (1, 4, 4)


class Wave(torch.nn.Module):
    """A network that depends on its level, with dropout that only training may use."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(3.0))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x, c_noise):
        return self.dropout(torch.sin(self.weight * x) + c_noise[:, None, None, None])


def generator(sigma_init=2.5):
    denoiser = Denoiser(Wave(), sigma_data=0.5)
    return OneStepGenerator(denoiser, sigma_init=sigma_init, shape=SHAPE).eval()


@pytest.mark.parametrize("tau", [0.7, 2.5])
def test_it_denoises_scaled_latents_at_its_level(tau):
    """SiD's G(z) = D(tau z; tau), written out with EDM's scalings."""
    z = make_latents(5, SHAPE, seed=1)
    total = (tau**2 + 0.25) ** 0.5
    raw = torch.sin(3 * tau * z / total) + torch.tensor(tau).log() / 4
    expected = 0.25 / total**2 * tau * z + 0.5 * tau / total * raw
    torch.testing.assert_close(generator(tau)(z), expected)


@settings(max_examples=20)
@given(batch_size=st.integers(1, 9))
def test_an_image_depends_on_seed_and_number_alone(batch_size):
    model = generator()
    images = model.sample(9, seed=3, batch_size=batch_size)
    assert torch.equal(images, to_uint8(model(make_latents(9, SHAPE, seed=3))))
    assert not torch.equal(images, model.sample(9, seed=4))
    assert len({image.numpy().tobytes() for image in images}) == 9


def test_sampling_uses_no_dropout_and_leaves_the_mode_as_it_was():
    model = generator().train()
    assert torch.equal(model.sample(4, seed=0), generator().sample(4, seed=0))
    assert model.training
    assert not generator().sample(1, seed=0).is_floating_point()


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-3, 0), (1, -1)])
def test_a_count_or_seed_out_of_range_is_named(count, seed):
    with pytest.raises(ValueError, match=f"num_images must be >= 1.*not {count} and {seed}"):
        generator().sample(count, seed=seed)
