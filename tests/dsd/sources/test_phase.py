"""Complex images from grey ones."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from stage_helpers import random_images

from dsd.sources.phase import to_complex


def complex_of(grey, indices):
    parts = to_complex(grey, np.asarray(indices, np.int64)).astype(np.float64)
    return parts[:, 0] + 1j * parts[:, 1]


@given(index=st.integers(0, 2**40), height=st.integers(2, 9), width=st.integers(2, 9))
def test_the_brightness_stays_and_both_channels_keep_the_range(index, height, width):
    grey = random_images(2, 1, height, width)
    parts = to_complex(grey, np.array([index, index + 1]))
    assert parts.shape == (2, 2, height, width)
    assert parts.dtype == np.float32
    assert np.abs(parts).max() <= 1
    found = np.abs(complex_of(grey, [index, index + 1]))
    np.testing.assert_allclose(found, grey[:, 0] / 255, atol=1e-6)


def test_the_phase_is_a_function_of_the_number_alone():
    white = np.full((3, 1, 8, 8), 255, np.uint8)
    together = to_complex(white, np.array([5, 0, 9]))
    np.testing.assert_array_equal(together[2:], to_complex(white[:1], np.array([9])))
    assert len({image.tobytes() for image in together}) == 3


def test_the_phase_is_a_polynomial_of_second_degree():
    """Its third differences vanish, whatever multiples of a whole turn are lost."""
    white = np.full((20, 1, 16, 16), 255, np.uint8)
    phase = np.angle(complex_of(white, range(20)))
    for axis in (1, 2):
        third = np.exp(1j * np.diff(phase, 3, axis=axis))
        np.testing.assert_allclose(third, 1, atol=1e-4)
        assert np.abs(np.exp(1j * np.diff(phase, 2, axis=axis)) - 1).max() > 0.01
        # Slow enough that neighbouring pixels can be told apart from a jump.
        steps = np.abs(np.angle(np.exp(1j * np.diff(phase, axis=axis))))
        assert steps.mean() < np.pi / 4


def test_phases_of_many_images_favour_no_direction():
    white = np.full((4000, 1, 3, 3), 255, np.uint8)
    middle = complex_of(white, range(4000))[:, 1, 1]
    assert abs(middle.mean()) < 4 / np.sqrt(4000)
    assert abs((middle**2).mean()) < 4 / np.sqrt(4000)


def test_the_phases_of_all_time():
    """Pins the stream: another NumPy must not change images that exist, beyond rounding."""
    white = np.full((2, 1, 5, 5), 255, np.uint8)
    parts = np.round(to_complex(white, np.array([0, 7])), 4) + 0.0
    assert hashlib.sha256(parts.astype("<f4").tobytes()).hexdigest() == GOLDEN


GOLDEN = "7f5b1fcc8440cbca00882d559ea0459a07696482350545e48734db505d2c50fc"
