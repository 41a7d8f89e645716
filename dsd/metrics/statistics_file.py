"""Files of statistics as clean-fid and EDM publish them: an ``npz`` with ``mu`` and ``sigma``."""

import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float64

from dsd.errors import DataError
from dsd.metrics.frechet import Moments

__all__ = ["load_statistics"]

_ASYMMETRY = 1e-6
"""Relative to the largest entry; files hold float64 or float32."""


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
        with np.load(path, allow_pickle=False) as arrays:
            mean, cov = (np.asarray(arrays[key], dtype=np.float64) for key in ("mu", "sigma"))
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error, TypeError) as error:
        raise DataError(_broken(path, f"cannot be read ({error})")) from error
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        what = f"has mu of shape {mean.shape} and sigma of shape {cov.shape}"
        raise DataError(_broken(path, what))
    if not _is_covariance(cov) or not np.isfinite(mean).all():
        raise DataError(_broken(path, "holds numbers that are no mean and covariance"))
    return Moments(torch.from_numpy(mean), torch.from_numpy((cov + cov.T) / 2), None, protocol)


def _is_covariance(cov: Float64[np.ndarray[Any, Any], " d d"]) -> bool:
    if not np.isfinite(cov).all() or (cov.diagonal() < 0).any():
        return False
    return bool(abs(cov - cov.T).max() <= _ASYMMETRY * abs(cov).max())


def _broken(path: Path, what: str) -> str:
    return (
        f"{path}: statistics {what}; fetch the file again: it must be an npz with mu [d] and "
        "sigma [d, d], the mean and covariance of features"
    )
