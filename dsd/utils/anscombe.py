r"""The noise of a camera made white and Gaussian: the generalised Anscombe transform.

    y = gain * Poisson(photons) + offset + read_noise * eps,      f(y) = 2 sqrt(max(u, 0)),
    u = (y - offset) / gain + 3 / 8 + (read_noise / gain)^2

f(y) has nearly unit variance from a few photons on. The mean of f(y) is not f of the mean of y.
What is learned from f(y) therefore goes back by the *exact unbiased inverse*, which maps the mean
of f(y) to that of y. Noisy numbers go back by the algebraic one.

Reference:
    Makitalo and Foi 2011 (IEEE Trans. Image Processing 20(1)) and 2013 (22(1)). **Deviates**:
    below the mean of f(y) without light the inverse goes on, instead of staying at the offset, so
    that an offset slightly too high cuts nothing off.
"""

from functools import cached_property
from typing import Annotated, final

import numpy as np
from jaxtyping import Float64, Shaped
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Camera"]

_MOST_PHOTONS = 400.0
"""Of the table of the inverse; beyond, its asymptote is exact to 1e-5 photons."""

_STEPS = 600
_DEVIATIONS = 8.0
_NODES = 401


@final
class Camera(BaseModel):
    """Gain, offset and read noise of a camera, in raw units."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    gain: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Raw units for each photon (electron) that was counted."""

    offset: Annotated[float, Field(allow_inf_nan=False)]
    """Mean raw value without light."""

    read_noise: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Standard deviation without light."""

    def stabilised(self, raw: Shaped[np.ndarray, "*d"]) -> Float64[np.ndarray, "*d"]:
        """f(y): noise of about unit standard deviation."""
        photons = (np.asarray(raw, np.float64) - self.offset) / self.gain
        return np.asarray(2 * np.sqrt(np.maximum(photons + 0.375 + self._spread**2, 0)))

    def algebraic_inverse(self, z: Shaped[np.ndarray, "*d"]) -> Float64[np.ndarray, "*d"]:
        """The raw numbers behind f(y), noise and all."""
        photons = np.square(np.maximum(z, 0)) / 4 - 0.375 - self._spread**2
        return np.asarray(self.offset + self.gain * photons)

    def unbiased_inverse(self, z: Shaped[np.ndarray, "*d"]) -> Float64[np.ndarray, "*d"]:
        """The mean of y where f(y) has the mean ``z``."""
        photons, means = self._table
        z = np.maximum(z, 0)
        found = np.interp(z, means, photons)
        dark = (np.square(z) - means[0] ** 2) / 4
        asymptote = np.square(z) / 4 - 0.125 - self._spread**2
        last = photons[-1] - (means[-1] ** 2 / 4 - 0.125 - self._spread**2)
        bright = asymptote + last * np.square(means[-1] / np.maximum(z, means[-1]))
        found = np.where(z < means[0], dark, np.where(z > means[-1], bright, found))
        return np.asarray(self.offset + self.gain * found)

    def mean_stabilised(self, raw: Shaped[np.ndarray, "*d"]) -> Float64[np.ndarray, "*d"]:
        """The mean of f(y) for means of y from the offset on, which ``unbiased_inverse`` inverts.

        Beyond 400 photons by an expansion, exact to 1e-5 standard deviations.
        """
        photons, means = self._table
        given = (np.asarray(raw, np.float64) - self.offset) / self.gain
        bright = 2 * np.sqrt(np.maximum(given, photons[-1]) + 0.125 + self._spread**2)
        return np.asarray(np.where(given > photons[-1], bright, np.interp(given, photons, means)))

    @property
    def _spread(self) -> float:
        """Read noise in photons."""
        return self.read_noise / self.gain

    @cached_property
    def _table(self) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
        """Photons, and the mean of f(y) for each number of them."""
        # Here, because users of models of other images do without SciPy.
        from scipy.stats import norm, poisson

        # Even steps in the root, where the mean is nearly linear.
        photons = np.linspace(0, np.sqrt(_MOST_PHOTONS), _STEPS) ** 2
        counted = np.arange(int(_MOST_PHOTONS + _DEVIATIONS * np.sqrt(_MOST_PHOTONS)) + 1)
        eps = np.linspace(-_DEVIATIONS, _DEVIATIONS, _NODES)
        weights = norm.pdf(eps) / norm.pdf(eps).sum()
        u = counted[:, None] + 0.375 + self._spread**2 + self._spread * eps
        given_count = 2 * np.sqrt(np.maximum(u, 0)) @ weights
        return photons, poisson.pmf(counted, photons[:, None]) @ given_count
