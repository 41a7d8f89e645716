"""Synthetic scenes with known truth: blobs on a dark ground, under correlated noise."""

import numpy as np
from scipy.signal import fftconvolve

_GAUSSIAN = np.exp(-(np.arange(-2, 3) ** 2) / 2)

KERNELS = {
    "white": np.ones((1, 1)),
    "along rows": np.array([[1.0, 1.0, 0.5]]),
    "interpolated": np.outer([1.0, 2.0, 1.0], [1.0, 2.0, 1.0]),
    "averaged 3 x 3": np.ones((3, 3)),
    "blurred by 1 pixel": np.outer(_GAUSSIAN, _GAUSSIAN),
    "sharpened": np.array([[0.0, -1.0, 0.0], [-1.0, 6.0, -1.0], [0.0, -1.0, 0.0]]),
}


def scenes(rng, count, side, most):
    """Images [count, 1, side, side] from -1 on, with up to ``most`` blobs each."""
    images = np.full((count, 1, side, side), -1.0)
    y, x = np.mgrid[:side, :side]
    for image in images:
        for _ in range(rng.integers(0, most + 1)):
            (v, u), width = rng.uniform(0, side, 2), rng.uniform(2, 6)
            image += rng.uniform(0.3, 1.2) * np.exp(-((y - v) ** 2 + (x - u) ** 2) / 2 / width**2)
    return images


def correlated(rng, kernel, shape):
    """Noise of variance 1: white noise convolved with a kernel."""
    kernel = kernel / np.sqrt(np.square(kernel).sum())
    *others, height, width = shape
    larger = (*others, height + kernel.shape[0] - 1, width + kernel.shape[1] - 1)
    kernel = kernel.reshape(*[1] * len(others), *kernel.shape)
    return fftconvolve(rng.standard_normal(larger), kernel, mode="valid", axes=(-2, -1))


def true_spectrum(kernel, reach):
    """Its power at the frequencies of a transform of 2 ``reach`` + 1 pixels, for variance 1."""
    side = 2 * reach + 1
    folded = np.zeros((side, side))
    rows, columns = (np.arange(length) % side for length in kernel.shape)
    np.add.at(folded, (rows[:, None], columns[None, :]), kernel)
    return np.abs(np.fft.fft2(folded)) ** 2 / np.square(kernel).sum()
