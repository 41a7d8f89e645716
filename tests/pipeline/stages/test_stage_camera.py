"""Images of a camera, with the noise of photons and read-out, from the files to denoised ones."""

import json

import numpy as np
import pytest
from tiny_stages import run, tiny

from dsd.storage.image_store import ImageStore
from dsd.utils.errors import DataError
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, prepare

GAIN, OFFSET, READ_NOISE = 2.0, 100.0, 4.0
AUTO = {"gain": "auto", "offset": OFFSET, "read_noise": "auto"}


def photons(count=300, side=32):
    """Blobs of 20 to 400 photons."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    phase = random.uniform(0, 6, (count, 1, 1, 1))
    wave = np.sin(0.2 * y + phase) + np.cos(0.15 * x - 2 * phase)
    return 20 + 95 * (wave + 2)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root, random = tmp_path_factory.mktemp("camera"), np.random.default_rng(1)
    clean = photons()
    read_noise = READ_NOISE * random.standard_normal(clean.shape)
    raw = np.rint(GAIN * random.poisson(clean) + OFFSET + read_noise).astype(np.uint16)
    np.save(root / "raw.npy", raw[:, 0])
    return root


def params(source, camera=AUTO, **corrupt_):
    data = {"source": "array", "path": str(source / "raw.npy"), "content": "noisy",
            "resolution": None, "axes": "TYX",
            "intensity": {"camera": camera, "percentiles": [0.1, 99.9]}}  # fmt: skip
    return tiny(data=data, corrupt={"sigma": "auto", **corrupt_})


def test_camera_noise_is_estimated_and_becomes_white_noise_of_a_known_level(source, tmp_path):
    chosen, paths = params(source), Paths(tmp_path)
    run(prepare, chosen, paths)
    run(corrupt, chosen, paths)
    store = ImageStore.open(paths.artifact("corrupt") / "train")
    camera = store.intensity.camera
    assert camera.gain == pytest.approx(GAIN, rel=0.1)
    assert camera.offset == OFFSET
    assert camera.read_noise == pytest.approx(READ_NOISE, rel=0.5)
    assert store.sigma.unique().item() == pytest.approx(store.intensity.scale)
    found = json.loads((paths.report("corrupt") / "noise.json").read_text())["estimate"]
    assert found["sigma"] == pytest.approx(store.intensity.scale, rel=0.05)
    failed = {check["name"] for check in found["checks"] if check["verdict"] != "ok"}
    assert not failed & {"signal-independent", "gaussian", "white"}
    back = store.intensity.in_raw(store.all().numpy(), noisy=True)
    np.testing.assert_array_equal(back[:, 0], np.load(source / "raw.npy")[store.index])


@pytest.mark.parametrize(
    ("camera", "complaint"),
    [({"gain": 8.0}, r"should make noise of level .* but the images show noise of level"),
     ({"gain": 0.5, "read_noise": 0.0}, r"data\.intensity\.camera \(gain 0\.5,")],
)  # fmt: skip
def test_a_wrong_camera_stops_corrupt(source, tmp_path, camera, complaint):
    chosen = params(source, {"gain": GAIN, "offset": OFFSET, "read_noise": READ_NOISE, **camera})
    run(prepare, chosen, Paths(tmp_path))
    with pytest.raises(DataError, match=complaint):
        run(corrupt, chosen, Paths(tmp_path))
