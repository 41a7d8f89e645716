"""A user's own uint16 TIFF stacks, noisy and in raw units, from the files to a generator."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny_stages import SELECTION, run, tiny

from dsd.model.checkpoint import load_generator, read_spec
from dsd.storage.image_store import ImageStore
from dsd.utils.errors import DataError, ParamsError
from pipeline.checks.check import check_before, look
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, evaluate, prepare, pretrain

SIGMA, LOW, HIGH = 60.0, 100.0, 1100.0
PATCHES = {"size": 8, "stride": None, "per_image": None, "min_contrast": 0.0}
DATA = {"source": "folder", "path": "stacks", "content": "noisy", "resolution": None,
        "intensity": {"low": LOW, "high": HIGH}, "patches": PATCHES}  # fmt: skip


def write_stacks(root, channels=1):
    """Blobs of 100 to 1100 counts under noise of 60: three stacks of pictures of two sizes."""
    random = np.random.default_rng(0)
    (root / "stacks").mkdir()
    for name, count, height, width in (("a", 6, 40, 49), ("b", 6, 40, 49), ("c", 2, 64, 33)):
        y, x = np.mgrid[:height, :width]
        phase = random.uniform(0, 6, (count, channels, 1, 1))
        clean = 600 + 250 * np.sin(0.25 * y + phase) + 200 * np.cos(0.2 * x - phase)
        noisy = clean + SIGMA * random.standard_normal(clean.shape)
        frames = noisy.round().clip(0, 65535).astype(np.uint16)
        target = root / "stacks" / f"{name}.tif"
        tifffile.imwrite(target, frames, imagej=True, metadata={"axes": "TCYX"})


def params(**changes):
    sections = {"data": DATA, "corrupt": {"sigma": SIGMA, "unit": "raw"}}
    return tiny(**{name: {**sections.get(name, {}), **changes.get(name, {})}
                   for name in {*sections, *changes}})  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("stacks")
    write_stacks(root)
    for stage in (prepare, corrupt, pretrain, distill, evaluate):
        assert check_before(stage.__name__.split(".")[-1], params(), Paths(root)) == []
        run(stage, params(), Paths(root))
    return Paths(root)


def test_raw_stacks_go_through_all_stages_to_a_report(workspace):
    summary = json.loads(workspace.summary.read_text())
    assert summary["generator"]["proximal_frechet"] >= 0
    noise = json.loads((workspace.report("corrupt") / "noise.json").read_text())
    assert noise["sigma"] == noise["sigma_hat"] == pytest.approx(SIGMA * 2 / (HIGH - LOW))
    assert noise["estimate"]["sigma"] == pytest.approx(noise["sigma"], rel=0.1)


def test_whole_pictures_are_held_out_and_the_way_back_is_kept(workspace):
    prepared = ImageStore.open(workspace.artifact("prepare"))
    train, heldout = (
        ImageStore.open(workspace.artifact("corrupt") / name) for name in ("train", "heldout")
    )
    pictures = prepared.meta.info["pictures"]
    assert pictures == [30] * 12 + [32] * 2
    assert len(train) + len(heldout) == len(prepared) == 424
    source = np.repeat(np.arange(14), pictures)
    assert not {*source[train.index]} & {*source[heldout.index]}
    assert 70 <= len(heldout) < 70 + 32
    assert heldout.intensity == train.intensity == prepared.intensity
    raw = heldout.intensity.in_raw(heldout.all().numpy())
    np.testing.assert_array_equal(raw, np.concatenate(prepared.raw())[heldout.index])


def test_a_check_counts_the_patches_of_the_pictures_that_it_opens(workspace):
    found = look(params().data, workspace.root)
    assert found.prepared == found.size == (1, 8, 8)
    # The mean of those opened stands for all 14 pictures.
    assert abs(found.count - 424) < 20


@pytest.mark.parametrize(
    ("corrupt_", "complaint"),
    [
        ({"sigma": 2.5 * SIGMA}, r"corrupt\.sigma is 0\.3 \(150 in raw units\), but the images"),
        ({"sigma": 0.12, "unit": "raw"}, r"is 0\.00024 \(0\.12 in raw units\)"),
    ],
)
def test_a_level_in_the_wrong_unit_is_refused(workspace, tmp_path, corrupt_, complaint):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepare").symlink_to(workspace.artifact("prepare"))
    with pytest.raises(DataError, match=complaint):
        run(corrupt, params(corrupt=corrupt_), Paths(tmp_path))


def test_both_models_know_the_raw_units(workspace):
    for folder in (workspace.artifact("pretrain"), workspace.artifact("distill") / "generator"):
        units = read_spec(folder).units
        assert (units.intensity.low, units.intensity.high) == (LOW, HIGH)
        assert units.intensity.dtype == "uint16"
        assert units.sigma == pytest.approx(SIGMA * 2 / (HIGH - LOW))
        assert (units.suffix, units.is_complex) == (".tif", False)


@pytest.mark.parametrize("channels", [2, 5])
def test_dyes_and_bands_go_through_all_stages_in_features_of_the_teacher(tmp_path, channels):
    write_stacks(tmp_path, channels)
    short = {"kimg": 0.064}
    changes = {
        "pretrain": {**short, "sample_every_kimg": 0.064},
        "distill": {**short, "selection": {**SELECTION, "features": "teacher"}},
        "evaluate": {"features": ["teacher"]},
    }
    wrong = params(distill=changes["distill"], evaluate={"features": ["efficientnet-lite0"]})
    with pytest.raises(ParamsError, match=f"no images of {channels} channels: choose teacher"):
        check_before("prepare", wrong, Paths(tmp_path))
    for stage in (prepare, corrupt, pretrain, distill, evaluate):
        run(stage, params(**changes), Paths(tmp_path))
    paths = Paths(tmp_path)
    assert json.loads(paths.summary.read_text())["generator"]["proximal_frechet"] >= 0
    with Image.open(paths.report("corrupt") / "images.png") as picture:
        # Dyes are green and magenta, bands stand side by side.
        width = 64 * (1 if channels == 2 else channels) + 2
        assert picture.size == (10 * width + 2, 66 + 2)
    images = load_generator(paths.artifact("distill") / "generator").sample(2, 0)
    assert images.shape == (2, channels, 8, 8)
