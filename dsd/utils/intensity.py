"""The map between the raw numbers of a source and data units, one for all images."""

from typing import Annotated, final

import numpy as np
from jaxtyping import Float32, Float64, Shaped
from pydantic import BaseModel, ConfigDict, Field

from dsd.utils.anscombe import Camera

__all__ = ["PIXELS", "Intensity", "in_type"]

_Finite = Annotated[float, Field(allow_inf_nan=False)]


@final
class Intensity(BaseModel):
    """Raw value ``low`` is -1 in data units, ``high`` is +1; nothing is clipped.

    Linear between them. With a camera it is its variance-stabilising transform that is linear in
    data units, in which its noise is then white, Gaussian and of the level ``scale``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    low: _Finite
    high: _Finite
    dtype: Annotated[str, Field(pattern=r"^(u?int(8|16|32|64)|float(32|64))$")]
    """Type of the source's numbers, to which :meth:`in_raw` returns."""

    camera: Camera | None = None
    """Whose noise is stabilised."""

    @property
    def scale(self) -> float:
        """Data units in one raw unit; with a camera, in one standard deviation of its noise."""
        return 2 / (self._linear(self.high) - self._linear(self.low))

    @property
    def offset(self) -> float:
        """Data units of the raw value 0, without a camera."""
        return -1 - self.low * self.scale

    def in_units(self, raw: Shaped[np.ndarray, "*d"]) -> Float32[np.ndarray, "*d"]:
        """Raw numbers in data units."""
        # Double precision: an offset may be large beside the range.
        values = raw.astype(np.float64) if self.camera is None else self.camera.stabilised(raw)
        values -= self._linear(self.low)
        values *= self.scale
        values -= 1
        return values.astype(np.float32)

    def raw_values(
        self, x: Shaped[np.ndarray, "*d"], *, noisy: bool = False
    ) -> Float64[np.ndarray, "*d"]:
        """Return data units to raw numbers, neither rounded nor clipped.

        Args:
            x: Images in data units.
            noisy: Whether they are noisy observations. Generated and denoised images, which are
                not, return to the mean of the observations that look like them.
        """
        values = (np.asarray(x, np.float64) + 1) / self.scale + self._linear(self.low)
        if self.camera is None:
            return values
        camera = self.camera
        return camera.algebraic_inverse(values) if noisy else camera.unbiased_inverse(values)

    def in_raw(
        self, x: Shaped[np.ndarray, "*d"], *, noisy: bool = False
    ) -> Shaped[np.ndarray, "*d"]:
        """Return data units to raw numbers of the source's type, rounded and clipped to it.

        The arguments are those of :meth:`raw_values`.
        """
        return in_type(self.raw_values(x, noisy=noisy), self.dtype)

    def _linear(self, raw: float) -> float:
        """What is linear in data units."""
        return raw if self.camera is None else float(self.camera.stabilised(np.array(raw)))


def in_type(values: Float64[np.ndarray, "*d"], dtype: str) -> Shaped[np.ndarray, "*d"]:
    """Raw numbers as a type of numbers: whole ones are rounded and clipped to its range."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return values.astype(kind)
    limits = np.iinfo(kind)
    # The largest number of 64 bits is no double; its type is that of whole numbers already.
    top = np.nextafter(float(limits.max), 0) if kind.itemsize == 8 else limits.max
    rounded: np.ndarray = np.rint(values).clip(limits.min, top).astype(kind)
    return rounded


PIXELS = Intensity(low=0.0, high=255.0, dtype="uint8")
"""The map of pictures of 8 bits."""
