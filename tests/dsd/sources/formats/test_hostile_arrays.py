"""Truncated and hostile arrays: one message, nothing executed, nothing absurd allocated."""

import io
import json
import pickle
import re
import resource
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from array_files import FILES
from astropy.io import fits
from numcodecs import Pickle

from dsd.sources.finders.kinds import find_images
from dsd.sources.reader import Reader
from dsd.sources.source import Reading
from dsd.utils.errors import DataError

FRAMES = np.random.default_rng(0).integers(0, 2**14, (5, 24, 18), dtype=np.uint16)


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def read(kind, path, **options):
    reading = Reading(measured=True, **options)
    source = find_images(kind, Path(path), None, reading=reading)
    settings = {"pad": 0, "resolution": None, "on_error": "raise", "max_images": None}
    return list(Reader(source, reading=reading, **settings).blocks())


def refused(kind, path, complaint, **options):
    with pytest.raises(DataError) as caught:
        read(kind, path, **options)
    message = str(caught.value)
    assert re.search(complaint, message), message
    assert Path(path).name in message
    assert len(message.splitlines()) == 1
    assert len(message) < 700


@pytest.mark.parametrize("form", [name for name in FILES if "arr" not in name.lower()])
def test_a_file_that_is_cut_off_is_refused_at_any_place(tmp_path, form):
    kind, name, write = FILES[form]
    write(tmp_path / name, FRAMES)
    content = (tmp_path / name).read_bytes()
    for length in (0, 3, 100, len(content) // 2):
        (tmp_path / name).write_bytes(content[:length])
        refused(kind, tmp_path / name, name)
    (tmp_path / name).write_bytes(content[:-40])
    # Only padding or an index may be lost there.
    with suppress(DataError):
        found = np.concatenate(read(kind, tmp_path / name))
        np.testing.assert_array_equal(found[:, 0], FRAMES)


@pytest.mark.parametrize("form", ["zarr 2", "zarr 3"])
def test_a_damaged_chunk_is_refused(tmp_path, form):
    kind, name, write = FILES[form]
    write(tmp_path / name, FRAMES)
    chunks = [file for file in (tmp_path / name).rglob("*") if file.name[0] in "0123456789c"]
    for file in chunks:
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])
    refused(kind, tmp_path / name, "cannot be read as Zarr")


def npy(descr, shape, tail=b""):
    target = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(target, header)
    return target.getvalue() + tail


def test_numpy_files_hold_no_objects_and_no_absurd_shapes(tmp_path):
    path, canary = tmp_path / "a.npy", tmp_path / "canary"
    objects = np.array([[Evil(canary)]], dtype=object)
    np.save(path, objects, allow_pickle=True)
    refused("array", path, "Python objects")
    np.savez(tmp_path / "a.npz", a=objects)
    refused("array", tmp_path / "a.npz", "Python objects")
    for shape, complaint in (((10**9, 10**9), "cut off"), ((-5, 8), "a.npy"), ((0, 8), "no numb"),
                             ((2**40, 2**40, 2**40), "a.npy")):  # fmt: skip
        path.write_bytes(npy("<u2", shape, bytes(64)))
        refused("array", path, complaint)
    path.write_bytes(npy([("a", "<u2"), ("b", "O")], (4, 4)))
    refused("array", path, "Python objects")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy("<f8", (2**20, 2**10)) + bytes(2**20))
    refused("array", tmp_path / "a.npz", "save it as .npy")
    assert not canary.exists()


