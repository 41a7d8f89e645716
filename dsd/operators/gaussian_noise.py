r"""The distribution of an observation's noise: Gaussian, white or correlated.

Correlated noise is eps = k * n, white noise n convolved with a kernel k for each channel, with
sum k^2 = 1. Every pixel has variance 1, so noise levels mean what they mean for white noise. The
covariance K depends on the distance between pixels alone: its Fourier transform is the power
spectrum |k^(f)|^2, of mean 1.

Everything in DSD holds under such noise as under white noise, in the coordinates u = K^-1/2 x in
which it is white. Written in pixels again, what is added to observations and generated images
has the covariance K, and

    E[x0 | x_t] = x_t + sigma^2 K score(x_t)            (Tweedie)
    E[y | x_t] = a E[x0 | x_t] + (1 - a) x_t            (ambient Tweedie, unchanged)
    dx / dsigma = (x - D(x; sigma)) / sigma             (probability flow, unchanged).

K appears only beside the score, and no loss here uses the score: all are written with denoisers,
and their formulas stay. Differences of denoisers are measured in pixels, not in whitened
coordinates. The gap |D_teacher - D_fake|^2 = sigma^4 |K (score difference)|^2 vanishes where the
distributions agree, its gradient is SiD's with ``alpha`` 1/2 as for white noise, and the reverse
KL's direction D_fake - D_teacher is K times its gradient, a preconditioned descent with the same
zero. Whitening would divide by the spectrum, and so weigh frequencies with next to no noise by
numbers without bound.

Reference:
    "Whitened score diffusion" (arXiv:2505.10311), for K times the score as what is learned.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias, final

import torch
from jaxtyping import Float, Float64
from pydantic import JsonValue, TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from dsd.utils.shapes import State

__all__ = ["WHITE", "GaussianNoise", "Kernel", "noise_under"]

Kernel: TypeAlias = Float[Tensor, " c kh kw"]
"""For each channel, odd numbers of rows and columns."""

_SAME = 1e-3
"""Largest difference between covariances of what counts as the same noise."""


@final
class GaussianNoise(nn.Module):
    """Gaussian noise of variance 1, drawn with the covariance that the data's noise has.

    Args:
        kernel: What white noise is convolved with, channel by channel; scaled to unit energy. None
            for white noise.

    Raises:
        ValueError: It is no kernel: its sides are even, or its numbers all 0 or not finite.
    """

    kernel: Kernel | None

    def __init__(self, kernel: Kernel | None = None) -> None:
        super().__init__()
        if kernel is not None:
            energy = kernel.double().square().sum((1, 2), keepdim=True)
            odd = all(side % 2 for side in kernel.shape[1:])
            if not (odd and bool(((energy > 0) & energy.isfinite()).all())):
                msg = (
                    f"a kernel of shape {[*kernel.shape]} needs odd numbers of rows and columns, "
                    "and finite numbers that are not all 0 in each channel"
                )
                raise ValueError(msg)
            kernel = (kernel.double() / energy.sqrt()).float()
        self.register_buffer("kernel", kernel)

    @classmethod
    def of_store(cls, info: Mapping[str, JsonValue]) -> "GaussianNoise":
        """The noise of the images of a store of ``corrupt``.

        Args:
            info: What the store's ``meta.json`` remembers.
        """
        stored = info.get("kernel")
        if stored is None:
            return cls()
        return cls(torch.tensor(TypeAdapter(list[list[list[float]]]).validate_python(stored)))

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw noise [*batch, c, h, w], on the device of ``generator``.

        White noise has any shape. Correlated noise is cut from a larger field, so that opposite
        borders are independent.
        """
        white = torch.randn(self.field(shape), generator=generator, device=generator.device)
        return self.convolved(white)

    def field(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the white noise from which noise of ``shape`` is cut."""
        if self.kernel is None:
            return tuple(shape)
        *others, height, width = shape
        rows, columns = self._reach
        return (*others, height + 2 * rows, width + 2 * columns)

    def convolved(self, white: Tensor) -> Tensor:
        """Noise of variance 1 from white noise of the shape of :meth:`field`."""
        if self.kernel is None:
            return white
        kernel = self.kernel.to(white)[:, None]
        # Noise is as exact as white noise is, whatever a network computes with.
        with torch.autocast(white.device.type, enabled=False):
            images = white.reshape(-1, *white.shape[-3:])
            noise = functional.conv2d(images, kernel, groups=len(kernel))
        return noise.reshape(*white.shape[:-2], *noise.shape[-2:])

    def colour(self, white: State) -> State:
        """Give standard normal noise, such as latents, the noise's spectrum, keeping its shape.

        Each pixel depends on those around it as in :meth:`draw`; at a border, on those at the
        opposite one.
        """
        if self.kernel is None:
            return white
        for dim, reach in zip((-2, -1), self._reach, strict=True):
            around = torch.arange(-reach, white.shape[dim] + reach, device=white.device)
            white = white.index_select(dim, around % white.shape[dim])
        return self.convolved(white)

    def same_as(self, other: "GaussianNoise") -> bool:
        """Whether the other one has the same covariance."""
        if self.kernel is None or other.kernel is None:
            return self.kernel is other.kernel
        one, two = _covariance(self.kernel), _covariance(other.kernel)
        if len(one) != len(two):
            return False
        sides = [max(pair) for pair in zip(one.shape[1:], two.shape[1:], strict=True)]
        difference = _padded(one, sides) - _padded(two, sides)
        return float(difference.abs().max()) < _SAME

    @property
    def _reach(self) -> tuple[int, int]:
        """Rows and columns that a kernel covers on each side of its middle."""
        if self.kernel is None:
            return 0, 0
        return self.kernel.shape[1] // 2, self.kernel.shape[2] // 2


WHITE = GaussianNoise()
"""White noise."""


def noise_under(denoiser: object) -> GaussianNoise:
    """The noise that a denoiser removes: white unless it says otherwise."""
    noise = getattr(denoiser, "noise", WHITE)
    assert isinstance(noise, GaussianNoise)
    return noise


def _covariance(kernel: Kernel) -> Float64[Tensor, " c h w"]:
    """Covariance of pixels at each distance: the kernel's correlation with itself."""
    _, rows, columns = kernel.shape
    sides = [2 * rows - 1, 2 * columns - 1]
    spectrum = torch.fft.rfft2(kernel.double(), s=sides).abs().square()
    covariance: Tensor = torch.fft.fftshift(torch.fft.irfft2(spectrum, s=sides), dim=(1, 2))
    return covariance


def _padded(covariance: Float64[Tensor, " c h w"], sides: Sequence[int]) -> Tensor:
    rows, columns = (
        (side - had) // 2 for side, had in zip(sides, covariance.shape[1:], strict=True)
    )
    return functional.pad(covariance, (columns, columns, rows, rows))
