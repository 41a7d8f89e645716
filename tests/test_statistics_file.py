import numpy as np
import pytest
import torch

from dsd.errors import DataError
from dsd.metrics.frechet import frechet_distance, moments
from dsd.metrics.statistics_file import load_statistics


def features(seed, count=50):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, dtype=torch.float64, generator=generator)


@pytest.fixture
def file(tmp_path):
    x = features(0).numpy()
    np.savez(tmp_path / "stats.npz", mu=x.mean(0), sigma=np.cov(x.T))
    return tmp_path / "stats.npz"


def test_statistics_in_a_file_are_as_good_as_features(file):
    reference = load_statistics(file, protocol="three numbers")
    assert reference.count is None
    assert reference.protocol == "three numbers"
    other = moments(features(1))
    expected = frechet_distance(other, moments(features(0)))
    assert frechet_distance(other, reference) == pytest.approx(expected, rel=1e-9)


def test_a_custom_set_of_clean_fid_is_read(file):
    """clean-fid writes mu and sigma, and EDM's files hold other arrays beside them."""
    with np.load(file) as arrays:
        np.savez(file, **arrays, images_seen=np.array(50))
    assert load_statistics(file).mean.shape == (3,)


def test_truncated_files_are_refused_wherever_they_end(file):
    whole = file.read_bytes()
    for length in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"stats\.npz: statistics cannot be read"):
            load_statistics(file)


def test_changed_bytes_are_refused(file):
    whole = bytearray(file.read_bytes())
    whole[whole.index(b"NUMPY") + 150] ^= 0xFF
    file.write_bytes(whole)
    with pytest.raises(DataError, match="cannot be read"):
        load_statistics(file)


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
    ],
)
def test_other_content_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_statistics(tmp_path / "stats.npz")


def test_other_files_are_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.eye(3))
    for name in ("one.npy", "missing.npz"):
        with pytest.raises(DataError, match=f"{name}: statistics cannot be read"):
            load_statistics(tmp_path / name)
