"""Arrays of every format, by axes, read by pages; their real files where a package ships them."""

import sys
from pathlib import Path

import astropy
import h5py
import nibabel
import numpy as np
import pydicom
import pytest
import skimage
import tifffile
from array_files import FILES, write_dicom
from astropy.io import fits
from hostile import raw_png
from PIL import Image
from stage_helpers import png, random_images

from dsd.sources.finders.kinds import find_images
from dsd.sources.formats.stack import Stack, axes_of, pages
from dsd.sources.reader import Reader
from dsd.sources.source import Reading
from dsd.utils.errors import DataError, ParamsError

FRAMES = np.random.default_rng(0).integers(0, 2**14, (5, 24, 18), dtype=np.uint16)


def open_source(kind, path, name=None, measured=True, **options):
    reading = Reading(measured, **options)
    source = find_images(kind, Path(path), name, reading=reading)
    options = {"pad": 0, "resolution": None, "on_error": "raise", "max_images": None}
    return source, Reader(source, reading=reading, **options)


def read(kind, path, name=None, **options):
    source, reader = open_source(kind, path, name, **options)
    images = np.concatenate(list(reader.blocks()))
    assert source.count == len(images)
    return images


@pytest.mark.parametrize("form", FILES)
def test_every_format_gives_the_numbers_that_were_written(tmp_path, form):
    kind, name, write = FILES[form]
    write(tmp_path / name, FRAMES)
    found = read(kind, tmp_path / name)
    np.testing.assert_array_equal(found[:, 0], FRAMES)
    # A folder of such files, by their names; OME-Zarr is a folder itself.
    write(tmp_path / f"b{name}", FRAMES[::-1])
    found = read("folder" if kind == "file" else kind, tmp_path)
    np.testing.assert_array_equal(found[:, 0], np.concatenate([FRAMES, FRAMES[::-1]]))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "f4", "f8", ">f4"])
@pytest.mark.parametrize("kind", ["file", "array"])
def test_every_type_of_numbers_is_kept(tmp_path, kind, dtype):
    numbers = (FRAMES % 100).astype(dtype)
    if kind == "file":
        tifffile.imwrite(tmp_path / "a", numbers, photometric="minisblack")
        (tmp_path / "a").rename(tmp_path / "a.tif")
    else:
        np.save(tmp_path / "a.npy", numbers)
    found = read(kind, tmp_path / ("a.tif" if kind == "file" else "a.npy"))
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(found[:, 0], numbers)


def test_pictures_of_16_bits_are_read(tmp_path):
    Image.fromarray(FRAMES[0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read("file", tmp_path / "grey.png")[0, 0], FRAMES[0])
    import zlib

    colours = np.stack([FRAMES[:3, 0, 0], FRAMES[:3, 0, 1], FRAMES[:3, 0, 2]], -1).astype(">u2")
    rows = zlib.compress(b"\0" + colours.tobytes())
    (tmp_path / "rgb.png").write_bytes(raw_png(3, 1, rows, depth=16, colour=2))
    np.testing.assert_array_equal(read("file", tmp_path / "rgb.png")[0, :, 0].T, colours)


@pytest.mark.parametrize(
    ("axes", "order"),
    [
        ("TYXC", (0, 3, 1, 2)),
        ("CTYX", (1, 0, 2, 3)),
        ("XYCT", (3, 2, 1, 0)),
        ("YTXS", (1, 3, 0, 2)),
    ],
)
@pytest.mark.parametrize("chunk", [1, 3])
def test_axes_say_what_is_a_channel_and_what_an_image(axes, order, chunk):
    numbers = np.arange(4 * 5 * 6 * 7).reshape(4, 5, 6, 7)
    found = np.stack([*pages(Stack(numbers, "array", chunk=chunk), axes)])
    np.testing.assert_array_equal(found, numbers.transpose(order))


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((9, 8), "YX"), ((3, 9, 8), "CYX"), ((9, 8, 3), "YXC"), ((5, 9, 8), "TYX"),
        ((2, 5, 9, 8), "TZYX"), ((5, 2, 9, 8), "TCYX"), ((5, 9, 8, 2), "TYXC"),
    ],
)  # fmt: skip
def test_axes_are_guessed_from_the_shape_and_told(tmp_path, shape, axes):
    assert axes_of(shape, None, None) == (axes, True)
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    source, _ = open_source("array", tmp_path / "a.npy")
    assert f"a.npy: axes {axes} " in source.notes[-1]
    assert "guessed from its shape" in source.notes[-1]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [("YX", "3 axes .* names YX"), ("TYY", "different"), ("TZC", "Y and X")],
)
def test_axes_that_do_not_fit_are_refused(tmp_path, given, complaint):
    np.save(tmp_path / "a.npy", FRAMES)
    with pytest.raises(DataError, match=rf"a\.npy has .*{complaint}"):
        read("array", tmp_path / "a.npy", axes=given)


