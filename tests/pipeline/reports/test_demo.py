"""The page of the first minute: from shipped models alone, and shown in one file."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from dsd.model.checkpoint import load_denoiser, load_generator
from dsd.utils.errors import DataError
from pipeline.reports.demo import show_demo
from pipeline.stage_io.paths import Paths
from sandbox import ROOT
from scripts.ship_demo import ship


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """A folder that has what is shipped and nothing else."""
    shutil.copytree(ROOT / "demo", tmp_path / "demo")
    monkeypatch.setattr("socket.socket.connect", None)  # no network
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    yield Paths(tmp_path)
    assert all(address.startswith("file://") for address in opened)


def test_the_demo_writes_a_page_of_pictures_and_opens_it(paths, capsys):
    show_demo(paths)
    page = paths.demo_page.read_text()
    for words in ("noisy images", "A teacher learns to denoise", "one pass", "23 passes", "0.5,"):
        assert words in page
    assert page.count('src="data:image/') == 3
    assert {src.partition(":")[0] for src in re.findall(r'(?:src|href)="([^"]*)"', page)} == {
        "data"
    }
    assert "<script" not in page
    said = capsys.readouterr().out
    assert said == "Page: reports/demo.html\n"


def test_without_a_display_the_demo_says_where_the_page_is(paths, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    show_demo(paths)
    assert f"open {paths.demo_page.resolve().as_uri()}" in capsys.readouterr().out


def test_the_shipped_teacher_denoises_images_that_it_has_not_seen():
    shipped = load_file(ROOT / "demo" / "observations.safetensors")
    noisy, clean = shipped["noisy"].float(), shipped["clean"].float() / 127.5 - 1
    denoised = load_denoiser(ROOT / "demo" / "teacher")(noisy, shipped["sigma"]).detach()
    errors = [float((x - clean).square().mean().sqrt()) for x in (noisy, denoised)]
    assert errors[0] == pytest.approx(0.5, rel=0.05)
    assert errors[1] < 0.6 * errors[0]


def test_the_shipped_models_are_small_and_the_generator_makes_different_images():
    size = sum(file.stat().st_size for file in (ROOT / "demo").rglob("*"))
    assert size < 5e6
    images = load_generator(ROOT / "demo" / "generator").sample(4, seed=0)
    assert len(images.flatten(1).unique(dim=0)) == 4
    assert images.float().std() > 30


def test_a_folder_without_models_is_one_message(tmp_path):
    with pytest.raises(
        DataError, match=r"observations\.safetensors: .*in a clone of the repository"
    ):
        show_demo(Paths(tmp_path))


def test_what_a_run_left_can_be_shipped_again(copied, tmp_path):
    ship(copied.root, tmp_path / "demo")
    found = load_file(tmp_path / "demo" / "observations.safetensors")
    assert found["noisy"].shape[1:] == found["clean"].shape[1:]
    load_generator(tmp_path / "demo" / "generator")
    assert np.isfinite(found["sigma"]).all()
    Image.fromarray(found["clean"][0, 0].numpy())
