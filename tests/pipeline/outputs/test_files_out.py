"""Files of every format go through ``denoise`` and ``sample``; wrong ones leave nothing."""

import numpy as np
import pytest
import tifffile
from array_files import FILES
from PIL import Image
from tiny_model import save_tiny_model

import dsd
from dsd.model.units import ImageUnits
from dsd.utils.intensity import Intensity, in_type
from pipeline.__main__ import main
from pipeline.outputs.opening import layout_of, pages_of

RAW = Intensity(low=100.0, high=900.0, dtype="uint16")
RNG = np.random.default_rng(0)


def units(**changes):
    known = {"intensity": RAW, "sigma": 0.3, "is_complex": False, "suffix": ".tif"}
    return ImageUnits(**(known | changes))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace with a teacher and a generator of uint16 images."""
    save_tiny_model(tmp_path / "data/pretrain", sigma_init=None, units=units())
    save_tiny_model(tmp_path / "data/distill/generator", units=units())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def denoised(workspace, frames):
    model = dsd.load_denoiser(workspace / "data/pretrain")
    return np.stack([model.denoise(frame) for frame in frames])


@pytest.mark.parametrize("name", FILES)
def test_a_file_comes_out_as_it_went_in_but_for_its_noise(workspace, name):
    _, file, write = FILES[name]
    frames = RNG.integers(100, 900, (5, 20, 17)).astype(np.uint16)
    write(workspace / file, frames)
    assert main(["denoise", file, "--out", f"out/{file}"]) == 0
    before, after = (layout_of(workspace / at, None, None) for at in (file, f"out/{file}"))
    assert (after.shape, after.dtype) == (before.shape, before.dtype)
    assert after.axes.replace("Q", "Z") == before.axes.replace("Q", "Z")
    pages = [*pages_of(workspace / "out" / file, None, None)]
    raw = [page[0] for page in pages_of(workspace / file, None, None)]
    expected = in_type(denoised(workspace, raw).astype(np.float64), before.dtype.name)
    off = np.abs(np.concatenate(pages).astype(float) - expected)
    assert off.max() <= 1
    assert [one.name for one in (workspace / "out").iterdir()] == [file]


@pytest.mark.parametrize(
    ("dtype", "file"), [("uint16", "a.png"), ("float32", "a.tif"), ("complex64", "a.npy")]
)
def test_types_and_complex_numbers_come_back(workspace, dtype, file):
    channels = 2 if dtype == "complex64" else 1
    save_tiny_model(
        workspace / "data/pretrain", shape=(channels, 8, 8), sigma_init=None, units=units()
    )
    picture = RNG.integers(100, 900, (20, 20)).astype(dtype)
    if file == "a.png":
        Image.fromarray(picture).save(file)
    elif file == "a.tif":
        tifffile.imwrite(file, picture)
    else:
        np.save(file, picture * (1 + 1j))
    assert main(["denoise", file, "--out", f"b{file}"]) == 0
    assert layout_of(workspace / f"b{file}", None, None).dtype == np.dtype(dtype)


def test_draws_give_their_mean_and_deviation_in_raw_units(workspace):
    np.save("a.npy", np.full((8, 8), 500, np.uint16))
    assert main(["denoise", "a.npy", "--out", "b.npy", "--samples", "3", "--seed", "4"]) == 0
    mean, std = np.load("b-mean.npy"), np.load("b-std.npy")
    assert mean.dtype == std.dtype == np.float32
    assert 100 < mean.mean() < 900
    # The tiny network is untrained: its posterior at 0.3 is about that wide, 400 raw units each.
    assert 10 < std.mean() < 200
    first = mean.tobytes()
    again = ["denoise", "a.npy", "--out", "b.npy", "--samples", "3", "--overwrite", "--seed"]
    assert main([*again, "4"]) == 0
    assert np.load("b-mean.npy").tobytes() == first
    assert main([*again, "5"]) == 0
    assert np.load("b-mean.npy").tobytes() != first


@pytest.mark.parametrize("out", ["images", "images.tif", "images.npy", "images.h5"])
def test_samples_are_those_of_the_library_in_the_type_of_the_source(workspace, out):
    assert main(["sample", "--count", "5", "--out", out, "--seed", "2"]) == 0
    expected = dsd.load_generator("data/distill/generator").sample(5, 2).numpy()[:, 0]
    place = workspace / out
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    assert all(file.suffix == (".tif" if out == "images" else place.suffix) for file in files)
    found = np.concatenate([page for file in files for page in pages_of(file, None, None)])
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)


def test_pictures_of_8_bits_are_the_default(workspace):
    save_tiny_model(workspace / "data/distill/generator", units=None)
    assert main(["sample", "--count", "2", "--out", "p"]) == 0
    assert [one.name for one in sorted((workspace / "p").iterdir())] == [
        "000000.png",
        "000001.png",
    ]
    assert np.asarray(Image.open("p/000000.png")).dtype == np.uint8


REFUSED = {
    "no file": (["denoise", "none.tif", "--out", "b.tif"], 3, "does not exist"),
    "no model": (["denoise", "a.npy", "--out", "b.npy", "--model", "x"], 3, "model.json"),
    "a generator's name": (["sample", "--count", "2", "--out", "b", "--model", "data/pretrain"],
                           3, "not a generator"),
    "its input": (["denoise", "a.npy", "--out", "a.npy", "--overwrite"], 3, "that is the input"),
    "something there": (["denoise", "a.npy", "--out", "there.npy"], 3, "--overwrite"),
    "a full folder": (["sample", "--count", "2", "--out", "full"], 3, "--overwrite"),
    "no such format": (["denoise", "a.npy", "--out", "b.gif"], 3, "can be written"),
    "no room for the type": (["denoise", "a.npy", "--out", "b.bmp"], 3, "do not hold"),
    "channels": (["denoise", "a.npy", "--out", "b.npy", "--axes", "CYX"], 3, "20 channels"),
    "axes": (["denoise", "a.npy", "--out", "b.npy", "--axes", "YX"], 3, "has 3 axes"),
    "units": (["denoise", "far.npy", "--out", "b.npy"], 3, "far from those of the model"),
    "NaN": (["denoise", "nan.npy", "--out", "b.npy"], 3, "NaN or infinite"),
    "objects": (["denoise", "objects.npy", "--out", "b.npy"], 3, "Python objects"),
    "cut off": (["denoise", "cut.npy", "--out", "b.npy"], 3, "cut off"),
    "the second of a folder": (["denoise", "two", "--out", "b"], 3, "cut off"),
    "no noise": (["denoise", "a.npy", "--out", "b.npy", "--sigma", "0"], 2, "--sigma 0"),
    "no number": (["sample", "--count", "none", "--out", "b"], 2, "invalid"),
    "no images": (["sample", "--count", "0", "--out", "b"], 2, "below 1"),
    "8 bits": (["sample", "--count", "1", "--out", "b.webp"], 3, "do not hold"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_one_message_and_leaves_nothing(workspace, capsys, name):
    stack = RNG.integers(100, 900, (20, 12, 12)).astype(np.uint16)
    np.save("a.npy", stack)
    np.save("there.npy", stack)
    np.save("far.npy", stack.astype(np.float32) * 1000)
    np.save("nan.npy", np.where(stack == stack.max(), np.nan, stack))
    np.save("objects.npy", np.array([[{}]]), allow_pickle=True)
    for folder in ("full", "two"):
        (workspace / folder).mkdir()
        np.save(f"{folder}/a.npy", stack)
    whole = (workspace / "a.npy").read_bytes()
    for place in ("cut.npy", "two/z.npy"):
        (workspace / place).write_bytes(whole[:-10])
    before = sorted(workspace.rglob("*"))
    arguments, code, message = REFUSED[name]
    if message in {"invalid", "below 1"}:  # argparse
        with pytest.raises(SystemExit, match=str(code)):
            main(arguments)
    else:
        assert main(arguments) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    left = {one for one in {*workspace.rglob("*")} - {*before} if one.is_file()}
    assert not {one for one in left if "mlflow" not in one.name}
    assert (workspace / "a.npy").read_bytes() == whole