def test_complex_numbers_become_two_channels(tmp_path):
    numbers = FRAMES + 1j * FRAMES[::-1]
    np.save(tmp_path / "a.npy", numbers)
    found = read("array", tmp_path / "a.npy")
    np.testing.assert_array_equal(found[:, 0] + 1j * found[:, 1], numbers)


def test_a_key_chooses_an_array(tmp_path):
    np.savez(tmp_path / "a.npz", one=FRAMES, two=FRAMES[:1])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x/one"], file["x/two"] = FRAMES, FRAMES[:1]
    units = [fits.PrimaryHDU(FRAMES), fits.ImageHDU(FRAMES[:1], name="TWO")]
    fits.HDUList(units).writeto(tmp_path / "a.fits")
    for kind, name, key in (
        ("array", "npz", "two"),
        ("hdf5", "h5", "x/two"),
        ("fits", "fits", "TWO"),
    ):
        path = tmp_path / f"a.{name}"
        np.testing.assert_array_equal(read(kind, path, key=key)[:, 0], FRAMES[:1])
        with pytest.raises(DataError, match=r"set data\.key|correct data\.key"):
            read(kind, path, key="three")
    for kind, name in (("array", "npz"), ("hdf5", "h5")):
        with pytest.raises(DataError, match=r"one, .*two.*set data\.key"):
            read(kind, tmp_path / f"a.{name}")


def test_scales_of_the_formats_are_applied(tmp_path):
    unit = fits.PrimaryHDU(FRAMES[0].astype(np.int16))
    unit.header["BSCALE"], unit.header["BZERO"] = 0.5, 10.0
    unit.writeto(tmp_path / "a.fits")
    np.testing.assert_allclose(read("fits", tmp_path / "a.fits")[0, 0], FRAMES[0] / 2 + 10)
    image = nibabel.Nifti1Image(FRAMES.T.astype(np.int16), np.eye(4))
    image.header.set_slope_inter(2.0, -3.0)
    nibabel.save(image, tmp_path / "a.nii")
    written = nibabel.load(tmp_path / "a.nii").get_fdata().T
    np.testing.assert_allclose(read("nifti", tmp_path / "a.nii")[:, 0], written)
    write_dicom(tmp_path / "a.dcm", FRAMES, RescaleSlope="2", RescaleIntercept="-1024")
    np.testing.assert_allclose(read("dicom", tmp_path / "a.dcm")[:, 0], 2.0 * FRAMES - 1024)
    write_dicom(tmp_path / "b.dcm", FRAMES, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read("dicom", tmp_path / "b.dcm")[:, 0], 65535 - FRAMES)


