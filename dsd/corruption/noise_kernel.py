"""The kernel of correlated noise: from its covariance, or from a file that a user names."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64

from dsd.utils.errors import ParamsError

__all__ = ["kernel_of", "read_kernel"]

_GRID = 64
"""Frequencies along each axis at which a kernel is computed, at least."""

_MAX_SIDE = 129
"""Of a kernel, in pixels."""

_FEWEST_FRAMES, _FRAME_SIDE = 2, 8

_FRAMES_REACH = 4
"""The covariance of frames of noise alone is measured up to this fraction of their sides."""

_MOST_NUMBERS = 2**24
"""Of frames that are used."""

_REMEDY = "Name a .npy file with a kernel (2 axes) or with frames of noise alone (NYX or NCYX)"


def read_kernel(path: Path, channels: int) -> Float[np.ndarray, " c m n"]:
    """Read the kernel in a file, or measure that of the frames of noise alone that it holds.

    Args:
        path: A .npy file. Two axes: the kernel, odd numbers of rows and columns, for all channels.
            Three, ``NYX``, or four, ``NCYX``: frames of noise alone.
        channels: Of the images.

    Returns:
        A kernel for each channel, at unit energy.

    Raises:
        ParamsError: It is no such file, or does not fit.
    """
    try:
        values = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise _refusal(path, f"cannot be read ({type(error).__name__})") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uif":
        raise _refusal(path, "holds no real numbers")
    if values.ndim == 2:
        kernel = _kernel(path, values)
    else:
        kernel = kernel_of(_frames_covariance(_frames(path, values, channels)))
    repeated: np.ndarray = np.repeat(kernel, channels // len(kernel), axis=0)
    return repeated


def _kernel(path: Path, values: np.ndarray) -> Float[np.ndarray, " one m n"]:
    if not all(side % 2 and side <= _MAX_SIDE for side in values.shape):
        raise _refusal(path, f"has sides that are not odd numbers up to {_MAX_SIDE}")
    kernel = np.array(values, np.float64)[None]
    energy = np.square(kernel).sum()
    if not (np.isfinite(energy) and energy > 0):
        raise _refusal(path, "holds a kernel that is all 0, NaN or infinite")
    scaled: np.ndarray = (kernel / np.sqrt(energy)).astype(np.float32)
    return scaled


def _frames(path: Path, values: np.ndarray, channels: int) -> Float64[np.ndarray, " n c h w"]:
    """As many of the frames as are used, without the pattern that they share."""
    shape = " x ".join(map(str, values.shape))
    if values.ndim not in (3, 4) or (values.ndim == 4 and values.shape[1] not in (1, channels)):
        raise _refusal(path, f"has the shape {shape}, for images of {channels} channels")
    frames = values if values.ndim == 4 else values[:, None]
    if len(frames) < _FEWEST_FRAMES or min(frames.shape[2:]) < _FRAME_SIDE:
        least = f"{_FEWEST_FRAMES} frames of {_FRAME_SIDE} x {_FRAME_SIDE} pixels"
        raise _refusal(path, f"has the shape {shape}, less than {least}")
    used = frames[: max(_FEWEST_FRAMES, _MOST_NUMBERS // frames[0].size)]
    noise = np.array(used, np.float64)
    noise -= noise.mean(0)
    if not (np.isfinite(noise).all() and noise.std((0, 2, 3)).min() > 0):
        raise _refusal(path, "holds frames that are constant, NaN or infinite")
    noise *= np.sqrt(len(noise) / (len(noise) - 1))
    return noise


def _refusal(path: Path, problem: str) -> ParamsError:
    return ParamsError(f"corrupt.spectrum: {path.name} {problem}. {_REMEDY}")


def kernel_of(covariance: Float64[np.ndarray, " c kh kw"]) -> Float[np.ndarray, " c m n"]:
    """The symmetric kernel whose convolution with white noise has a covariance, at unit energy.

    Its transform is the root of the spectrum. Where an estimated spectrum is negative, it is 0.
    """
    sides = [max(_GRID, 4 * length) for length in covariance.shape[1:]]
    reach = [length - 1 for length in covariance.shape[1:]]
    lags = [np.arange(-(length // 2), length // 2 + 1) % side
            for length, side in zip(covariance.shape[1:], sides, strict=True)]  # fmt: skip
    field = np.zeros((len(covariance), *sides))
    field[:, lags[0][:, None], lags[1][None, :]] = covariance
    root = np.sqrt(np.maximum(np.fft.fft2(field).real, 0))
    kernel = np.fft.ifft2(root).real
    rows, columns = (np.arange(-r, r + 1) for r in reach)
    kernel = kernel[:, rows[:, None], columns[None, :]]
    scaled: np.ndarray = kernel / np.sqrt(np.square(kernel).sum((1, 2), keepdims=True))
    return scaled.astype(np.float32)


def _frames_covariance(frames: Float64[np.ndarray, " n c h w"]) -> Float64[np.ndarray, " c kh kw"]:
    """Covariance of stationary noise of mean 0, up to a part of the frames' sides."""
    _, channels, *shape = frames.shape
    sides = [2 * side for side in shape]
    power = np.zeros((channels, sides[0], shape[1] + 1))
    for frame in frames:
        power += np.abs(np.fft.rfft2(frame, sides)) ** 2
    sums = np.fft.irfft2(power / len(frames), sides)
    reach = [max(1, side // _FRAMES_REACH) for side in shape]
    rows, columns = (np.arange(-r, r + 1) for r in reach)
    pairs = (shape[0] - np.abs(rows))[:, None] * (shape[1] - np.abs(columns))[None, :]
    covariance: np.ndarray = sums[:, rows[:, None], columns[None, :]] / pairs
    # A taper to the last lag, because a sudden end makes the spectrum negative.
    fall = [np.minimum(2 - 2 * np.abs(lags) / (lags[-1] + 1), 1) for lags in (rows, columns)]
    tapered: np.ndarray = covariance * fall[0][:, None] * fall[1][None, :]
    return tapered
