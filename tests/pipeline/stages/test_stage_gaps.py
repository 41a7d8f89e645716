"""Noisy images with NaN and infinite pixels, which were not observed, through all stages."""

import json

import numpy as np
import pytest
import torch
from tiny_stages import run, tiny

from dsd.operators.operator import Operator
from dsd.storage.image_store import ImageStore
from dsd.utils.errors import DataError
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, evaluate, prepare, pretrain

SIGMA, COUNT = 60.0, 400


def write_gaps(root):
    """Blobs under noise of 60; a third of them lack a random column, and one pixel each."""
    random = np.random.default_rng(0)
    y = np.arange(8)[:, None]
    phase = random.uniform(0, 6, (COUNT, 1, 1))
    images = 600 + 250 * np.sin(0.25 * y + phase) + SIGMA * random.standard_normal((COUNT, 8, 8))
    images = images.astype(np.float32)
    gaps = np.zeros(images.shape, bool)
    for number in range(0, COUNT, 3):
        gaps[number, :, random.integers(8)] = True
        gaps[number, 3, random.integers(8)] = True
    images[gaps] = np.nan
    images[0][gaps[0]] = np.inf
    images[1, 0, 0] = 600.0  # in data units exactly 0, and observed
    np.save(root / "raw.npy", images)
    return gaps


def params(**data):
    source = {"source": "array", "path": "raw.npy", "axes": "TYX", "content": "noisy",
              "resolution": None, "intensity": {"low": 100.0, "high": 1100.0}}  # fmt: skip
    return tiny(
        data={**source, "invalid": "mask", **data}, corrupt={"sigma": SIGMA, "unit": "raw"}
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("gaps")
    gaps = write_gaps(root)
    for stage in (prepare, corrupt, pretrain, distill, evaluate):
        run(stage, params(), Paths(root))
    return Paths(root), gaps


def test_gaps_are_the_views_of_the_operator_mask(workspace):
    paths, gaps = workspace
    store = ImageStore.open(paths.artifact("corrupt") / "train")
    operator = Operator.of_store(store.meta.info)
    assert operator.choice.kind == "mask"
    assert operator.choice.keep_prob == pytest.approx(1 - gaps.mean())
    view = operator.stored_view(store.meta.info, store.index.numpy(), store.all())
    torch.testing.assert_close(view[:, 0], torch.from_numpy(~gaps[store.index]))
    assert store.sigma.unique().item() == pytest.approx(SIGMA * 2 / 1000)


def test_all_stages_learn_from_what_was_observed(workspace):
    paths, _ = workspace
    summary = json.loads(paths.summary.read_text())
    assert summary["generator"]["proximal_frechet"] >= 0
    estimate = json.loads((paths.report("corrupt") / "noise.json").read_text())
    assert "problem" in estimate or estimate["estimate"]["images"] < COUNT


def test_gaps_are_refused_unless_they_are_to_be_masked(tmp_path):
    write_gaps(tmp_path)
    with pytest.raises(DataError, match=r"pixels of 64 that are NaN or infinite.*invalid to mask"):
        run(prepare, params(invalid="refuse"), Paths(tmp_path))
    np.save(tmp_path / "raw.npy", np.full((3, 8, 8), np.nan, np.float32))
    with pytest.raises(DataError, match="64 pixels of 64 that are NaN"):
        run(prepare, params(), Paths(tmp_path))


@pytest.mark.parametrize("change", [{"content": "clean"}, {"resolution": 4}, {"intensity": None}])
def test_gaps_need_noisy_images_of_measured_pixels(change):
    with pytest.raises(ValueError, match=r"data\.invalid is mask while data\."):
        params(**change)
