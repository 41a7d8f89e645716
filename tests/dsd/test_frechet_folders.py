"""The Frechet distance of two folders of pictures, as one call and as one command."""

import runpy
import sys

import pytest
from clothes import clothes
from PIL import Image

import dsd
from dsd.features.extractor import load_extractor
from dsd.frechet import main
from dsd.metrics.frechet import frechet_distance
from dsd.selection.proximal import measure
from dsd.utils.errors import DataError, ParamsError

FEATURES = "fashion-classifier"


def save(folder, images):
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def images():
    (images, _), _ = clothes()
    return images[:60], images[60:110]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, images):
    root = tmp_path_factory.mktemp("pictures")
    return save(root / "a", images[0]), save(root / "b", images[1])


@pytest.fixture(scope="module")
def expected(images):
    extractor = load_extractor(FEATURES)
    return frechet_distance(*(measure(extractor, one, batch_size=100) for one in images))


def test_the_distance_of_folders_is_that_of_their_images(folders, expected):
    found = dsd.frechet_distance_of_folders(*folders, features=FEATURES)
    assert found == pytest.approx(expected, rel=1e-6)
    a = str(folders[0])
    assert dsd.frechet_distance_of_folders(a, a, features=FEATURES) == pytest.approx(0, abs=1e-6)


def test_the_command_prints_the_distance_and_the_numbers_of_images(
    folders, expected, monkeypatch, capsys
):
    command = ["frechet", *map(str, folders), "--features", FEATURES]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.delitem(sys.modules, "dsd.frechet")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("dsd.frechet", run_name="__main__")
    assert not ended.value.code
    printed = capsys.readouterr()
    number, _, what = printed.out.strip().partition(" ")
    assert float(number) == pytest.approx(expected, rel=1e-5)
    assert what == f"({FEATURES}, 60 and 50 images)"
    assert "50 images are too few for 64 features" in printed.err


def test_folders_that_cannot_be_compared_are_refused(
    folders, images, tmp_path, capsys, monkeypatch
):
    small = save(tmp_path / "small", images[0][:5, :, ::2, ::2])
    with pytest.raises(DataError, match=r"their images are 1 x 16 x 16 and 1 x 8 x 8"):
        dsd.frechet_distance_of_folders(folders[0], small, features=FEATURES)
    with pytest.raises(ParamsError, match="teacher: its features need the folder"):
        dsd.frechet_distance_of_folders(*folders, features="teacher")
    command = ["frechet", str(tmp_path / "none"), str(folders[0]), "--features", FEATURES]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == DataError.exit_code
    assert "none does not exist" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "dsd.features.inception", raising=False)
    monkeypatch.setitem(sys.modules, "cleanfid", None)
    with pytest.raises(DataError, match=r"cleanfid is missing.*dsd\[features\]"):
        load_extractor("inception-edm")