REAL = {
    "skimage multipage": ("file", skimage, "data/multipage.tif", (2, 1, 15, 10)),
    "skimage RGB pages": ("file", skimage, "data/multipage_rgb.tif", (2, 3, 10, 10)),
    "skimage faces": ("array", skimage, "data/lfw_subset.npy", (200, 1, 25, 25)),
    "4D magnetic resonance": ("nifti", nibabel, "tests/data/example4d.nii.gz", (48, 1, 96, 128)),
    "functional MRI": ("nifti", nibabel, "tests/data/functional.nii", (60, 1, 21, 17)),
    "NIfTI-2": ("nifti", nibabel, "tests/data/example_nifti2.nii.gz", (24, 1, 20, 32)),
    "CT": ("dicom", pydicom, "data/test_files/CT_small.dcm", (1, 1, 128, 128)),
    "MR": ("dicom", pydicom, "data/test_files/MR_small.dcm", (1, 1, 64, 64)),
    "colour frames": ("dicom", pydicom, "data/test_files/SC_rgb_rle_2frame.dcm", (2, 3, 100, 100)),
    "M13": ("fits", astropy, "io/fits/hdu/compressed/tests/data/m13_rice.fits", (1, 1, 300, 300)),
    "scaled": ("fits", astropy, "io/fits/tests/data/scale.fits", (1, 1, 21, 20)),
    "Hubble": ("fits", astropy, "io/fits/tests/data/o4sp040b0_raw.fits", (1, 1, 44, 62)),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read(name):
    kind, package, file, shape = REAL[name]
    found = read(kind, Path(package.__file__).parent / file)
    assert found.shape == shape
    assert found.std() > 0


def test_other_numbers_than_8_bits_need_an_intensity_map(tmp_path):
    np.save(tmp_path / "a.npy", FRAMES)
    tifffile.imwrite(tmp_path / "a.tif", FRAMES)
    for kind, name in (("array", "a.npy"), ("file", "a.tif")):
        with pytest.raises(DataError, match=r"16.* which need one linear map.*data\.intensity"):
            read(kind, tmp_path / name, measured=False)
    np.save(tmp_path / "b.npy", random_images(7, 8, 8))
    assert read("array", tmp_path / "b.npy", measured=False).shape == (7, 1, 8, 8)


def test_frames_that_hold_no_number_are_refused_by_their_place(tmp_path):
    numbers = FRAMES.astype(np.float32)
    numbers[3, 2, 1:3] = np.nan, np.inf
    np.save(tmp_path / "a.npy", numbers)
    with pytest.raises(
        DataError, match=r"a\.npy, frame 3 has 2 pixels of 432 that are NaN or inf"
    ):
        read("array", tmp_path / "a.npy")


def test_pictures_of_several_types_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", FRAMES)
    np.save(tmp_path / "b.npy", FRAMES.astype(np.float32))
    with pytest.raises(DataError, match="5 are 18 x 24 grey uint16, 5 are 18 x 24 grey float32"):
        read("array", tmp_path)


def test_an_archive_of_pictures_is_read_in_place(tmp_path):
    import zipfile

    images = random_images(3, 6, 6)
    with zipfile.ZipFile(tmp_path / "dataset.zip", "w") as archive:
        archive.writestr("dataset.json", '{"labels": null}')
        for number in (2, 0, 1):
            archive.writestr(f"00000/img{number:08}.png", png(images[number]))
    found = read("zip", tmp_path / "dataset.zip", measured=False)
    np.testing.assert_array_equal(found[:, 0], images)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.zip"]


def test_a_function_of_one_s_own_yields_arrays(tmp_path, monkeypatch):
    (tmp_path / "my_reader.py").write_text(
        "import numpy as np\n"
        "def frames(path):\n"
        "    for name in sorted(path.glob('*.raw')):\n"
        "        yield np.fromfile(name, np.uint16).reshape(24, 18)\n"
    )
    for number, frame in enumerate(FRAMES):
        frame.tofile(tmp_path / f"{number}.raw")
    monkeypatch.syspath_prepend(tmp_path)
    found = read("function", tmp_path, "my_reader:frames")
    np.testing.assert_array_equal(found[:, 0], FRAMES)
    with pytest.raises(ParamsError, match=r"my_reader:nothing cannot be imported"):
        read("function", tmp_path, "my_reader:nothing")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.delitem(sys.modules, "dsd.sources.formats.hdf5", raising=False)
    with pytest.raises(DataError, match=r"h5py is missing.*pip install 'dsd\[formats\]'"):
        read("hdf5", tmp_path / "a.h5")
