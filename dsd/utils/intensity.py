"""The linear map between the raw numbers of a source and data units, one for all images."""

from typing import Annotated, final

import numpy as np
from jaxtyping import Float32, Shaped
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["PIXELS", "Intensity"]

_Finite = Annotated[float, Field(allow_inf_nan=False)]


@final
class Intensity(BaseModel):
    """Raw value ``low`` is -1 in data units, ``high`` is +1; nothing is clipped."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    low: _Finite
    high: _Finite
    dtype: Annotated[str, Field(pattern=r"^(u?int(8|16|32|64)|float(32|64))$")]
    """Type of the source's numbers, to which :meth:`in_raw` returns."""

    @property
    def scale(self) -> float:
        """Data units in one raw unit."""
        return 2 / (self.high - self.low)

    @property
    def offset(self) -> float:
        """Data units of the raw value 0."""
        return -1 - self.low * self.scale

    def in_units(self, raw: Shaped[np.ndarray, "*d"]) -> Float32[np.ndarray, "*d"]:
        """Raw numbers in data units."""
        # Double precision: an offset may be large beside the range.
        values = raw.astype(np.float64)
        values -= self.low
        values *= self.scale
        values -= 1
        return values.astype(np.float32)

    def in_raw(self, x: Shaped[np.ndarray, "*d"]) -> Shaped[np.ndarray, "*d"]:
        """Return data units to raw numbers of the source's type, rounded and clipped to it."""
        values = (np.asarray(x, np.float64) + 1) / self.scale + self.low
        dtype = np.dtype(self.dtype)
        if dtype.kind == "f":
            return values.astype(dtype)
        limits = np.iinfo(dtype)
        # The largest number of 64 bits is no double; its type is that of whole numbers already.
        top = np.nextafter(float(limits.max), 0) if dtype.itemsize == 8 else limits.max
        return np.rint(values).clip(limits.min, top).astype(dtype)


PIXELS = Intensity(low=0.0, high=255.0, dtype="uint8")
"""The map of pictures of 8 bits."""
