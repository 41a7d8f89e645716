"""Published EDM weights become a model folder; one module imitates a checkout."""

import pickle
import sys

import pytest
import torch
from song_unet import random_weights

from dsd import load_denoiser
from scripts.import_edm import main

SIZES = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
CHECKOUT = """
from song_unet import song_unet


class Model:
    def state_dict(self):
        return self.weights


class Precond:
    sigma_data, img_channels, img_resolution = 0.5, 3, 16

    def eval(self):
        return self

    def requires_grad_(self, _):
        return self

    def __call__(self, x, sigma):
        level = sigma.view(-1, 1, 1, 1)
        total = (level**2 + 0.25).sqrt()
        F_x = song_unet(self.model.weights, x / total, sigma.log() / 4)
        return 0.25 / total**2 * x + self.factor * level / total * F_x
"""


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Function that writes a pickle for which the folder ``checkout`` is needed."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "edm_like.py").write_text(CHECKOUT)
    monkeypatch.setattr(sys, "path", [str(checkout), *sys.path])
    import edm_like

    def write(*, factor=0.5, **unknown):
        theirs = edm_like.Precond()
        theirs.factor, theirs.model = factor, edm_like.Model()
        weights = random_weights(channels=3, resolution=16, **SIZES, attention=[8])
        theirs.model.weights = {**weights, **unknown}
        theirs.model.init_kwargs = {**SIZES, "attn_resolutions": [8]}
        (tmp_path / "edm.pkl").write_bytes(pickle.dumps({"ema": theirs}))
        return theirs

    yield write
    sys.modules.pop("edm_like", None)


def test_the_imported_denoiser_is_the_published_one(published, tmp_path):
    theirs = published()
    assert main([str(tmp_path / name) for name in ("checkout", "edm.pkl", "model")]) == 0
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 3.0])
    with torch.no_grad():
        torch.testing.assert_close(
            load_denoiser(tmp_path / "model")(x, sigma), theirs(x, sigma), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0.6}, "edm.pkl: the denoisers differ by"),
        ({"map_label.weight": torch.zeros(16, 10)}, "edm.pkl holds no unconditional DDPM++"),
    ],
)
def test_another_network_is_refused(published, tmp_path, capsys, options, message):
    published(**options)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / name) for name in ("checkout", "edm.pkl", "model")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("checkout", "file", "message"),
    [
        ("checkout", "missing.pkl", "missing.pkl holds no"),
        ("elsewhere", "edm.pkl", "elsewhere is not a checkout of EDM"),
    ],
)
def test_missing_files_are_named(
    published, tmp_path, capsys, monkeypatch, checkout, file, message
):
    published()
    if checkout == "elsewhere":
        monkeypatch.delitem(sys.modules, "edm_like")
        monkeypatch.setattr(sys, "path", [path for path in sys.path if "checkout" not in path])
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / checkout), str(tmp_path / file), str(tmp_path / "model")])
    assert message in capsys.readouterr().err
