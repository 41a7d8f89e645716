"""Cameras' noise with intervals, and the names of the kinds of noise, on scenes of known truth."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from bench.accuracy.camera_noise import OFFSET, holds, seen
from dsd.corruption.camera_noise import estimate_camera
from dsd.corruption.noise_kinds import kinds_of_noise
from dsd.corruption.noise_level import estimate_noise
from dsd.utils.errors import DataError
from dsd.utils.intensity import PIXELS, Intensity

GAIN, READ_NOISE = 2.5, 4.0
RANDOM = np.random.default_rng(0)


def waves(count=300, side=32):
    """Smooth images with values from 0 to 1."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[:side, :side]
    phase = random.uniform(0, 6, (count, 1, 1, 1))
    return (np.sin(0.25 * y + phase) + np.cos(0.2 * x - 2 * phase) + 2) / 4


@pytest.fixture(scope="module")
def raw():
    return seen("discs", 200.0, GAIN, READ_NOISE, seed=5)


def test_gain_offset_and_read_noise_lie_within_their_intervals(raw):
    found = estimate_camera(raw)
    assert holds(found.gain, GAIN)
    assert holds(found.offset, OFFSET)
    assert holds(found.read_noise, READ_NOISE)
    assert found.gain.value == pytest.approx(GAIN, rel=0.06)
    assert found.gain.high - found.gain.low < 0.4 * GAIN


@pytest.mark.parametrize(
    ("given", "free", "truth"),
    [
        ({"offset": OFFSET}, "read_noise", READ_NOISE),
        ({"read_noise": READ_NOISE}, "offset", OFFSET),
        ({"offset": OFFSET, "read_noise": READ_NOISE}, "gain", GAIN),
        ({"gain": GAIN, "offset": OFFSET}, "read_noise", READ_NOISE),
    ],
)
def test_what_is_given_stands_and_narrows_the_rest(raw, given, free, truth):
    found = estimate_camera(raw, **given)
    for name, value in given.items():
        assert getattr(found, name) == (value, value, value)
    interval = getattr(found, free)
    assert holds(interval, truth)
    assert interval.value == pytest.approx(truth, rel=0.06)
    assert interval.high - interval.low < 0.4 * truth


def test_noise_that_does_not_grow_with_brightness_is_no_cameras():
    white = 100 + 400 * waves() + 20 * RANDOM.standard_normal((300, 1, 32, 32))
    with pytest.raises(DataError, match=r"does not grow with brightness .*intensity\.camera"):
        estimate_camera(white)
    with pytest.raises(DataError, match="too few"):
        estimate_camera(white[:8])


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return np.asarray(Image.open(file))


def white(level=20.0):
    return 60 + 120 * waves() + level * RANDOM.standard_normal((300, 1, 32, 32))


def poisson():
    photons = RANDOM.poisson(5 + 60 * waves())
    return 2.5 * photons + 100 + 4 * RANDOM.standard_normal(photons.shape)


def correlated():
    noise = RANDOM.standard_normal((300, 1, 32, 32))
    return 60 + 120 * waves() + 15 * (noise + np.roll(noise, 1, -1))


def pictures(images):
    return np.rint(images).clip(0, 255).astype(np.uint8)


def compressed():
    return np.stack([jpeg(image[0])[None] for image in pictures(white())])


MEASURED = Intensity(low=0.0, high=400.0, dtype="float32")


@pytest.mark.parametrize(
    ("make", "intensity", "names", "setting"),
    [
        (white, MEASURED, {"white Gaussian"}, "sigma: 0.1"),
        (lambda: pictures(white()), PIXELS, {"white Gaussian"}, "sigma: 0.1"),
        (poisson, MEASURED, {"Poisson-Gaussian"}, "camera: {gain: auto"),
        (correlated, MEASURED, {"correlated"}, "spectrum: auto"),
        (compressed, PIXELS, {"JPEG"}, None),
        (lambda: pictures(white()) // 40 * 40, PIXELS, {"quantised"}, None),
        (lambda: white().clip(70, None), MEASURED, {"clipped"}, None),
        (lambda: white(20 * np.linspace(0.5, 1.5, 300)[:, None, None, None]), MEASURED,
         {"levels differ", "not Gaussian"}, None),
    ],
    ids=["white", "pictures", "poisson", "correlated", "jpeg", "quantised", "clipped", "levels"],
)  # fmt: skip
def test_each_kind_of_noise_has_its_name_and_setting(make, intensity, names, setting):
    x = torch.from_numpy(intensity.in_units(make()))
    kinds = kinds_of_noise(x, estimate_noise(x), intensity)
    assert kinds[0].name in names
    assert names <= {kind.name for kind in kinds}
    assert setting in kinds[0].setting if setting else kinds[0].setting is None
