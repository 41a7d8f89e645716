"""The generalised Anscombe transform and its inverses, in the map between raw and data units."""

import numpy as np
import pytest

from dsd.utils.anscombe import Camera
from dsd.utils.intensity import Intensity

CAMERA = Camera(gain=2.5, offset=100.0, read_noise=4.0)


def observed(camera, photons, count, seed=0):
    random = np.random.default_rng(seed)
    counted = random.poisson(photons, count)
    return camera.gain * counted + camera.offset + camera.read_noise * random.normal(size=count)


@pytest.mark.parametrize("read_noise", [0.0, 4.0])
@pytest.mark.parametrize(("photons", "off"), [(4, 0.08), (10, 0.03), (100, 0.01), (5000, 0.01)])
def test_noise_has_unit_variance_after_the_transform(photons, off, read_noise):
    camera = CAMERA.model_copy(update={"read_noise": read_noise})
    z = camera.stabilised(observed(camera, photons, 200_000))
    assert z.std() == pytest.approx(1, abs=off)


@pytest.mark.parametrize("read_noise", [0.0, 1.0, 4.0, 40.0])
@pytest.mark.parametrize("photons", [0.0, 0.5, 2.0, 20.0, 390.0, 410.0, 1e4])
def test_the_exact_inverse_of_the_mean_is_the_mean(photons, read_noise):
    camera = CAMERA.model_copy(update={"read_noise": read_noise})
    z = camera.stabilised(observed(camera, photons, 1_000_000))
    back = (camera.unbiased_inverse(np.array(z.mean())) - camera.offset) / camera.gain
    error = 5 * np.sqrt(photons + (read_noise / camera.gain) ** 2) / 1000 + 1e-3
    assert back == pytest.approx(photons, abs=error)
    # What is the mean without noise is not: the bias that the exact inverse takes off.
    if photons == 2.0 and read_noise == 0.0:
        assert camera.algebraic_inverse(np.array(z.mean())) < camera.offset + camera.gain * (
            2 - 0.1
        )


def test_the_inverse_is_continuous_and_rises_everywhere():
    z = np.linspace(0, 200, 200_001)
    for read_noise in (0.0, 0.3, 4.0, 100.0):
        steps = np.diff(CAMERA.model_copy(update={"read_noise": read_noise}).unbiased_inverse(z))
        assert (steps >= 0).all()
        assert steps.max() < 2.5 * 0.11


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_the_map_of_a_camera_and_back(dtype):
    intensity = Intensity(low=100.0, high=4000.0, dtype=dtype, camera=CAMERA)
    raw = np.array([[95, 100, 101, 250, 4000, 9000]], dtype)
    x = intensity.in_units(raw)
    assert x[0, 1] == -1
    assert x[0, 4] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(intensity.in_raw(x, noisy=True), raw, rtol=1e-5)
    y = observed(CAMERA, 50.0, 100_000)
    assert intensity.in_units(y).std() == pytest.approx(intensity.scale, rel=0.02)
    clean = CAMERA.mean_stabilised(np.array([100.0, 225.0, 2500.0])) - CAMERA.stabilised(
        np.array(100.0)
    )
    back = intensity.raw_values(clean * intensity.scale - 1)
    np.testing.assert_allclose(back, [100.0, 225.0, 2500.0], rtol=1e-5)
