"""Exported files compute what PyTorch does, also in batches of another size."""

import io
import json
import sys
import zipfile

import numpy as np
import pytest
import torch
from tiny_model import save_tiny_model

import dsd
from dsd.model.generator import make_latents
from dsd.model.units import ImageUnits
from dsd.utils.intensity import Intensity
from pipeline.__main__ import main
from pipeline.outputs import export

UNITS = ImageUnits(
    intensity=Intensity(low=100.0, high=900.0, dtype="uint16"),
    sigma=0.3,
    is_complex=False,
    suffix=".tif",
)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "data/pretrain", sigma_init=None, units=UNITS)
    save_tiny_model(tmp_path / "data/distill/generator", units=UNITS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_onnx(path, batch):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    return session.run(None, {"input": batch.numpy()})[0], json.loads(about["intensity"])


def run_torchscript(path, batch):
    extra = {"intensity": ""}
    return torch.jit.load(path, _extra_files=extra)(batch).numpy(), json.loads(extra["intensity"])


@pytest.mark.parametrize(("name", "load"), [("onnx", run_onnx), ("torchscript", run_torchscript)])
def test_a_generator_is_one_file_of_raw_images(workspace, name, load):
    assert main(["export", "--format", name, "--out", "generator"]) == 0
    found, about = load(str(workspace / "generator"), make_latents(5, (1, 8, 8), seed=3))
    expected = dsd.load_generator("data/distill/generator").sample(5, 3, unit="data")
    raw = UNITS.intensity.raw_values(expected.numpy())
    np.testing.assert_allclose(found, raw, atol=1e-3 * raw.std())
    assert (about["low"], about["high"], about["dtype"]) == (100.0, 900.0, "uint16")


def test_a_denoiser_is_a_package_that_its_zoo_accepts(workspace):
    pytest.importorskip("bioimageio.spec")
    out = ["export", "--format", "bioimageio", "--out", "package.zip", "--author", "A. Author"]
    assert main(out) == 0
    from bioimageio.spec import load_description

    description = load_description("package.zip", perform_io_checks=True)
    assert description.validation_summary.status in {"passed", "valid-format"}
    with zipfile.ZipFile("package.zip") as package:
        tile = np.load(io.BytesIO(package.read("test_input.npy")))
    assert tile.shape == (1, 1, 8, 8)
    assert 0 < tile.mean() < 1000
    assert str(description.license) == "CC-BY-4.0"


def test_a_file_that_computes_something_else_is_not_written(workspace, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(export, "_CLOSE", 0.0)
    assert main(["export", "--format", "onnx", "--out", "generator.onnx"]) == 3
    assert "computes other images than PyTorch" in capsys.readouterr().err
    assert not (workspace / "generator.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["onnx", "--out", "there"], 3, "--overwrite"),
        (["onnx", "--out", "x", "--model", "none"], 3, "model.json"),
        (["bioimageio", "--out", "x.zip", "--author", "A", "--license", "mine"], 2, "--license"),
        (["bioimageio", "--out", "x", "--author", "A"], 3, "file .zip"),
        (["bioimageio", "--out", "x.zip", "--author", "A", "--model", "data/distill/generator"],
         3, "needs a teacher"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_one_message(workspace, capsys, arguments, code, message):
    (workspace / "there").write_text("kept")
    assert main(["export", "--format", *arguments]) == code
    err = capsys.readouterr().err
    assert message in err
    assert not [*workspace.glob("x*")]
    assert (workspace / "there").read_text() == "kept"


def test_a_missing_package_is_named_with_its_remedy(workspace, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", "--format", "onnx", "--out", "x.onnx"]) == 3
    assert "pip install 'dsd[export]'" in capsys.readouterr().err
