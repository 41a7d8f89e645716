import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load, save

from dsd.features.cache import FeatureCache, fingerprint
from dsd.features.extractor import extract
from dsd.selection.proximal import FrechetReference, ProximalReference

CPU = torch.device("cpu")


class Counting:
    """Means and maxima of images, and how often they were asked for."""

    device = CPU

    def __init__(self, name="means", protocol="mean and maximum"):
        self.name, self.protocol, self.calls = name, protocol, 0

    def __call__(self, images):
        self.calls += 1
        flat = images.flatten(1).float()
        return torch.stack([flat.mean(dim=1), flat.amax(dim=1)], dim=1)


def pictures(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "features")


def test_features_are_computed_once_and_are_those_of_extraction(cache):
    extractor, images = Counting(), pictures(5)
    expected = extract(extractor, images, batch_size=2)
    calls = extractor.calls
    for batch_size in (2, 5):
        found = cache.features(extractor, images.clone(), batch_size=batch_size)
        assert torch.equal(found, expected)
        assert found.dtype == torch.float64
    assert extractor.calls == calls + 3


def test_other_images_shapes_names_and_protocols_are_other_features(cache):
    images = pictures(4)
    changed = images.clone()
    changed[3, 0, 7, 7] ^= 1
    cache.features(Counting(), images, batch_size=4)
    for extractor, others in (
        (Counting(), changed),
        (Counting(), images.flip(0)),
        (Counting(), images.reshape(4, 1, 4, 16)),
        (Counting(), images.reshape(2, 2, 8, 8)),
        (Counting(name="other"), images),
        (Counting(protocol="other"), images),
    ):
        found = cache.features(extractor, others, batch_size=4)
        assert extractor.calls == 1
        assert torch.equal(found, extract(extractor, others, batch_size=4))
    transposed = images.transpose(2, 3).contiguous().transpose(2, 3)
    assert fingerprint(transposed) == fingerprint(images)


def cut(raw):
    return raw[:-3]


def flipped(raw):
    return raw[:-1] + bytes([raw[-1] ^ 1])


def without_checksum(raw):
    return save(load(raw))


def of_another_name(_):
    return save({"other": torch.zeros(3, 2)})


@pytest.mark.parametrize(
    "damage", [cut, lambda _: b"", flipped, without_checksum, of_another_name]
)
def test_broken_files_are_made_again(tmp_path, damage):
    cache, images = FeatureCache(tmp_path), pictures(3)
    extractor = Counting()
    expected = cache.features(extractor, images, batch_size=3)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    for _ in range(2):
        assert torch.equal(cache.features(extractor, images, batch_size=3), expected)
        assert extractor.calls == 2


def test_a_valid_file_under_the_wrong_name_is_not_believed(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.features(Counting(), pictures(3), batch_size=3)
    (first,) = tmp_path.iterdir()
    cache.features(Counting(), pictures(4), batch_size=4)
    (second,) = (path for path in tmp_path.iterdir() if path != first)
    second.write_bytes(first.read_bytes())
    assert len(cache.features(Counting(), pictures(4), batch_size=4)) == 4


def test_a_folder_that_cannot_be_written_is_only_slow(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache, extractor = FeatureCache(tmp_path / "file"), Counting()
    for calls in (1, 2):
        assert cache.features(extractor, pictures(3), batch_size=3).shape == (3, 2)
        assert extractor.calls == calls


def test_the_folder_is_bounded_and_keeps_what_was_used_last(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.features(Counting(), pictures(50, seed=0), batch_size=50)
    (first,) = tmp_path.iterdir()
    size = first.stat().st_size
    cache = FeatureCache(tmp_path, max_bytes=2 * size)
    cache.features(Counting(), pictures(50, seed=1), batch_size=50)
    (second,) = (path for path in tmp_path.iterdir() if path != first)
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    used = Counting()
    cache.features(used, pictures(50, seed=0), batch_size=50)
    assert used.calls == 0
    cache.features(Counting(), pictures(50, seed=2), batch_size=50)
    assert first.exists()
    assert not second.exists()
    assert len([*tmp_path.iterdir()]) == 2
    # One that alone exceeds the bound is kept until the next.
    FeatureCache(tmp_path, max_bytes=1).features(Counting(), pictures(9), batch_size=9)
    assert len([*tmp_path.iterdir()]) == 1


def test_threads_that_need_the_same_features_do_not_disturb_each_other(tmp_path):
    images = pictures(20)
    expected = extract(Counting(), images, batch_size=20)

    def work(_):
        return FeatureCache(tmp_path).features(Counting(), images, batch_size=7)

    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(work, range(32)))


def test_a_reference_is_measured_once_for_all_runs(cache):
    observations, sigma = pictures(30), torch.full((30,), 0.1)
    others = pictures(30, seed=1)

    def distances(extractor, batch_size):
        plain = FrechetReference(observations, extractor, batch_size=batch_size, cache=cache)
        proximal = ProximalReference(
            observations, sigma, extractor, batch_size=batch_size, seed=3, cache=cache
        )
        return plain.distance(others), proximal.distance(others)

    first, second = Counting(), Counting()
    expected = distances(first, 30)
    assert first.calls == 3
    assert distances(second, 30) == expected
    assert second.calls == 2
    streamed = FrechetReference(observations, first, batch_size=7)
    assert streamed.distance(others) == pytest.approx(expected[0], rel=1e-9)
