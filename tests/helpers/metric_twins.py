"""What the stages measure, again: numpy in float64, plain loops, no code of ``dsd.metrics``."""

import numpy as np
import scipy.linalg
import torch

from dsd.utils.random import derive_seed


def quantised(x):
    """8-bit images of numbers in [-1, 1]: rounded to the nearest, clamped."""
    return np.clip(np.floor(np.asarray(x, np.float32) * np.float32(127.5) + 128), 0, 255).astype(
        np.uint8
    )


def observed(pixels, levels, seed):
    """Saved images with noise of the levels in turn, as saved again."""
    found = []
    for number, image in enumerate(np.asarray(pixels)):
        generator = torch.Generator().manual_seed(derive_seed(seed, "renoise", number))
        eps = torch.randn(image.shape, generator=generator).numpy()
        x = image.astype(np.float32) / np.float32(127.5) - 1
        found.append(quantised(x + np.float32(levels[number % len(levels)]) * eps))
    return np.stack(found)


def frechet(a, b):
    """Between the normal laws of two sets of features [n, d]."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    shift = a.mean(0) - b.mean(0)
    return shift @ shift + np.trace(cov_a + cov_b - 2 * root)


def jackknifed(a, b):
    """Standard error and estimate without bias of the distance of ``a`` to a fixed ``b``."""
    n = len(a)
    without = np.array([frechet(np.delete(a, i, 0), b) for i in range(n)])
    error = np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    return error, n * frechet(a, b) - (n - 1) * without.mean()


def kid(a, b):
    """The unbiased squared distance with the kernel (x y / d + 1)^3."""
    d, n, m = a.shape[1], len(a), len(b)

    def kernel(x, y):
        return (x @ y.T / d + 1) ** 3

    within_a, within_b = kernel(a, a), kernel(b, b)
    return (
        (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
        + (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
        - 2 * kernel(a, b).mean()
    )


def _distances(a, b):
    return np.sqrt(np.square(a[:, None] - b[None]).sum(-1))


def _radii(x, k):
    """To the k-th other vector."""
    return np.sort(_distances(x, x), axis=1)[:, k]


def shares(generated, reference):
    """Precision, recall, density and coverage; k is 3 and 5."""
    between = _distances(generated, reference)
    three, five = _radii(reference, 3), _radii(reference, 5)
    own = _radii(generated, 3)
    return {
        "precision": np.mean([(row <= three).any() for row in between]),
        "recall": np.mean([(column <= own).any() for column in between.T]),
        "density": np.mean([(row <= five).sum() for row in between]) / 5,
        "coverage": np.mean([(between[:, j] <= five[j]).any() for j in range(len(reference))]),
    }
