import sys

import pytest
import torch
from pydantic import ValidationError
from stage_helpers import params_with
from torch import nn

from dsd.features.cache import FeatureCache
from dsd.features.extractor import Extractor, extract, load_extractor
from dsd.utils.errors import DataError, ParamsError

CPU = torch.device("cpu")

SOURCE = '''
from pathlib import Path

import torch
from torch import nn

class Means(nn.Module):
    """The mean of each channel, of any number of them."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        return self.dropout(self.scale * images.double().mean(dim=(2, 3)))

class Ready:
    name = "ready"
    protocol = "the mean, made elsewhere"

    def __init__(self, device):
        self.device = device

    def __call__(self, images):
        return images.float().mean(dim=(1, 2, 3))[:, None]

class Wrong(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        return self.answer(images)

def means(device):
    torch.rand(3)
    return Means()

def stored(device):
    network = Means()
    network.scale.data.fill_(float(Path(__file__).with_name("scale.txt").read_text()))
    return network

ready = Ready
number = lambda device: 3
flat = lambda device: Wrong(lambda x: x.float().mean(dim=(1, 2, 3)))
fewer = lambda device: Wrong(lambda x: x[1:].float().flatten(1))
whole = lambda device: Wrong(lambda x: x.flatten(1))
text = lambda device: Wrong(lambda x: "features")
nan = lambda device: Wrong(lambda x: x.float().flatten(1) / 0 - x.float().flatten(1) / 0)
channels = lambda device: Wrong(lambda x: nn.Conv2d(4, 2, 3)(x.float()))
constant = 5
'''


def pictures(count, channels=1):
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, 8, 8)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module, importable as ``own_features``."""
    (tmp_path / "own_features.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_features", raising=False)
    yield tmp_path / "own_features.py"
    sys.modules.pop("own_features", None)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_users_network_gets_all_channels_and_is_in_evaluation_mode(module, channels):
    before = torch.get_rng_state()
    extractor = load_extractor("own_features:means", device=CPU)
    assert torch.equal(torch.get_rng_state(), before)
    images = pictures(5, channels)
    found = extract(extractor, images, batch_size=2)
    torch.testing.assert_close(found, images.double().mean(dim=(2, 3)), rtol=1e-6, atol=0)
    assert isinstance(extractor, Extractor)
    assert extractor.name == "own_features:means"
    assert extractor(images).dtype == torch.float32
    assert not extractor(images).requires_grad


def test_a_users_extractor_is_taken_as_it_is(module):
    extractor = load_extractor("own_features:ready", device=CPU)
    assert extractor.protocol == "the mean, made elsewhere"
    assert extract(extractor, pictures(4), batch_size=3).shape == (4, 1)


def test_the_protocol_tells_code_and_weights_apart(module):
    def protocol():
        sys.modules.pop("own_features", None)
        return load_extractor("own_features:stored", device=CPU).protocol

    module.with_name("scale.txt").write_text("1")
    first = protocol()
    assert protocol() == first
    module.with_name("scale.txt").write_text("2")
    other_weights = protocol()
    module.write_text(module.read_text() + "# another line\n")
    other_code = protocol()
    assert len({first, other_weights, other_code}) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing_module:means", "missing_module:means cannot be imported .*No module named"),
        ("own_features:missing", "own_features:missing cannot be imported .*no attribute"),
        ("vgg", "vgg cannot be imported .*package.module:function"),
        ("", "cannot be imported"),
        ("own_features:constant", "is a int; it must be a function"),
        ("own_features:number", "returned a int; it must return a torch.nn.Module or"),
    ],
)
def test_what_cannot_be_loaded_is_refused(module, name, message):
    with pytest.raises(ParamsError, match=message):
        load_extractor(name, device=CPU)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flat", r"returned shape \[3\] for uint8 images \[3, 1, 8, 8\]"),
        ("fewer", r"returned shape \[2, 64\]"),
        ("whole", "returned torch.uint8 numbers"),
        ("text", "returned a str"),
        ("nan", "returned NaN or infinite numbers"),
        ("channels", "failed .*channels"),
    ],
)
def test_wrong_features_are_refused(module, name, message):
    extractor = load_extractor(f"own_features:{name}", device=CPU)
    with pytest.raises(DataError, match=f"feature extractor own_features:{name} {message}"):
        extract(extractor, pictures(3), batch_size=3)


class Halves(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=3).flatten(1) * self.scale


def script(path, scale=1.0):
    torch.jit.script(Halves(scale)).save(path)
    return path


@pytest.mark.parametrize("suffix", ["ts", "torchscript"])
def test_a_torchscript_file_is_an_extractor_and_a_changed_one_another(tmp_path, suffix):
    path, cache = tmp_path / f"features.{suffix}", FeatureCache(tmp_path / "cache")
    images = pictures(4, channels=5)
    expected = images.double().mean(dim=3).flatten(1)
    protocols = set()
    for scale in (1.0, 2.0):
        extractor = load_extractor(str(script(path, scale)), device=CPU)
        protocols.add(extractor.protocol)
        found = cache.features(extractor, images, batch_size=3)
        torch.testing.assert_close(found, scale * expected)
        assert extractor.name == str(path)
    assert len(protocols) == 2


def test_broken_torchscript_files_are_refused(tmp_path):
    path = script(tmp_path / "features.ts")
    for raw in (b"", path.read_bytes()[:500], None):
        path.unlink() if raw is None else path.write_bytes(raw)
        with pytest.raises(DataError, match=r"features\.ts cannot be read as TorchScript"):
            load_extractor(str(path), device=CPU)


def test_parameters_know_the_forms_of_a_users_extractor():
    features = ["fashion-classifier", "own.features:means", "models/features.ts"]
    assert params_with(evaluate={"features": features}).evaluate.features == features


@pytest.mark.parametrize(
    "value", ["fashion-clasifier", "own features:means", ":means", "own:", ""]
)
def test_parameters_refuse_other_texts(value):
    with pytest.raises(
        ValidationError, match="no feature extractor: name one of teacher, fashion-class"
    ):
        params_with(evaluate={"features": [value]})
