"""Files of statistics as clean-fid and EDM publish them: an ``npz`` with ``mu`` and ``sigma``."""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from jaxtyping import Float64

from dsd.errors import DataError
from dsd.metrics.frechet import Moments

__all__ = ["load_statistics"]

_ASYMMETRY = 1e-6
"""Relative to the largest entry; files hold float64 or float32."""

_MAX_BYTES = 2**30
"""Of an array once unpacked: float64 moments of 11,000 features."""


def load_statistics(path: Path, *, protocol: str | None = None) -> Moments:
    """Moments of a reference that somebody else measured; nothing of the file is executed.

    Args:
        path: The file.
        protocol: How its features were made, if that is known: that of ``dsd.features.inception``
            for the files of clean-fid's mode ``clean``.

    Raises:
        DataError: The file is missing, truncated or holds something else.
    """
    try:
        with ZipFile(path) as archive:
            mean, cov = (_array(archive, f"{key}.npy") for key in ("mu", "sigma"))
    # On damaged bytes, the readers of zip and npy raise nearly anything.
    except Exception as error:
        raise DataError(_broken(path, f"cannot be read ({error})")) from error
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        what = f"has mu of shape {mean.shape} and sigma of shape {cov.shape}"
        raise DataError(_broken(path, what))
    if not _is_covariance(cov) or not np.isfinite(mean).all():
        raise DataError(_broken(path, "holds numbers that are no mean and covariance"))
    return Moments(torch.from_numpy(mean), torch.from_numpy((cov + cov.T) / 2), None, protocol)


def _array(archive: ZipFile, name: str) -> Float64[np.ndarray[Any, Any], " *shape"]:
    """One array of floating-point numbers; nothing larger than it may be is unpacked.

    Raises:
        ValueError: It is too large or holds something else.
    """
    size = archive.getinfo(name).file_size
    if size > _MAX_BYTES:
        msg = f"{name} has {size} bytes, more than {_MAX_BYTES}"
        raise ValueError(msg)
    with archive.open(name) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        # Reading on to the end compares the checksum.
        rest = file.read(1)
    if rest:
        msg = f"{name} is longer than it says"
        raise ValueError(msg)
    if array.dtype.kind != "f":
        msg = f"{name} holds {array.dtype}, not floating-point numbers"
        raise ValueError(msg)
    return array.astype(np.float64)


def _is_covariance(cov: Float64[np.ndarray[Any, Any], " d d"]) -> bool:
    if not np.isfinite(cov).all() or (cov.diagonal() < 0).any():
        return False
    return bool(abs(cov - cov.T).max() <= _ASYMMETRY * abs(cov).max())


def _broken(path: Path, what: str) -> str:
    return (
        f"{path}: statistics {what}; fetch the file again: it must be an npz with mu [d] and "
        "sigma [d, d], the mean and covariance of features"
    )
