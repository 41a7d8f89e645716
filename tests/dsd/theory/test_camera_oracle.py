"""The exact denoiser behind the camera's transform, against integration over photons."""

import numpy as np
import pytest
import torch
from scipy.stats import norm, poisson

from dsd.theory.gaussian_mixture import GaussianMixture
from dsd.utils.anscombe import Camera

WEIGHTS, MEANS, DEVIATIONS = np.array([0.6, 0.4]), np.array([9.0, 20.0]), np.array([1.0, 2.0])
"""Of the signal after the transform, in standard deviations of the noise: about 20 and 100
photons."""


def mixture():
    spread = torch.tensor(DEVIATIONS**2)[:, None, None]
    return GaussianMixture(torch.tensor(WEIGHTS), torch.tensor(MEANS)[:, None], spread)


def integrated(camera, y, photons, prior):
    """E[photons | y]: the likelihood of counts and read-out, summed over both."""
    counts = np.arange(int(photons.max() + 8 * np.sqrt(photons.max())))
    arrived = poisson.pmf(counts, photons[:, None])
    read = norm.pdf(y[:, None], camera.offset + camera.gain * counts, camera.read_noise)
    likelihood = read @ arrived.T
    return likelihood @ (prior * photons) / (likelihood @ prior)


@pytest.mark.parametrize("read_noise", [1.0, 4.0])
def test_denoising_after_the_transform_is_nearly_that_of_the_true_noise(read_noise):
    camera = Camera(gain=2.0, offset=100.0, read_noise=read_noise)
    signal = np.linspace(4.5, 28, 800)
    photons = (camera.unbiased_inverse(signal) - camera.offset) / camera.gain
    prior = (WEIGHTS * norm.pdf(signal[:, None], MEANS, DEVIATIONS)).sum(1)
    random = np.random.default_rng(0)
    seen = random.choice(photons, 2000, p=prior / prior.sum())
    noise = read_noise * random.standard_normal(len(seen))
    y = camera.gain * random.poisson(seen) + camera.offset + noise
    exact = integrated(camera, y, photons, prior)
    z = torch.from_numpy(camera.stabilised(y))[:, None]
    clean = mixture().denoiser(z, torch.ones(len(z), dtype=torch.float64)).numpy()[:, 0]
    found = (camera.unbiased_inverse(clean) - camera.offset) / camera.gain
    # The root's curvature takes at most a quarter photon off a mean; the rest is the likelihood's.
    difference = found - exact
    assert np.abs(difference).max() < 0.25 + 0.05 * exact.max()
    assert -0.25 < difference.mean() < 0.05
    error, least = np.square(found - seen).mean(), np.square(exact - seen).mean()
    assert error < 1.02 * least
    # Without the unbiased inverse, or as if all noise were of one level, it is clearly worse.
    biased = (camera.algebraic_inverse(clean) - camera.offset) / camera.gain
    assert (biased - exact).mean() < -0.3
    level = np.sqrt(np.square((y - camera.offset) / camera.gain - seen).mean())
    likely = norm.pdf((y[:, None] - camera.offset) / camera.gain, photons, level)
    of_one_level = likely @ (prior * photons) / (likely @ prior)
    assert np.square(of_one_level - seen).mean() > 1.1 * least
