"""Writing images in the formats that are read: one function and one entry of ``WRITERS`` for each.

A file gets its name when it is complete. What a file like it says besides its numbers (the size of
a voxel, a header with coordinates) is taken over from that file.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from dsd.sources.finders.folders import suffix_of
from dsd.utils.errors import DataError, one_line
from dsd.utils.files import replaced

__all__ = ["SUFFIXES", "fits_into", "require_writable", "write_images"]

Numbers: TypeAlias = Shaped[np.ndarray, "..."]

Writer: TypeAlias = Callable[[Path, Numbers, str, Path | None, str | None], None]
"""Writes numbers with named axes to a path; may look at a file like it, and its key."""

_COLOURS = (3,)
_IMAGEJ = "TZCYXS"
_IMAGEJ_TYPES = ("uint8", "uint16", "float32")
_DERIVED_IMAGE = ["DERIVED", "SECONDARY"]


def _write_picture(
    path: Path, numbers: Numbers, axes: str, like: Path | None, key: str | None
) -> None:
    picture = numbers[0] if axes[0] == "C" and len(numbers) == 1 else numbers
    if axes[0] == "C" and picture.ndim == 3:
        picture = picture.transpose(1, 2, 0)
    if picture.dtype == np.uint16 and picture.ndim == 3:
        from imagecodecs import png_encode

        path.write_bytes(png_encode(np.ascontiguousarray(picture)))
        return
    known: dict[str, dict[str, Any]] = {".webp": {"lossless": True}, ".jpg": {"quality": 95}}
    options = known.get(path.suffix.lower(), {})
    Image.fromarray(np.ascontiguousarray(picture)).save(path, **options)


def _write_tiff(
    path: Path, numbers: Numbers, axes: str, like: Path | None, key: str | None
) -> None:
    import tifffile

    imagej = (
        str(numbers.dtype) in _IMAGEJ_TYPES and "".join(sorted(axes, key=_IMAGEJ.find)) == axes
    )
    imagej = imagej and {*axes} <= {*_IMAGEJ}
    options: dict[str, Any] = {"photometric": "rgb" if axes[-1] == "S" else "minisblack"}
    metadata: dict[str, Any] = {"axes": axes}
    if like is not None:
        with suppress(Exception), tifffile.TiffFile(like) as old:
            first: Any = old.pages[0]
            options |= {"resolution": first.resolution, "resolutionunit": first.resolutionunit}
            kept = ("spacing", "unit", "finterval")
            metadata |= {name: (old.imagej_metadata or {})[name] for name in kept
                         if name in (old.imagej_metadata or {})}  # fmt: skip
    tifffile.imwrite(path, numbers, imagej=imagej, metadata=metadata, **options)


def _write_numpy(
    path: Path, numbers: Numbers, axes: str, like: Path | None, key: str | None
) -> None:
    if path.suffix.lower() == ".npz":
        np.savez_compressed(path, **{key or "images": numbers})  # type: ignore[arg-type]
    else:
        np.save(path, numbers)


def _write_hdf5(
    path: Path, numbers: Numbers, axes: str, like: Path | None, key: str | None
) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(key or "images", data=numbers, compression="gzip")
        dataset.attrs["axes"] = axes


def _write_zarr(
    path: Path, numbers: Numbers, axes: str, like: Path | None, key: str | None
) -> None:
    import zarr

    chunks = (1,) * (numbers.ndim - 2) + tuple(min(512, length) for length in numbers.shape[-2:])
    described = like is not None and any(
        "multiscales" in (like / name).read_text()
        for name in (".zattrs", "zarr.json")
        if (like / name).is_file()
    )
    if described:  # OME-Zarr: a group that says its axes, of one resolution
        group: Any = zarr.create_group(path, overwrite=True)
        names = [{"name": letter.lower()} for letter in axes]
        scale = [{"type": "scale", "scale": [1.0] * numbers.ndim}]
        levels = [{"path": "0", "coordinateTransformations": scale}]
        group.attrs["ome"] = {
            "version": "0.5", "multiscales": [{"axes": names, "datasets": levels}]
        }  # fmt: skip
    array: Any = zarr.create_array(
        str(path / "0" if described else path),
        shape=numbers.shape,
        chunks=chunks,
        dtype=numbers.dtype,
    )
    array[:] = numbers


def _write_fits(
    path: Path, numbers: Numbers, axes: str, like: Path | None, key: str | None
) -> None:
    from astropy.io import fits

    header = None
    if like is not None:
        with suppress(Exception), fits.open(like) as units:
            found: Any = next(unit for unit in units if unit.is_image and len(unit.shape) >= 2)
            header = found.header.copy(strip=True)
            for name in ("BSCALE", "BZERO", "BLANK", "CHECKSUM", "DATASUM"):
                header.remove(name, ignore_missing=True)
    fits.PrimaryHDU(numbers, header).writeto(path, output_verify="silentfix")


def _write_mrc(
    path: Path, numbers: Numbers, axes: str, like: Path | None, key: str | None
) -> None:
    import mrcfile

    size: Any = None
    if like is not None:
        with suppress(Exception), mrcfile.open(like, header_only=True, permissive=True) as old:
            size = old.voxel_size.copy()
    with mrcfile.new(path) as file:
        file.set_data(np.ascontiguousarray(numbers))
        if size is not None:
            file.voxel_size = size


def _write_nifti(
    path: Path, numbers: Numbers, axes: str, like: Path | None, key: str | None
) -> None:
    import nibabel

    affine, header = np.eye(4), None
    if like is not None:
        with suppress(Exception):
            old: Any = nibabel.load(like)
            affine, header = old.affine, old.header.copy()
            header.set_data_dtype(numbers.dtype)
            header.set_slope_inter(1, 0)
    image: Any = nibabel.Nifti1Image
    nibabel.save(image(np.asarray(numbers), affine, header), path)


def _write_dicom(
    path: Path, numbers: Numbers, axes: str, like: Path | None, key: str | None
) -> None:
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    if like is None:
        msg = f"{path.name}: a DICOM file needs the patient's and the scan's data. Write TIFF"
        raise DataError(msg)
    dataset = pydicom.dcmread(like)
    grey = numbers[..., 0]
    low, high = float(grey.min()), float(grey.max())
    if grey.dtype.kind in "ui":
        slope, intercept = 1.0, min(low, float(dataset.get("RescaleIntercept", 0.0)))
    else:
        slope, intercept = (high - low) / (2**16 - 1) or 1.0, low
    stored = np.rint((grey - intercept) / slope).clip(0, 2**16 - 1).astype("<u2")
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.ImageType = _DERIVED_IMAGE
    gone = ["FloatPixelData", "SmallestImagePixelValue", "LargestImagePixelValue"]
    if (slope, intercept) == (1.0, 0.0):
        gone += ["RescaleSlope", "RescaleIntercept", "RescaleType"]
    else:
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.10g}", f"{intercept:.10g}"
    for tag in gone:
        if tag in dataset:
            del dataset[tag]
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)


_PICTURES = (".png", ".bmp", ".webp", ".jpg", ".jpeg")

WRITERS: dict[str, Writer] = {
    **dict.fromkeys(_PICTURES, _write_picture),
    **dict.fromkeys((".tif", ".tiff"), _write_tiff),
    **dict.fromkeys((".npy", ".npz"), _write_numpy),
    **dict.fromkeys((".h5", ".hdf5", ".he5", ".hdf", ".nxs"), _write_hdf5),
    ".zarr": _write_zarr,
    **dict.fromkeys((".fits", ".fit", ".fts"), _write_fits),
    **dict.fromkeys((".mrc", ".mrcs", ".map", ".st", ".rec"), _write_mrc),
    **dict.fromkeys((".nii", ".nii.gz"), _write_nifti),
    **dict.fromkeys((".dcm", ".dicom", ".ima"), _write_dicom),
}

SUFFIXES = tuple(WRITERS)
"""Of the files that can be written."""

_TYPES: dict[Writer, tuple[str, ...]] = {
    _write_mrc: ("int8", "int16", "uint16", "float32", "complex64"),
    _write_tiff: ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
                  "float32", "float64", "complex64", "complex128"),
}  # fmt: skip


def fits_into(suffix: str, dtype: str, axes: str, channels: int) -> bool:
    """Whether a file of a suffix can hold one picture, or a stack, of such numbers.

    Args:
        suffix: A key of ``WRITERS``.
        dtype: Type of the numbers.
        axes: Their axes.
        channels: Length of the axis C; 1 where there is none.
    """
    if suffix in _PICTURES:
        depths = ("uint8", "uint16") if suffix == ".png" else ("uint8",)
        return dtype in depths and channels in {1, *_COLOURS} and {*axes} <= {*"CYXS"}
    return dtype in _TYPES.get(WRITERS[suffix], (dtype,))


def require_writable(path: Path) -> str:
    """Return the suffix of a file that is to be written.

    Raises:
        DataError: Nothing of that suffix can be written.
    """
    suffix = suffix_of(path.name)
    if suffix not in WRITERS:
        known = " ".join(SUFFIXES)
        msg = f"{one_line(path)}: no files {suffix} can be written. Choose one of {known}"
        raise DataError(msg)
    return suffix


def write_images(
    path: Path, numbers: Numbers, axes: str, *, like: Path | None = None, key: str | None = None
) -> None:
    """Write images as one file, which gets its name when it is complete.

    Args:
        path: Its suffix says the format.
        numbers: The images.
        axes: A letter for each axis: Y, X, C (channels), S (red, green, blue), others.
        like: A file of the same format, whose description is taken over.
        key: Name of the array in formats that hold several.

    Raises:
        DataError: The format cannot hold them, or its package is missing.
        OSError: The disk refuses.
    """
    suffix = require_writable(path)
    channels = 1
    for letter, length in zip(axes, numbers.shape, strict=True):
        channels *= length if letter in "CS" else 1
    if not fits_into(suffix, str(numbers.dtype), axes, channels):
        msg = (
            f"{one_line(path)}: files {suffix} do not hold {numbers.dtype} numbers of the axes "
            f"{axes}. Write .tif or .npy"
        )
        raise DataError(msg)
    if like is not None and WRITERS.get(suffix_of(like.name)) is not WRITERS[suffix]:
        like = None
    with _place(path, suffix) as place:
        try:
            WRITERS[suffix](place, numbers, axes, like, key)
        except ModuleNotFoundError as error:
            msg = (
                f"{one_line(path)}: the package {error.name} is missing. "
                "Install it: pip install 'dsd[formats]'"
            )
            raise DataError(msg) from error


@contextmanager
def _place(path: Path, suffix: str) -> Iterator[Path]:
    """Where to write; libraries look at the suffix, so that it stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".zarr":
        with replaced(path) as folder:
            yield folder
        return
    part = path.with_name(f".{path.name[: -len(suffix)]}.part{path.name[-len(suffix) :]}")
    try:
        part.unlink(missing_ok=True)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        raise
