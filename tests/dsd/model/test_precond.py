"""EDM's preconditioning."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dsd.model.denoiser import Denoiser, coefficients

LEVELS = st.floats(2e-3, 80)


@given(sigma=LEVELS, sigma_data=st.floats(0.1, 2))
def test_input_and_target_of_the_network_have_unit_variance(sigma, sigma_data):
    level = torch.tensor([sigma], dtype=torch.float64)
    c = coefficients(level, sigma_data)
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(c.c_in**2 * (sigma**2 + sigma_data**2), one)
    # Var((x0 - c_skip x) / c_out) = 1 for x = x0 + sigma n.
    target = ((1 - c.c_skip) ** 2 * sigma_data**2 + c.c_skip**2 * sigma**2) / c.c_out**2
    torch.testing.assert_close(target, one)
    torch.testing.assert_close(c.c_noise, level.log() / 4)


class Zero(nn.Module):
    def forward(self, x, c_noise):
        return torch.zeros_like(x)


@given(sigma=LEVELS)
def test_a_silent_network_gives_the_linear_denoiser_of_a_gaussian(sigma):
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    denoised = Denoiser(Zero(), sigma_data=0.5)(x, torch.full((3,), sigma))
    torch.testing.assert_close(denoised, x * 0.25 / (0.25 + sigma**2))


def test_each_image_is_scaled_by_its_own_level():
    x = torch.ones(2, 1, 1, 1)
    denoised = Denoiser(Zero(), sigma_data=1.0)(x, torch.tensor([1.0, 3.0]))
    assert denoised.flatten().tolist() == pytest.approx([0.5, 0.1])
