"""Patches of larger pictures, and one intensity map for all images."""

import json

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_helpers import Recorder, params_with

from dsd.corruption.writer import split_heldout
from dsd.sources.config import Patches
from dsd.sources.patches import count_patches, cut_patches, with_contrast
from dsd.storage.image_store import ImageStore
from dsd.utils.errors import DataError, ParamsError
from dsd.utils.intensity import PIXELS, Intensity
from pipeline.execution.run import run_stage
from pipeline.stage_io.paths import Paths
from pipeline.stages import prepare


def patches(size=8, stride=None, per_image=None, min_contrast=0.0):
    return Patches(size=size, stride=stride, per_image=per_image, min_contrast=min_contrast)


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 9), st.integers(1, 12), st.integers(9, 30), st.integers(9, 30))
def test_a_grid_holds_each_place_once(size, stride, height, width):
    picture = np.arange(2 * height * width).reshape(2, height, width)
    chosen = patches(size, stride)
    found = cut_patches(picture, chosen, 0)
    places = [(y, x) for y in range(0, height - size + 1, stride)
              for x in range(0, width - size + 1, stride)]  # fmt: skip
    assert len(found) == len(places) == count_patches(chosen, height, width)
    for patch, (y, x) in zip(found, places, strict=True):
        np.testing.assert_array_equal(patch, picture[:, y : y + size, x : x + size])


def test_random_places_depend_on_the_picture_s_number_alone():
    picture = np.arange(40 * 50).reshape(1, 40, 50)
    chosen = patches(per_image=500)
    first, again, second = (cut_patches(picture, chosen, number) for number in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    # The corners' numbers are those of the places: all rows and columns occur, and fit.
    rows, columns = np.divmod(first[:, 0, 0, 0], 50)
    assert set(rows) == set(range(33))
    assert set(columns) == set(range(43))


def test_empty_background_is_left_out_and_noise_is_no_contrast():
    random = np.random.default_rng(0)
    noise = 20 * random.standard_normal((6, 1, 64, 64))
    images = 1000 + noise
    images[3:] += np.linspace(-50, 50, 64)
    assert noise.std() > 0.6 * np.linspace(-50, 50, 64).std()
    kept = with_contrast(images, 0.01, scale=1 / 1000)
    np.testing.assert_array_equal(kept, [False] * 3 + [True] * 3)


@given(st.lists(st.integers(0, 6), min_size=2, max_size=30), st.integers(1, 20), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_no_picture_is_on_both_sides_of_the_split(pictures, num_heldout, seed):
    source = np.repeat(np.arange(len(pictures)), pictures)
    try:
        train, heldout = split_heldout(seed, len(source), num_heldout, pictures)
    except ParamsError:
        return
    assert len(heldout) >= num_heldout
    assert not {*source[train]} & {*source[heldout]}
    np.testing.assert_array_equal(np.sort(np.concatenate([train, heldout])), range(len(source)))


def test_too_few_pictures_to_hold_any_out_are_refused():
    with pytest.raises(ParamsError, match="all 1 pictures would be held out"):
        split_heldout(0, 100, 10, [100])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32", "float64"])
def test_the_map_leads_to_data_units_and_back(dtype):
    raw = np.array([0, 5, 100, 30_000]).clip(0, 255 if dtype == "uint8" else None).astype(dtype)
    intensity = Intensity(low=5.0, high=105.0, dtype=dtype)
    units = intensity.in_units(raw)
    assert units.dtype == np.float32
    np.testing.assert_allclose(units[1:3], [-1.0, 0.9], rtol=1e-6)
    back = intensity.in_raw(units)
    assert back.dtype == dtype
    np.testing.assert_allclose(back, raw, rtol=1e-6, atol=1e-4)
    assert intensity.in_raw(np.float32([-1e9]))[0] >= (0 if dtype[0] == "u" else -(10.0**12))


def test_pictures_of_8_bits_have_the_map_that_they_always_had():
    assert (PIXELS.scale, PIXELS.offset) == (1 / 127.5, -1.0)


DATA = {"source": "file", "path": "a.tif", "pad": 0, "resolution": None}


def run(root, **changes):
    log = Recorder()
    run_stage(prepare, params_with(data={**DATA, **changes}), Paths(root), log)
    summary = json.loads((root / "reports/prepare/summary.json").read_text())
    return ImageStore.open(root / "data/prepare"), summary, log.lines


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_one_map_from_percentiles_of_all_images_together(tmp_path, dtype):
    frames = np.random.default_rng(0).integers(100, 4000, (12, 16, 16)).astype(dtype)
    frames[:, 0, 0] = 4095
    tifffile.imwrite(tmp_path / "a.tif", frames)
    store, summary, lines = run(tmp_path, intensity={"percentiles": [1.0, 99.0]})
    low, high = np.percentile(frames, [1, 99])
    assert store.intensity == Intensity(low=low, high=high, dtype=dtype)
    expected = (frames - low) / (high - low) * 2 - 1
    np.testing.assert_allclose(store.all().numpy()[:, 0], expected, atol=2e-6)
    assert store.meta.layout.dtype == ("uint16" if dtype == "uint16" else "float32")
    np.testing.assert_allclose(
        store.intensity.in_raw(store.all().numpy())[:, 0], frames, atol=1e-3
    )
    assert summary["outside"] == [int((frames < low).sum()), int((frames > high).sum())]
    assert summary["saturated"] == (12 if dtype == "uint16" else 0)
    said = "\n".join(lines)
    assert f"({dtype}) became -1 to 1" in said
    assert ("12 pixels (0.39%) are saturated at 4095" in said) == (dtype == "uint16")


def test_pictures_of_several_sizes_become_patches_of_one(tmp_path):
    for name, side in (("a", 20), ("b", 33)):
        frame = np.arange(side * (side + 3), dtype=np.uint16).reshape(side, side + 3)
        tifffile.imwrite(tmp_path / f"{name}.tif", frame)
    changes = {"source": "folder", "path": ".", "intensity": {"low": 0.0, "high": 1000.0}}
    chosen = {"size": 8, "stride": None, "per_image": None, "min_contrast": 0.0}
    store, summary, _ = run(tmp_path, patches=chosen, **changes)
    assert store.meta.info["pictures"] == [4, 16]
    assert store.shape == (1, 8, 8)
    raw = np.concatenate(store.raw())[:, 0]
    np.testing.assert_array_equal(raw[0, 0], range(8))
    np.testing.assert_array_equal(raw[4 + 5, :, 0], np.arange(8, 16) * 36 + 8)
    with pytest.raises(DataError, match=r"a\.tif is 23 x 20 grey uint16, smaller than data\.patc"):
        run(tmp_path, patches={**chosen, "size": 24}, **changes)
    store, summary, _ = run(tmp_path, patches={**chosen, "size": 24}, on_error="skip", **changes)
    assert summary["count"] == 1
    few = {**chosen, "stride": 1}
    store, _, _ = run(tmp_path, patches=few, max_images=250, **changes)
    assert store.meta.info["pictures"] == [13 * 16, 250 - 13 * 16]


def test_averages_of_raw_numbers_are_not_rounded(tmp_path):
    frames = np.random.default_rng(0).integers(0, 4000, (5, 16, 16)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", frames)
    store, _, _ = run(tmp_path, resolution=8, intensity={"low": 0.0, "high": 4000.0})
    means = frames.reshape(5, 8, 2, 8, 2).mean((2, 4))
    np.testing.assert_allclose(store.all().numpy()[:, 0], means / 2000 - 1, atol=1e-6)
    assert store.intensity.dtype == "uint16"
