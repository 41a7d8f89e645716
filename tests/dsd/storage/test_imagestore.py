import errno
import json
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_helpers import files_of, random_images

import dsd.storage.shards
from dsd.storage.image_store import Block, ImageStore, write_store
from dsd.utils.errors import DataError
from dsd.utils.images import from_uint8, to_uint8


def write(folder, images, *, block_size=5, shard_size=4, scale=1 / 127.5, offset=-1.0):
    blocks = [Block(images[i : i + block_size]) for i in range(0, len(images), block_size)]
    return write_store(folder, blocks, scale=scale, offset=offset, shard_size=shard_size)


def write_noisy(folder, count=7):
    y = np.random.default_rng(0).standard_normal((count, 1, 3, 2), dtype=np.float32)
    sigma = np.linspace(0.1, 0.7, count, dtype=np.float32)
    index = np.arange(count)[::-1] * 10
    block = Block(y, sigma, index)
    write_store(folder, [block], scale=1.0, offset=0.0, shard_size=3)
    return block


@contextmanager
def full_disk(size):
    """No file can grow beyond ``size`` bytes: writes fail part of the way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_eight_bit_images_come_back_in_data_units_and_quantise_to_themselves(tmp_path):
    images = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    write(tmp_path, images)
    x = ImageStore.open(tmp_path).all()
    torch.testing.assert_close(x, from_uint8(torch.from_numpy(images)), atol=2e-7, rtol=0)
    assert x.min() == -1
    assert torch.equal(to_uint8(x), torch.from_numpy(images))


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 30),
    block_size=st.integers(1, 12),
    shard_size=st.integers(1, 40),
    batch_bytes=st.sampled_from([1, 40, 2**25]),
)
def test_any_blocks_and_shards_hold_the_same_images(
    tmp_path_factory, count, block_size, shard_size, batch_bytes
):
    folder = tmp_path_factory.mktemp("store")
    images = random_images(count, 1, 3, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dsd.storage.shards, "BATCH_BYTES", batch_bytes)
        meta = write(folder, images, block_size=block_size, shard_size=shard_size)
        first = files_of(folder)
        write(folder, images, block_size=count, shard_size=shard_size)
    store = ImageStore.open(folder)
    assert files_of(folder) == first
    assert len(meta.shards) == -(-count // shard_size)
    assert len(store) == meta.count == count
    np.testing.assert_array_equal(np.concatenate(store.raw()), images)
    order = torch.from_numpy(np.random.default_rng(1).integers(0, count, 17))
    assert torch.equal(store.take(order), store.all()[order])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_affine_map_belongs_to_the_store(tmp_path, dtype):
    images = random_images(3, 2, 2, 2).astype(dtype)
    write(tmp_path, images, scale=0.5, offset=3.0)
    expected = torch.from_numpy(images.astype(np.float32)) * 0.5 + 3
    store = ImageStore.open(tmp_path)
    assert torch.equal(store.all(), expected)
    assert store.take(torch.tensor([2])).dtype == torch.float32


def test_noisy_stores_know_level_and_number_of_each_image(tmp_path):
    block = write_noisy(tmp_path)
    store = ImageStore.open(tmp_path)
    np.testing.assert_array_equal(store.all().numpy(), block.images)
    np.testing.assert_array_equal(store.sigma.numpy(), block.sigma)
    np.testing.assert_array_equal(store.index.numpy(), block.index)


def test_clean_stores_have_no_noise_level(tmp_path):
    write(tmp_path, random_images(3, 1, 2, 2))
    with pytest.raises(DataError, match="no noise level"):
        _ = ImageStore.open(tmp_path).sigma


def test_opening_maps_the_files_and_copies_nothing(tmp_path):
    write(tmp_path, random_images(64, 1, 64, 64), shard_size=32)
    before = pa.total_allocated_bytes()
    raw = ImageStore.open(tmp_path).raw()
    assert pa.total_allocated_bytes() == before
    assert not any(part.flags.writeable or part.flags.owndata for part in raw)


def test_a_batch_can_be_changed_without_changing_the_store(tmp_path):
    write_noisy(tmp_path)
    store = ImageStore.open(tmp_path)
    before = store.all()
    store.take(torch.arange(3)).zero_()
    store.all().zero_()
    assert torch.equal(store.all(), before)


@pytest.mark.parametrize("number", [-1, 7])
def test_numbers_outside_the_store_are_refused(tmp_path, number):
    write_noisy(tmp_path)
    with pytest.raises(IndexError, match="0 to 6"):
        ImageStore.open(tmp_path).take(torch.tensor([0, number]))


def test_taking_nothing_gives_an_empty_batch(tmp_path):
    write_noisy(tmp_path)
    assert ImageStore.open(tmp_path).take(torch.arange(0)).shape == (0, 1, 3, 2)


def test_the_fingerprint_changes_with_pixels_map_and_origin(tmp_path):
    images = random_images(6, 1, 2, 2)
    other = images.copy()
    other[5, 0, 1, 1] ^= 1
    blocks = [Block(images)]
    fingerprints = {
        write(tmp_path / "a", images).fingerprint,
        write(tmp_path / "b", images).fingerprint,
        write(tmp_path / "c", other).fingerprint,
        write(tmp_path / "d", images, offset=0.0).fingerprint,
        write_store(
            tmp_path / "e",
            blocks,
            scale=1 / 127.5,
            offset=-1.0,
            shard_size=4,
            info=lambda: {"content": "noisy"},
        ).fingerprint,
    }
    assert len(fingerprints) == 4


def test_a_new_store_replaces_the_old_one_whole(tmp_path):
    write(tmp_path, random_images(9, 1, 2, 2), shard_size=2)
    write(tmp_path, random_images(2, 1, 2, 2), shard_size=2)
    assert sorted(files_of(tmp_path)) == ["meta.json", "part-00000.arrow"]


def test_images_of_another_shape_are_a_programming_error(tmp_path):
    blocks = [Block(random_images(2, 1, 2, 2)), Block(random_images(2, 1, 2, 3))]
    with pytest.raises(ValueError, match=r"dimension|store"):
        write_store(tmp_path, blocks, scale=1.0, offset=0.0, shard_size=4)
    assert files_of(tmp_path) == {}


def test_no_image_at_all_is_refused(tmp_path):
    with pytest.raises(DataError, match="no image"):
        write(tmp_path, random_images(0, 1, 2, 2))


def flip_a_byte(folder):
    path = folder / "part-00001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder):
    path = folder / "part-00001.arrow"
    path.write_bytes(path.read_bytes()[:-10])


def swap_shards(folder):
    (folder / "part-00000.arrow").rename(folder / "part-00001.arrow")


def edit_meta(**changes):
    def edit(folder):
        path = folder / "meta.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def change_layout(folder):
    path = folder / "meta.json"
    meta = json.loads(path.read_text())
    meta["layout"]["scale"] = 2.0
    path.write_text(json.dumps(meta))


def point_outside(folder):
    path = folder / "meta.json"
    path.write_text(path.read_text().replace("part-00000", "../secret"))


DAMAGE = {
    "flipped byte": (flip_a_byte, "part-00001.arrow is damaged", "dvc repro"),
    "truncated": (truncate, "part-00001.arrow is damaged", "dvc repro"),
    "missing file": (lambda f: (f / "part-00001.arrow").unlink(), "part-00001.arrow", "dvc repro"),
    "swapped files": (swap_shards, "part-0000", "dvc repro"),
    "missing meta": (lambda f: (f / "meta.json").unlink(), "meta.json is missing", "dvc checkout"),
    "no JSON": (lambda f: (f / "meta.json").write_text("{"), "meta.json", "dvc repro"),
    "no object": (lambda f: (f / "meta.json").write_text("[]"), "meta.json", "dvc repro"),
    "not UTF-8": (lambda f: (f / "meta.json").write_bytes(b"\xff\xfe"), "meta.json", "dvc repro"),
    "other version": (edit_meta(version=2), "schema version 2", "dvc repro"),
    "unknown key": (edit_meta(more=1), "more", "dvc repro"),
    "no shards": (edit_meta(shards=[]), "shards", "dvc repro"),
    "other layout": (change_layout, "does not fit meta.json", "dvc repro"),
    "path outside": (point_outside, "shards.0.name", "dvc repro"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_store_is_refused_with_file_and_remedy(tmp_path, name):
    damage, what, remedy = DAMAGE[name]
    write(tmp_path, random_images(7, 1, 3, 3))
    damage(tmp_path)
    with pytest.raises(DataError) as caught:
        ImageStore.open(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert what in message
    assert remedy in message


def test_a_hash_that_fits_a_file_that_is_no_arrow_file_is_refused(tmp_path):
    write(tmp_path, random_images(3, 1, 3, 3))
    (tmp_path / "part-00000.arrow").write_bytes(b"ARROW1 nonsense")
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["shards"][0]["sha256"] = dsd.storage.shards._sha256(tmp_path / "part-00000.arrow")
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match="no Arrow file"):
        ImageStore.open(tmp_path)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_flipped_bit_is_noticed(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "flip"
    write(folder, random_images(3, 1, 3, 3))
    path = folder / "part-00000.arrow"
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(DataError):
        ImageStore.open(folder)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_at_the_last_step_leaves_no_file(tmp_path, monkeypatch, failing):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "fsync":
        monkeypatch.setattr("os.fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, random_images(9, 1, 2, 2))
    assert files_of(tmp_path) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_full_disk_leaves_no_torn_file_and_no_store(tmp_path):
    images = random_images(64, 1, 32, 32)
    write(tmp_path, images, shard_size=16)
    with full_disk(10_000), pytest.raises(OSError, match="too large"):
        write(tmp_path, images, shard_size=16)
    assert files_of(tmp_path) == {}
    with pytest.raises(DataError, match=r"meta\.json is missing"):
        ImageStore.open(tmp_path)
    write(tmp_path, images, shard_size=16)
    assert len(ImageStore.open(tmp_path)) == 64