def test_hdf5_files_lead_nowhere_else(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = FRAMES
    FRAMES.tofile(tmp_path / "raw.bin")
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["outside"] = h5py.ExternalLink("other.h5", "/x")
        file["soft"] = h5py.SoftLink("/outside")
        file["group/circle"] = file["/"]
        layout = h5py.VirtualLayout(FRAMES.shape, np.uint16)
        layout[:] = h5py.VirtualSource("other.h5", "x", FRAMES.shape)
        file.create_virtual_dataset("virtual", layout)
        external = [(str(tmp_path / "raw.bin"), 0, FRAMES.nbytes)]
        file.create_dataset("raw", FRAMES.shape, np.uint16, external=external)
        file.create_dataset("text", data=np.array([[b"a"]], dtype=h5py.string_dtype()))
        file.create_dataset("huge", (2**20, 2**20, 2**20), np.uint8, chunks=(1, 8, 8))
        file.create_dataset("chunk", (2**11, 2**10, 2**10), "f4", chunks=(2**11, 2**10, 2**9))
    for key, complaint in (
        ("outside", "link at outside"), ("soft", "link at soft"), ("virtual", "in other files"),
        ("raw", "in other files"), ("text", "not numbers"), ("huge", "more than"),
        ("chunk", "smaller ones"), ("group", "a group"), ("nothing", "no dataset"),
        ("group/circle/outside", "link at outside"),
    ):  # fmt: skip
        refused("hdf5", path, complaint, key=key)
    refused("hdf5", path, "set data.key")


def test_zarr_arrays_run_no_codec_that_may_do_anything(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "a.zarr"
    array = zarr.create_array(
        str(path), shape=(8, 8), chunks=(8, 8), dtype="<u2", zarr_format=2, filters=None,
        compressors=None,
    )  # fmt: skip
    array[:] = 1
    meta = json.loads((path / ".zarray").read_text())
    (path / "0.0").write_bytes(pickle.dumps(Evil(canary)))
    for place in ("filters", "compressor"):
        codec = Pickle().get_config()
        changed = {**meta, place: [codec] if place == "filters" else codec}
        (path / ".zarray").write_text(json.dumps(changed))
        refused("zarr", path, "stored with the codec pickle")
    for change, complaint in (
        ({"shape": [2**40, 2**40]}, "more than"), ({"dtype": "|O"}, r"not numbers|cannot be read"),
        ({"chunks": [2**20, 2**20]}, "smaller ones"), ({"shape": "x"}, "cannot be read"),
    ):  # fmt: skip
        (path / ".zarray").write_text(json.dumps({**meta, **change}))
        refused("zarr", path, complaint)
    refused("zarr", path, "leads out of it", key="../a.zarr")
    assert not canary.exists()


def test_headers_that_promise_too_much_are_refused(tmp_path):
    fits.PrimaryHDU(FRAMES).writeto(tmp_path / "a.fits")
    content = (tmp_path / "a.fits").read_bytes()
    for sides in (b"99999999", b"      -4"):
        changed = content.replace(
            b"NAXIS1  =                   18", b"NAXIS1  =             " + sides
        )
        assert changed != content
        (tmp_path / "a.fits").write_bytes(changed)
        refused("fits", tmp_path / "a.fits", "a.fits")
    (tmp_path / "a.fits").write_bytes(content[:2880].replace(b"END ", b"EMD ") + b" " * 10**6)
    refused("fits", tmp_path / "a.fits", "a.fits")
    for name, place, form, value in (
        ("mrc", 0, "<3i", (2**20, 2**20, 2**20)), ("mrc", 92, "<i", (-2048,)),
        ("mrc", 12, "<i", (99,)), ("nifti", 42, "<3h", (32000, 32000, 32000)),
        ("nifti", 42, "<h", (-3,)), ("nifti", 70, "<h", (1,)),
    ):  # fmt: skip
        kind, file, write = FILES[name]
        (tmp_path / file).unlink(missing_ok=True)
        write(tmp_path / file, FRAMES)
        content = bytearray((tmp_path / file).read_bytes())
        struct.pack_into(form, content, place, *value)
        (tmp_path / file).write_bytes(content)
        refused(kind, tmp_path / file, file)


def test_an_archive_that_unpacks_to_too_much_is_read_to_a_limit(tmp_path, monkeypatch):
    import dsd.sources.finders.zip_pictures
    import dsd.sources.formats.pictures

    for module in (dsd.sources.formats.pictures, dsd.sources.finders.zip_pictures):
        monkeypatch.setattr(module, "MAX_BYTES", 2**16)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../out.png", bytes(2**24))
    refused("zip", tmp_path / "a.zip", "has 65537 bytes, more than")
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 and no more")
    refused("zip", tmp_path / "a.zip", "no readable ZIP archive")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_long_stack_is_read_page_by_page(tmp_path):
    """256 MB of frames take less than 80 MB more than 32 MB of them."""
    taken = []
    for count in (16, 128):
        path = tmp_path / f"{count}.npy"
        np.lib.format.open_memmap(path, "w+", np.uint16, (count, 1024, 1024)).flush()
        reading = Reading(measured=True)
        source = find_images("array", path, None, reading=reading)
        settings = {"pad": 0, "resolution": None, "on_error": "raise", "max_images": None}
        for _ in Reader(source, reading=reading, **settings).blocks():
            pass
        taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert taken[1] - taken[0] < 80
