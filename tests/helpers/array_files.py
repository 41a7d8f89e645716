"""Files of every format of arrays, written from one array."""

import json
from pathlib import Path

import h5py
import mrcfile
import nibabel
import numpy as np
import pydicom
import tifffile
import zarr
from astropy.io import fits
from pydicom.uid import ExplicitVRLittleEndian

__all__ = ["FILES", "write_dicom"]


def write_dicom(path: Path, frames: np.ndarray, **tags: object) -> None:
    """Frames [n, h, w] of unsigned numbers of 16 bits."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = frames.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def _hdf5(path, frames):
    with h5py.File(path, "w") as file:
        file.create_dataset("a/b", data=frames, chunks=(2, 8, 8), compression="gzip")
        file["table"] = np.arange(3)


def _zarr(path, frames, version):
    path.mkdir()
    array = zarr.create_array(
        str(path), shape=frames.shape, chunks=(2, 8, 8), dtype=frames.dtype, zarr_format=version
    )
    array[:] = frames


def _ome_zarr(path, frames):
    for level, step in enumerate((1, 2)):
        _zarr_level = frames[:, ::step, ::step]
        path.mkdir(exist_ok=True)
        _zarr(path / str(level), _zarr_level, 2)
    axes = [{"name": name} for name in "zyx"]
    scales = [{"axes": axes, "datasets": [{"path": "0"}, {"path": "1"}]}]
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps({"multiscales": scales}))


def _mrc(path, frames):
    with mrcfile.new(path) as file:
        file.set_data(frames)


def _pages(path, frames):
    with tifffile.TiffWriter(path) as file:
        for frame in frames:
            file.write(frame, metadata=None, contiguous=False)


def _pyramid(path, frames):
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(frames, subifds=1, metadata={"axes": "ZYX"})
        file.write(frames[:, ::2, ::2], subfiletype=1)


def _nifti(path, frames):
    nibabel.save(nibabel.Nifti1Image(frames.transpose(2, 1, 0), np.eye(4)), path)


def _fits_extension(path, frames):
    packed = fits.CompImageHDU(frames, name="SCI", compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), packed]).writeto(path)


FILES = {
    "tif pages": ("file", "a.tif", _pages),
    "tif, one directory": ("file", "a.tif", lambda path, x: tifffile.imwrite(
        path, x, imagej=True, metadata={"axes": "ZYX"})),
    "tif, lzw, big-endian": ("file", "a.tif", lambda path, x: tifffile.imwrite(
        path, x, compression="lzw", predictor=True, byteorder=">")),
    "tif, OME, tiles": ("file", "a.ome.tif", lambda path, x: tifffile.imwrite(
        path, x, ome=True, tile=(16, 16), metadata={"axes": "ZYX"}, bigtiff=True)),
    "tif, OME, pyramid": ("file", "a.ome.tif", _pyramid),
    "npy": ("array", "a.npy", np.save),
    "npy, Fortran": ("array", "a.npy", lambda path, x: np.save(path, np.asfortranarray(x))),
    "npz": ("array", "a.npz", lambda path, x: np.savez_compressed(path, x)),
    "hdf5": ("hdf5", "a.h5", _hdf5),
    "zarr 2": ("zarr", "a.zarr", lambda path, x: _zarr(path, x, 2)),
    "zarr 3": ("zarr", "a.zarr", lambda path, x: _zarr(path, x, 3)),
    "OME-Zarr": ("zarr", "a.zarr", _ome_zarr),
    "fits": ("fits", "a.fits", lambda path, x: fits.PrimaryHDU(x).writeto(path)),
    "fits, extension, rice": ("fits", "a.fits", _fits_extension),
    "mrc": ("mrc", "a.mrc", _mrc),
    "nifti": ("nifti", "a.nii", _nifti),
    "nifti, gz": ("nifti", "a.nii.gz", _nifti),
    "dicom": ("dicom", "a.dcm", write_dicom),
}  # fmt: skip
"""Kind of source, name of the file, and what writes frames [n, h, w] of uint16 into it."""
