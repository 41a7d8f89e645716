"""Files of arrays by kind of source: which files, and what opens them.

A kind is one module and one entry of ``ARRAYS``. Its library is imported when it is asked for.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import final

from dsd.sources.formats.stack import OpenStack, Stack, UnusableError, axes_of, count_pages
from dsd.utils.errors import DataError, DsdError, one_line

__all__ = ["ARRAYS", "ARRAY_SUFFIXES", "ArrayFormat", "count_images", "readable"]


@final
@dataclass(frozen=True)
class ArrayFormat:
    """How files of one kind are found and opened."""

    name: str
    suffixes: frozenset[str]
    """In small letters, with the dot."""

    module: str
    """Module of this folder and its function that opens a file."""

    package: str = ""
    """What has to be installed; empty if it always is."""

    def open(self, path: Path, key: str | None) -> AbstractContextManager[Stack]:
        """Open the array of a file.

        Raises:
            DataError: The package is missing.
        """
        module, _, function = self.module.partition(":")
        try:
            found = getattr(import_module(f"dsd.sources.formats.{module}"), function)
        except ModuleNotFoundError as error:
            msg = (
                f"{self.name} files: the package {self.package} is missing. "
                "Install it: pip install 'dsd[formats]'"
            )
            raise DataError(msg) from error
        opened: AbstractContextManager[Stack] = found(path, key)
        return opened


ARRAYS = {
    "array": ArrayFormat("NumPy", frozenset({".npy", ".npz"}), "numpy_files:open_numpy"),
    "hdf5": ArrayFormat(
        "HDF5", frozenset({".h5", ".hdf5", ".he5", ".hdf", ".nxs"}), "hdf5:open_hdf5", "h5py"
    ),
    "zarr": ArrayFormat("Zarr", frozenset({".zarr"}), "zarr_arrays:open_zarr", "zarr"),
    "fits": ArrayFormat("FITS", frozenset({".fits", ".fit", ".fts"}), "fits:open_fits", "astropy"),
    "mrc": ArrayFormat(
        "MRC", frozenset({".mrc", ".mrcs", ".map", ".st", ".rec"}), "mrc:open_mrc", "mrcfile"
    ),
    "nifti": ArrayFormat("NIfTI", frozenset({".nii", ".nii.gz"}), "nifti:open_nifti", "nibabel"),
    "dicom": ArrayFormat(
        "DICOM",
        frozenset({".dcm", ".dicom", ".ima", "without suffix"}),
        "dicom:open_dicom",
        "pydicom",
    ),
}
"""By the value of ``data.source``."""

ARRAY_SUFFIXES = {
    suffix: kind for kind, form in ARRAYS.items() for suffix in form.suffixes if suffix[0] == "."
}
"""The kind that reads files of a suffix."""


@contextmanager
def readable(name: str, opened: AbstractContextManager[Stack]) -> Iterator[Stack]:
    """An open array whose library may raise anything on damaged bytes; it becomes a ValueError."""
    try:
        with opened as stack:
            yield stack
    except (DsdError, UnusableError):
        raise
    except Exception as error:
        reason = one_line(" ".join(str(error).split()))[:200] or type(error).__name__
        msg = f"cannot be read as {name} ({reason})"
        raise ValueError(msg) from error


def count_images(opener: OpenStack, axes: str | None) -> tuple[int, str]:
    """Count the images of an array.

    Returns:
        Their number; 1 where that is unknown, and reading will say why. And a note on its axes.
    """
    try:
        with opener() as stack:
            found, guessed = axes_of(stack.data.shape, axes, stack.axes)
            lengths = " x ".join(map(str, stack.data.shape))
            how = "guessed from its shape (data.axes names others)" if guessed else "as named"
            return count_pages(stack.data.shape, found), f"axes {found} ({lengths}), {how}"
    except ValueError:
        return 1, ""
