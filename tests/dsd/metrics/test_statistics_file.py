import numpy as np
import pytest
import torch

from dsd.features.inception import PROTOCOLS, load_published
from dsd.metrics.frechet import frechet_distance, moments
from dsd.metrics.statistics_file import load_statistics, save_statistics
from dsd.utils.errors import DataError


def features(seed, count=50):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, dtype=torch.float64, generator=generator)


@pytest.fixture
def file(tmp_path):
    x = features(0).numpy()
    np.savez(tmp_path / "stats.npz", mu=x.mean(0), sigma=np.cov(x.T))
    return tmp_path / "stats.npz"


def test_statistics_in_a_file_are_as_good_as_features(file):
    reference = load_statistics(file, unlabelled="three numbers")
    assert reference.count is None
    assert reference.protocol == "three numbers"
    other = moments(features(1))
    expected = frechet_distance(other, moments(features(0)))
    assert frechet_distance(other, reference) == pytest.approx(expected, rel=1e-9)


def test_saved_statistics_keep_their_protocol(tmp_path):
    path, saved = tmp_path / "mine.npz", moments(features(0), protocol="mine")
    save_statistics(path, saved)
    for unlabelled in (None, "another"):
        found = load_statistics(path, unlabelled=unlabelled)
        assert found.protocol == "mine"
        assert torch.equal(found.mean, saved.mean)
        torch.testing.assert_close(found.cov, saved.cov, rtol=1e-15, atol=0)
    with np.load(path) as arrays:  # as clean-fid reads its own
        np.testing.assert_array_equal(arrays["mu"], saved.mean)
        np.testing.assert_array_equal(arrays["sigma"], saved.cov)
    with pytest.raises(DataError, match="moments without a protocol are not saved"):
        save_statistics(path, moments(features(0)))


def test_an_unknown_protocol_is_refused(file):
    with pytest.raises(DataError, match="do not say by which protocol"):
        load_statistics(file)


EDM, CLEAN = PROTOCOLS.values()


@pytest.mark.parametrize(
    ("name", "protocol", "space", "found"),
    [
        ("cifar10-32x32.npz", None, "inception-edm", EDM),
        ("cifar10_legacy_tensorflow_train_32.npz", None, "inception-edm", EDM),
        ("cifar10_clean_train_32.npz", None, "inception-clean", CLEAN),
        ("mine.npz", EDM, None, EDM),
        ("mine.npz", CLEAN, None, CLEAN),
        ("mine_clean_1.npz", EDM, "inception-edm", EDM),
        ("cifar10-32x32.npz", None, None, "do not say their protocol"),
        ("cifar10_clean_train_32.npz", None, None, "do not say their protocol"),
        ("cifar10-32x32.npz", None, "inception-clean", "name: mode legacy_tensorflow"),
        ("cifar10_clean_train_32.npz", None, "inception-edm", "name: mode clean"),
        ("cifar10_legacy_pytorch_train_32.npz", None, "inception-edm", "mode legacy_pytorch"),
        ("cifar10_legacy_tensorflow_train_32.npz", None, "inception-clean", "legacy_tensorflow"),
        ("mine.npz", EDM, "inception-clean", "not the protocol of inception-clean"),
        ("mine.npz", CLEAN, "inception-edm", "not the protocol of inception-edm"),
        ("mine.npz", "efficientnet", None, "not the protocol of inception-edm or"),
        ("mine.npz", "", "inception-clean", "name: mode legacy_tensorflow"),
    ],
)
def test_published_statistics_go_with_their_protocol_only(tmp_path, name, protocol, space, found):
    said = {} if protocol is None else {"protocol": np.array(protocol)}
    np.savez(tmp_path / name, mu=np.zeros(3), sigma=np.eye(3), **said)
    if found in PROTOCOLS.values():
        assert load_published(tmp_path / name, space).protocol == found
        return
    with pytest.raises(DataError, match=found):
        load_published(tmp_path / name, space)


def test_truncated_files_are_refused_wherever_they_end(file):
    whole = file.read_bytes()
    for length in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"stats\.npz: statistics cannot be read"):
            load_statistics(file, unlabelled="any")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "cannot be read .*sigma"),
        (
            {"mu": np.zeros(3), "sigma": np.eye(4)},
            r"mu of shape \(3,\) and sigma of shape \(4, 4\)",
        ),
        ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, r"mu of shape \(3, 1\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(3) * np.nan}, "no mean and covariance"),
        ({"mu": np.full(3, np.inf), "sigma": np.eye(3)}, "no mean and covariance"),
        ({"mu": np.zeros(3), "sigma": -np.eye(3)}, "no mean and covariance"),
        ({"mu": np.zeros(3), "sigma": np.eye(3) + np.tri(3)}, "no mean and covariance"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "cannot be read"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, "cannot be read"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "protocol": np.zeros(3)}, "is no text"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "protocol": np.array(["a"])}, "is no text"),
    ],
)
def test_other_content_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_statistics(tmp_path / "stats.npz", unlabelled="any")
