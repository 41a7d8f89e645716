"""Opening the images that a stage reads."""

import pytest
from stage_helpers import Recorder, random_images

from dsd.storage.image_store import Block, ImageStore, write_store
from pipeline.stage_io.inputs import open_images
from pipeline.stage_io.paths import Paths

COUNTS = {"prepare": 3, "corrupt/train": 5, "corrupt/heldout": 2}


@pytest.mark.parametrize("name", COUNTS)
def test_the_named_images_are_opened_and_recorded_with_their_fingerprint(name, tmp_path):
    paths, log = Paths(tmp_path), Recorder()
    for other, count in COUNTS.items():
        blocks = [Block(random_images(count, 1, 8, 8))]
        write_store(paths.artifact(other), blocks, scale=1.0, offset=0.0, shard_size=100)
    store = open_images(paths, name, log)
    expected = ImageStore.open(tmp_path / "data" / name)
    assert store.fingerprint == expected.fingerprint
    assert log.datasets == [(name, expected.fingerprint, COUNTS[name], (1, 8, 8))]
