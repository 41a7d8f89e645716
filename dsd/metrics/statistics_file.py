"""Files of statistics: an ``npz`` with ``mu`` and ``sigma``, as clean-fid and EDM publish them.

Ours also say in ``protocol`` how the features were made; published ones do not.
"""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from jaxtyping import Float64, Shaped

from dsd.metrics.frechet import Moments
from dsd.utils.errors import DataError
from dsd.utils.files import published

__all__ = ["load_statistics", "save_statistics"]

_ASYMMETRY = 1e-6
"""Relative to the largest entry; files hold float64 or float32."""

_MAX_BYTES = 2**30
"""Of an array once unpacked: float64 moments of 11,000 features."""


def save_statistics(path: Path, measured: Moments) -> None:
    """Save moments with their protocol, for ``load_statistics`` and for clean-fid.

    Raises:
        DataError: The moments do not say their protocol.
        OSError: As :func:`dsd.utils.files.published`.
    """
    if measured.protocol is None:
        msg = f"{path}: moments without a protocol are not saved; give it to dsd.metrics.moments"
        raise DataError(msg)
    with published(path) as file:
        np.savez(
            file,
            mu=measured.mean.numpy(),
            sigma=measured.cov.numpy(),
            protocol=np.array(measured.protocol),
        )


def load_statistics(path: Path, *, unlabelled: str | None = None) -> Moments:
    """Moments of a reference that somebody else measured; nothing of the file is executed.

    Args:
        path: The file.
        unlabelled: Protocol of a file that does not say its own; None refuses such files.

    Raises:
        DataError: The file is missing, truncated or holds something else, or its protocol is
            unknown.
    """
    try:
        with ZipFile(path) as archive:
            mean, cov = (
                _array(archive, f"{key}.npy", "f").astype(np.float64) for key in ("mu", "sigma")
            )
            protocol = unlabelled
            if "protocol.npy" in archive.namelist():
                protocol = str(_array(archive, "protocol.npy", "U"))
    # On damaged bytes, the readers of zip and npy raise nearly anything.
    except Exception as error:
        raise _broken(path, f"cannot be read ({error})") from error
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise _broken(path, f"has mu of shape {mean.shape} and sigma of shape {cov.shape}")
    if not _is_covariance(cov) or not np.isfinite(mean).all():
        raise _broken(path, "holds numbers that are no mean and covariance")
    if protocol is None:
        msg = f"{path}: these statistics do not say by which protocol their features were made"
        raise DataError(msg)
    return Moments(torch.from_numpy(mean), torch.from_numpy((cov + cov.T) / 2), None, protocol)


def _array(archive: ZipFile, name: str, kind: str) -> Shaped[np.ndarray[Any, Any], " *shape"]:
    """One array of numbers, ``kind`` f, or one text, U; nothing too large is unpacked.

    Raises:
        ValueError: It is too large, damaged or something else.
    """
    size = archive.getinfo(name).file_size
    if size > _MAX_BYTES:
        msg = f"{name} has {size} bytes, more than {_MAX_BYTES}"
        raise ValueError(msg)
    with archive.open(name) as file:
        array: Shaped[np.ndarray[Any, Any], " *shape"] = np.lib.format.read_array(
            file, allow_pickle=False
        )
        rest = file.read(1)  # reading on to the end compares the checksum
    if rest or array.dtype.kind != kind or (kind == "U" and array.shape):
        msg = f"{name} is no {'text' if kind == 'U' else 'array of floating-point numbers'}"
        raise ValueError(msg)
    return array


def _is_covariance(cov: Float64[np.ndarray[Any, Any], " d d"]) -> bool:
    if not np.isfinite(cov).all() or (cov.diagonal() < 0).any():
        return False
    return bool(abs(cov - cov.T).max() <= _ASYMMETRY * abs(cov).max())


def _broken(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path}: statistics {problem}; fetch the file again: it must be an npz with mu [d] and "
        "sigma [d, d], the mean and covariance of features"
    )
