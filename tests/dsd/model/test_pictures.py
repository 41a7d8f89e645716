"""Pictures of any size: tiles that do not show, units, draws of the posterior, deepinv."""

import numpy as np
import pytest
import torch
from tiny_model import NETWORK, save_tiny_model
from torch import nn

import dsd
from dsd.model.checkpoint import build_denoiser
from dsd.model.denoiser import Denoiser
from dsd.model.pictures import PictureDenoiser
from dsd.model.samplers import sample_posterior
from dsd.model.tiling import effective_radius, tile_starts, tiled
from dsd.model.units import ImageUnits
from dsd.utils.errors import DataError
from dsd.utils.intensity import Intensity

UNITS = ImageUnits(
    intensity=Intensity(low=100.0, high=900.0, dtype="uint16"),
    sigma=0.3,
    is_complex=False,
    suffix=".tif",
)


def blur(radius):
    """A denoiser that sees exactly so far, with the borders of its tile as zeros."""
    side = 2 * radius + 1
    weight = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(radius))
    return lambda x: nn.functional.conv2d(x, weight / weight.sum(), padding=radius)


@pytest.mark.parametrize(("length", "tile", "overlap"), [(64, 16, 4), (65, 16, 5), (17, 16, 8)])
def test_tiles_cover_everything_with_at_least_the_overlap(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == length - tile
    assert (starts.diff() <= tile - overlap).all()


@pytest.mark.parametrize("radius", [1, 3])
def test_the_effective_radius_is_that_of_a_blur(radius):
    assert effective_radius(blur(radius), (1, 16, 16), std=1.0) == radius


@pytest.mark.parametrize("size", [(64, 50), (16, 90), (7, 5)])
def test_a_denoiser_of_pixels_gives_the_same_by_tiles(size):
    picture = torch.randn(2, *size)
    out = tiled(lambda x: 2 * x + 1, picture, (16, 16), 5)
    torch.testing.assert_close(out, 2 * picture + 1)


def test_no_tile_shows_where_the_overlap_is_the_radius():
    picture = torch.randn(1, 90, 90)
    whole = blur(2)(picture[None])[0]
    off = [
        (tiled(blur(2), picture, (24, 24), overlap) - whole)[:, 3:-3, 3:-3].abs().mean()
        for overlap in (0, 2, 8)
    ]
    assert off[2] < 0.02 * whole.std()
    assert off[2] < off[1] < off[0]  # each border shows without an overlap


def test_the_unet_on_a_large_picture_is_what_it_is_on_any_tile_of_it():
    """The mean difference at the borders of tiles is that elsewhere."""
    torch.manual_seed(0)
    denoiser = build_denoiser(NETWORK, (1, 32, 32), seed=0).eval()
    for weight in denoiser.parameters():
        nn.init.normal_(weight, std=0.08)
    denoiser.shape, denoiser.units = (1, 32, 32), UNITS
    picture = torch.randn(1, 80, 80)
    pictures = PictureDenoiser(denoiser)
    shifted = pictures.mean(torch.cat([picture[:, :, :1], picture], 2))[:, :, 1:]
    here = pictures.mean(picture)
    change = (here - shifted)[0, 8:-8, 8:-8].square().mean().sqrt()
    removed = (here - picture)[0, 8:-8, 8:-8].square().mean().sqrt()
    assert change < 0.1 * removed


def test_units_and_shapes_come_back(tmp_path):
    save_tiny_model(tmp_path, sigma_init=None, units=UNITS)
    denoiser = dsd.load_denoiser(tmp_path)
    raw = np.random.default_rng(0).integers(100, 900, (2, 1, 8, 8)).astype(np.uint16)
    x = torch.from_numpy(UNITS.intensity.in_units(raw))
    with torch.inference_mode():
        expected = UNITS.intensity.raw_values(denoiser(x, 0.3).numpy())
    np.testing.assert_allclose(denoiser.denoise(raw), expected, rtol=1e-5)
    np.testing.assert_allclose(denoiser.denoise(raw, 120.0), expected, rtol=1e-5)
    assert denoiser.denoise(raw[0, 0]).shape == (8, 8)
    data = denoiser.denoise(x, 0.3, unit="data")
    np.testing.assert_allclose(UNITS.intensity.raw_values(data.numpy()), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("y", "sigma", "message"),
    [
        (np.zeros((3, 8, 8)), None, "3 channels"),
        (np.full((8, 8), np.nan), None, "NaN"),
        (np.zeros(8), None, "1 axes"),
        (np.zeros((8, 8)), -1.0, "above 0"),
    ],
)
def test_what_is_no_picture_or_level_is_refused(tmp_path, y, sigma, message):
    save_tiny_model(tmp_path, sigma_init=None, units=UNITS)
    with pytest.raises((DataError, ValueError), match=message):
        dsd.load_denoiser(tmp_path).denoise(y, sigma)


def test_a_denoiser_without_a_folder_asks_for_one():
    with pytest.raises(DataError, match="load_denoiser"):
        build_denoiser(NETWORK, (1, 8, 8), seed=0).denoise(np.zeros((8, 8)))


@pytest.mark.parametrize("y", [0.0, 0.4])
def test_draws_of_the_posterior_have_its_mean_and_deviation(y):
    """Two clean values, +-0.5 with spread 0.1, whose posterior is known."""
    centres, spread, sigma = torch.tensor([-0.5, 0.5]), 0.1, 0.4

    def parts(x, level):
        variance = spread**2 + level**2
        weights = (-((x[..., None] - centres) ** 2) / (2 * variance[..., None])).softmax(-1)
        return weights, centres + (x[..., None] - centres) * (spread**2 / variance)[..., None]

    def exact(x, level):
        weights, means = parts(x, level[:, None, None, None])
        return (weights * means).sum(-1)

    count = 5_000
    draws = sample_posterior(
        exact, torch.full((1, 1, 1, count), y), sigma=sigma, num_steps=100, seed=1
    )
    weights, means = parts(torch.tensor([y]), torch.tensor([sigma]))
    mean = (weights * means).sum()
    inner = 1 / (1 / spread**2 + 1 / sigma**2)
    deviation = ((weights * (means**2 + inner)).sum() - mean**2).sqrt()
    assert abs(draws.mean() - mean) < 0.015
    assert abs(draws.std() / deviation - 1) < 0.06
    halves = [sample_posterior(exact, torch.full((2, 1, 1, 1), y), sigma=sigma, seed=1, first=n)
              for n in (0, 1)]  # fmt: skip
    torch.testing.assert_close(halves[0][1], halves[1][0])


def test_deepinv_samples_with_a_teacher():
    """Its own sampler, and its calls with one level or one for each image."""
    deepinv = pytest.importorskip("deepinv")

    class Shrinking(nn.Module):
        """The exact network of standard normal images: F is 0 at sigma_data 1."""

        def forward(self, x, c_noise):
            return 0 * x

    denoiser = Denoiser(Shrinking(), sigma_data=1.0)
    y = torch.randn(2, 1, 8, 8)
    for sigma in (0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.full((2, 1, 1, 1), 0.5)):
        torch.testing.assert_close(denoiser(y, sigma), y / 1.25)
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.5))
    prior = deepinv.optim.ScorePrior(denoiser=denoiser)
    sampler = deepinv.sampling.ULA(
        prior=prior,
        data_fidelity=deepinv.optim.L2(sigma=0.5),
        step_size=0.02,
        sigma=0.1,
        alpha=1.0,
        max_iter=300,
        burnin_ratio=0.2,
        clip=None,
        verbose=False,
    )
    mean, _ = sampler(y, physics, seed=0)
    # The posterior mean of standard normal images.
    assert (mean - y / 1.25).square().mean().sqrt() < 0.2
