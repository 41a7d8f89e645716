"""Which kinds of noise images show, in words, with the setting that fits.

Photon noise makes most checks of white noise fail: bright images are noisier than dark ones, and
all of it together is not Gaussian. Where a camera's noise explains the images, they are therefore
checked again after its transform, and what fails then is named beside it.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.fft import dctn
from torch import Tensor

from dsd.corruption.camera_noise import CameraEstimate, estimate_camera
from dsd.corruption.noise_checks import Check
from dsd.corruption.noise_level import NoiseEstimate, estimate_noise
from dsd.utils.errors import DataError
from dsd.utils.intensity import Intensity

__all__ = ["NoiseKind", "kinds_of_noise"]

_NAMES = {
    "white": "correlated",
    "flat spectrum": "correlated",
    "signal-independent": "signal-dependent",
    "fine steps": "quantised",
    "unclipped": "clipped",
    "one level": "levels differ",
    "equal scale": "levels differ",
    "gaussian": "not Gaussian",
    "impulses": "impulses",
    "no fixed pattern": "fixed pattern",
    "everywhere": "constant places",
}
"""Kinds by the check that shows them, the one that explains most first."""

_SETTINGS = {"correlated": "corrupt: {spectrum: auto}"}

_BLOCK = 8
_COMB = 0.15
_MOST_PIXELS = 2**16
"""That are looked at."""

_FREQUENCIES = ((0, 1), (1, 0), (1, 1), (2, 2), (3, 3), (4, 4), (0, 4), (4, 0))


@final
@dataclass(frozen=True)
class NoiseKind:
    """One kind of noise that was seen."""

    name: str
    finding: str
    """What was measured, and what to do where no setting fits."""

    setting: str | None = None
    """A line for params.yaml."""


def kinds_of_noise(
    images: Float[Tensor, " n c h w"], estimate: NoiseEstimate, intensity: Intensity
) -> tuple[NoiseKind, ...]:
    """Name the kinds of noise of some images, the one that explains most first.

    Args:
        images: In data units.
        estimate: Of their noise.
        intensity: The map between data and raw units.
    """
    jpeg = _jpeg(images, intensity)
    found = [] if jpeg is None else [jpeg]
    checks = estimate.suspicious
    if intensity.camera is None and any(check.name == "signal-independent" for check in checks):
        seen = _camera_noise(images, intensity)
        if seen is not None:
            camera, checks = seen
            found.append(_poisson_gaussian(camera))
    for check in sorted(checks, key=lambda one: [*_NAMES].index(one.name)):
        name = _NAMES[check.name]
        explained = name == "correlated" and jpeg is not None
        if not explained and all(kind.name != name for kind in found):
            found.append(NoiseKind(name, check.text, _SETTINGS.get(name)))
    if not found:
        level = estimate.recommended
        finding = f"of one level, {estimate.sigma:.4g} in data units"
        found.append(NoiseKind("white Gaussian", finding, f"corrupt: {{sigma: {level:.4g}}}"))
    return tuple(found)


def _poisson_gaussian(camera: CameraEstimate) -> NoiseKind:
    return NoiseKind(
        "Poisson-Gaussian",
        f"the noise grows with brightness as a camera's: {camera}",
        "data: {intensity: {camera: {gain: auto, offset: auto, read_noise: auto}, "
        "percentiles: [0.1, 99.9]}} with corrupt: {sigma: auto, unit: data}",
    )


def _camera_noise(
    images: Float[Tensor, " n c h w"], intensity: Intensity
) -> tuple[CameraEstimate, tuple[Check, ...]] | None:
    """A camera whose transform makes the noise independent of the signal, and what fails then."""
    raw = intensity.raw_values(images.numpy(), noisy=True)
    try:
        found = estimate_camera(raw)
        stabilised = found.camera.stabilised(raw).astype(np.float32)
        after = estimate_noise(torch.from_numpy(stabilised))
    except DataError:
        return None
    failed = after.suspicious
    # Clipping and steps are what they were, whatever the transform.
    return None if any(check.name == "signal-independent" for check in failed) else (found, failed)


def _jpeg(images: Float[Tensor, " n c h w"], intensity: Intensity) -> NoiseKind | None:
    """JPEG's rounding of the cosine transform of blocks, which one place of the grid shows."""
    if intensity.dtype != "uint8" or min(images.shape[2:]) < 2 * _BLOCK:
        return None
    step = max(1, images[:, 0].numel() // _MOST_PIXELS)
    raw = intensity.raw_values(images[::step, 0].numpy(), noisy=True)
    combs = np.array([
        _comb(raw[:, top:, left:]) for top in range(_BLOCK) for left in range(_BLOCK)
    ])  # fmt: skip
    excess = float(combs.max() - np.median(combs))
    if excess <= _COMB:
        return None
    finding = (
        f"coefficients of blocks of 8 x 8 pixels lie on combs (by {excess:.0%} more than those of "
        "shifted blocks): lossy compression took noise away, and no level describes it; use the "
        "originals"
    )
    return NoiseKind("JPEG", finding)


def _comb(raw: Float64[np.ndarray, " n h w"]) -> float:
    """How near coefficients of blocks are to multiples of a step, over some frequencies: up to 1.

    Where all are 0, as coarse steps leave them, they are near to multiples of any.
    """
    rows, columns = (side // _BLOCK for side in raw.shape[1:])
    grid = raw[:, : rows * _BLOCK, : columns * _BLOCK]
    blocks = grid.reshape(len(raw), rows, _BLOCK, columns, _BLOCK).swapaxes(2, 3)
    transformed = dctn(blocks, axes=(-2, -1), norm="ortho")
    steps = np.arange(3, 41)[:, None]
    found = [
        np.cos(2 * np.pi * transformed[..., row, column].ravel() / steps).mean(1).max()
        for row, column in _FREQUENCIES
    ]
    return float(np.mean(found))
