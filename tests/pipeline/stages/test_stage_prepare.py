import json
import resource

import numpy as np
import pytest
from PIL import Image
from stage_helpers import (
    Recorder,
    files_of,
    params_with,
    png,
    random_images,
    write_parquet,
)

from dsd.sources.phase import to_complex
from dsd.storage.image_store import ImageStore
from dsd.utils.errors import DataError
from pipeline.execution.run import run_stage
from pipeline.stage_io.paths import Paths
from pipeline.stages import prepare

DATA = {"path": "mine.parquet", "pad": 1, "resolution": 5, "shard_size": 4}


def run(root, **changes):
    log = Recorder()
    run_stage(prepare, params_with(data={**DATA, **changes}), Paths(root), log)
    return log


def source(root, count=10, broken=()):
    encoded = [png(image) for image in random_images(count, 8, 8)]
    for number in broken:
        encoded[number] = encoded[number][:60]
    write_parquet(root / "mine.parquet", encoded)


def test_images_become_a_store_a_summary_and_one_line(tmp_path):
    source(tmp_path)
    log = run(tmp_path)
    store = ImageStore.open(tmp_path / "data/prepare")
    summary = json.loads((tmp_path / "reports/prepare/summary.json").read_text())
    assert summary == {
        "count": 10, "shape": [1, 5, 5], "dtype": "uint8", "encodings": {"PNG": 10}, "notes": [],
        "refused": [],
    }  # fmt: skip
    assert [shard.count for shard in store.meta.shards] == [4, 4, 2]
    assert store.meta.info["content"] == "clean"
    assert log.lines == ["10 images of 5 x 5 grey, uint8 (10 PNG)"]
    assert log.bars[0].seen == [10, "closed"]
    # A black border, then means of 2 x 2 pixels, in the order of the source.
    expected = np.zeros((10, 10, 10))
    expected[:, 1:-1, 1:-1] = random_images(10, 8, 8)
    expected = expected.reshape(10, 5, 2, 5, 2).mean((2, 4))
    stored = np.concatenate(store.raw())[:, 0].astype(float)
    assert np.abs(stored - expected).max() <= 0.5
    np.testing.assert_allclose(store.all().numpy()[:, 0], stored / 127.5 - 1, atol=1e-6)
    digest = store.meta.info["source_sha256"]
    assert log.datasets == [("mine.parquet", digest, 10, (1, 5, 5))]


def test_complex_images_are_numbered_over_all_blocks(tmp_path, monkeypatch):
    """Each has the phase of its number, whatever block it was read with."""
    monkeypatch.setattr("dsd.sources.reader.BLOCK_BYTES", 3 * 64)
    source(tmp_path)
    run(tmp_path, phase="smooth", pad=0, resolution=8)
    store = ImageStore.open(tmp_path / "data/prepare")
    grey = random_images(10, 8, 8)[:, None]
    np.testing.assert_array_equal(store.all(), to_complex(grey, np.arange(10)))


def test_only_as_many_images_as_asked_for_are_taken(tmp_path):
    source(tmp_path)
    run(tmp_path, max_images=7)
    assert len(ImageStore.open(tmp_path / "data/prepare")) == 7


def test_the_same_source_gives_the_same_bytes_wherever_it_lies(tmp_path):
    source(tmp_path / "a")
    source(tmp_path / "b/elsewhere")
    run(tmp_path / "a")
    run(tmp_path / "b", path=str(tmp_path / "b/elsewhere/mine.parquet"))
    assert files_of(tmp_path / "a/data") == files_of(tmp_path / "b/data")
    assert files_of(tmp_path / "a/reports") == files_of(tmp_path / "b/reports")


def test_skipped_images_are_listed(tmp_path):
    source(tmp_path, broken=[3, 7])
    log = run(tmp_path, on_error="skip")
    refused = json.loads((tmp_path / "reports/prepare/summary.json").read_text())["refused"]
    assert [item["name"].split(", ")[1] for item in refused] == ["row 3", "row 7"]
    assert len(ImageStore.open(tmp_path / "data/prepare")) == 8
    assert "8 images" in log.lines[0]
    assert json.loads((tmp_path / "reports/prepare/summary.json").read_text())["count"] == 8
    assert "refused 2, the first: " in log.lines[0]


def test_a_broken_image_stops_the_stage_and_leaves_no_store(tmp_path):
    source(tmp_path, broken=[7])
    with pytest.raises(DataError, match=r"row 7 cannot be decoded"):
        run(tmp_path)
    assert not (tmp_path / "data/prepare/meta.json").exists()


@pytest.mark.parametrize(
    ("kind", "path", "complaint"),
    [
        ("parquet", "gone.parquet", "does not exist"),
        ("folder", "gone", "does not exist"),
        ("folder", ".", "holds no images"),
    ],
)
def test_a_source_without_images_is_refused(tmp_path, kind, path, complaint):
    with pytest.raises(DataError, match=complaint):
        run(tmp_path, source=kind, path=path)
    assert files_of(tmp_path) == {}


def test_a_border_on_noisy_images_is_refused(tmp_path):
    source(tmp_path)
    with pytest.raises(ValueError, match=r"data\.pad is 1 .*set data\.pad to 0"):
        run(tmp_path, content="noisy")
    run(tmp_path, content="noisy", pad=0, resolution=4)
    assert ImageStore.open(tmp_path / "data/prepare").meta.info["content"] == "noisy"


def test_what_was_found_is_said_and_written(tmp_path):
    for number, image in enumerate(random_images(6, 8, 8)):
        target = tmp_path / f"in/{number}.{'jpg' if number < 2 else 'png'}"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(target)
    (tmp_path / "in/notes.txt").write_text("hello")
    log = run(tmp_path, source="folder", path="in", content="noisy", pad=0, resolution=4)
    summary = json.loads((tmp_path / "reports/prepare/summary.json").read_text())
    assert summary["encodings"] == {"PNG": 4, "JPEG": 2}
    assert summary["notes"] == log.lines[:-1]
    found, lossy = log.lines[:3], log.lines[3]
    assert found == ["took 4 .png from in", "took 2 .jpg from in", "left out: 1 .txt (not read)"]
    assert lossy.startswith("2 of 6 noisy images are JPEG: lossy compression removes")
    assert log.lines[-1] == "6 images of 4 x 4 grey, uint8 (4 PNG, 2 JPEG)"


def test_the_store_knows_how_noisy_images_were_averaged(tmp_path):
    source(tmp_path)
    for changes, known in [({"content": "noisy", "pad": 0, "resolution": 4}, 2), ({}, None)]:
        run(tmp_path, **changes)
        info = ImageStore.open(tmp_path / "data/prepare").meta.info
        assert info.get("averaged") == known
        assert set(info) - {"averaged"} == {"content", "source_sha256"}


def test_a_full_disk_leaves_no_store(tmp_path):
    write_parquet(tmp_path / "mine.parquet", [png(x) for x in random_images(64, 32, 32)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            run(tmp_path, resolution=32, pad=0, shard_size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_of(tmp_path / "data/prepare") == {}
    run(tmp_path, resolution=32, pad=0, shard_size=64)
    np.testing.assert_array_equal(
        ImageStore.open(tmp_path / "data/prepare").raw()[0], random_images(64, 32, 32)[:, None]
    )
