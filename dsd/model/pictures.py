"""A teacher as the denoiser of pictures: any size, in raw or data units, with its uncertainty.

At the level of the data a teacher is the minimum-mean-square-error denoiser E[x0 | y], learned
from noisy images alone.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsd.model.denoiser import AnyDenoiser, Denoiser
from dsd.model.samplers import sample_posterior
from dsd.model.tiling import effective_radius, tiled
from dsd.model.units import AnyPicture, Unit, require_unit
from dsd.operators.gaussian_noise import noise_under
from dsd.utils.errors import DataError
from dsd.utils.intensity import PIXELS, Intensity

__all__ = ["PictureDenoiser", "denoise"]


@final
class PictureDenoiser:
    """Denoises pictures of any size in data units.

    Args:
        denoiser: A teacher.
        sigma: Noise level of the pictures in data units; None for that of the data it learned
            from.

    Attributes:
        sigma: The level.
        overlap: Pixels that neighbouring tiles share at least: the network's effective radius.

    Raises:
        DataError: The level is not known, or the teacher sees views of images.
        ValueError: The level is not above 0.
    """

    def __init__(self, denoiser: AnyDenoiser, sigma: float | None = None) -> None:
        if not isinstance(denoiser, Denoiser) or denoiser.shape is None:
            msg = (
                "denoise: this denoiser knows no pictures, because it is not from a model folder "
                "or sees views of images. Load a teacher of whole images with dsd.load_denoiser"
            )
            raise DataError(msg)
        units = denoiser.units
        if sigma is None:
            if units is None:
                msg = "sigma: the model does not know the noise level of its data. Give sigma"
                raise DataError(msg)
            sigma = units.sigma
        if not sigma > 0:
            msg = f"sigma: {sigma} is no level of noise that could be removed. Give one above 0"
            raise ValueError(msg)
        self.sigma = float(sigma)
        self._denoiser = denoiser
        self._shape = denoiser.shape
        self._device = next(denoiser.parameters()).device
        std = float(np.hypot(self.sigma, denoiser.sigma_data))
        radius = effective_radius(self._at_own_level, self._shape, std=std)
        shorter = min(self._shape[1:])
        self.overlap = min(max(radius, 1), shorter * 3 // 4)

    def _at_own_level(self, x: Tensor) -> Tensor:
        out: Tensor = self._denoiser(x.to(self._device), self.sigma)
        return out

    def mean(
        self, y: Float[Tensor, " c h w"], done: Callable[[float], None] = lambda share: None
    ) -> Float[Tensor, " c h w"]:
        """E[x0 | y] of a picture, on the CPU."""
        return self._at(y, self.sigma, done)

    def draw(
        self,
        y: Float[Tensor, " c h w"],
        *,
        seed: int,
        number: int,
        done: Callable[[float], None] = lambda share: None,
    ) -> Float[Tensor, " c h w"]:
        """Draw ``number`` of the posterior of x0 given a picture, on the CPU.

        Whole pictures take each step of the sampler, so that no tile shows in a draw.
        """
        steps = 18
        count = iter(range(steps))

        def denoiser(x: Tensor, levels: Tensor) -> Tensor:
            step = next(count)
            return self._at(x[0], float(levels[0]), lambda share: done((step + share) / steps))[
                None
            ]

        out = sample_posterior(
            denoiser,
            y[None],
            sigma=self.sigma,
            num_steps=steps,
            seed=seed,
            first=number,
            noise=deepcopy(noise_under(self._denoiser)).cpu(),
        )
        return out[0]

    @torch.inference_mode()
    def _at(self, y: Tensor, level: float, done: Callable[[float], None]) -> Tensor:
        channels, *tile = self._shape
        if y.ndim != 3 or len(y) != channels:
            msg = f"pictures have {len(y)} channels, those of the model {channels}"
            raise DataError(msg)

        def network(x: Tensor) -> Tensor:
            out: Tensor = self._denoiser(x, level)
            return out

        y = y.to(self._device)
        return tiled(network, y, (tile[0], tile[1]), self.overlap, done).cpu()


def intensity_of(denoiser: AnyDenoiser) -> Intensity:
    """The map of a model's images; that of 8-bit pictures where none is known."""
    return PIXELS if denoiser.units is None else denoiser.units.intensity


def denoise(
    denoiser: AnyDenoiser, y: AnyPicture, sigma: float | None = None, *, unit: Unit = "raw"
) -> AnyPicture:
    """E[x0 | y] of pictures of any size, by overlapping tiles.

    Args:
        denoiser: A teacher of a model folder.
        y: A picture [h, w] or [c, h, w], or several [n, c, h, w]: an array, or a tensor.
        sigma: Its noise level in the given unit; None for that of the data it learned from.
        unit: ``raw``: numbers as in the source's files; ``data``: as networks compute with.

    Returns:
        The same shape, float32, raw numbers not rounded.

    Raises:
        DataError: The shape does not fit, a number is NaN or infinite, or the level is not known.
        ValueError: The level is not above 0.
    """
    require_unit(unit)
    intensity = intensity_of(denoiser)
    numbers = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if not 2 <= numbers.ndim <= 4 or numbers.dtype.kind not in "buif":
        msg = f"y: {numbers.dtype} of {numbers.ndim} axes are no pictures. Give [n, c, h, w]"
        raise DataError(msg)
    if not np.isfinite(numbers).all():
        msg = "y: it holds NaN or infinite numbers. Repair or crop it"
        raise DataError(msg)
    if unit == "raw":
        if sigma is not None and intensity.camera is not None:
            msg = "sigma: the model has the noise of a camera, which needs no level. Leave it out"
            raise DataError(msg)
        sigma = None if sigma is None else sigma * intensity.scale
        values: np.ndarray = intensity.in_units(numbers)
    else:
        values = numbers.astype(np.float32)
    pictures = PictureDenoiser(denoiser, sigma)
    channels, height, width = (1, 1, *values.shape)[-3:]
    stacked = torch.from_numpy(values.reshape(-1, channels, height, width))
    out = torch.stack([pictures.mean(one) for one in stacked]).numpy().reshape(values.shape)
    if unit == "raw":
        out = intensity.raw_values(out).astype(np.float32)
    return torch.from_numpy(out) if isinstance(y, Tensor) else out
