"""The estimated noise level: its interval holds the truth, its checks fire when they should."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from stage_helpers import ROOT, Recorder, params_with

from dsd.corruption.noise_level import choose_sample, estimate_noise, take_sample
from dsd.corruption.noise_patches import cross_fit, cut_patches
from dsd.sources.reader import Reader, find_images
from dsd.storage.image_store import Block, ImageStore, write_store
from dsd.utils.errors import DataError
from dsd.utils.philox import noise_of
from pipeline.execution.run import run_stage
from pipeline.params.model import Params
from pipeline.reports.noise import show_noise
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt


def boxes(count, channels=1, size=16, seed=0):
    """Bright boxes on grey ground: flat places and sharp edges."""
    rng = np.random.default_rng(seed)
    images = np.full((count, channels, size, size), -0.2)
    for image in images:
        for _ in range(2):
            top, left = rng.integers(0, size, 2)
            high, wide = rng.integers(2, size, 2)
            image[:, top : top + high, left : left + wide] = rng.uniform(
                -0.9, 0.9, (channels, 1, 1)
            )
    return images


def white(images, sigma, seed=1):
    return images + sigma * np.random.default_rng(seed).standard_normal(images.shape)


def every_other_blank(images):
    return images * (np.arange(len(images)) % 2).reshape(-1, 1, 1, 1)


def estimate(images):
    return estimate_noise(torch.from_numpy(images.astype(np.float32)))


def fired(found):
    return {check.name for check in found.suspicious}


def value_of(found, name):
    (check,) = (check for check in found.checks if check.name == name)
    return check.value


@pytest.fixture(scope="module")
def clothes():
    source = find_images("parquet", ROOT / "data/embedded/fashion-mnist.parquet", None)
    reader = Reader(source, pad=2, resolution=16, on_error="raise", max_images=600)
    return np.concatenate([*reader.blocks()]) / 127.5 - 1


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_the_interval_holds_the_truth_on_real_images_and_is_narrow(clothes, sigma, seed):
    found = estimate(white(clothes, sigma, seed))
    assert found.low <= sigma <= found.high
    assert found.high - found.low < 0.12 * sigma


def test_the_interval_spans_the_disagreement_of_the_estimates_where_texture_is_everywhere(clothes):
    small = clothes.reshape(600, 1, 8, 2, 8, 2).mean((3, 5))
    found = estimate(white(small, 0.1))
    chance = 1.96 * found.error
    assert found.low <= 0.1 < found.sigma - chance
    assert found.high > max(found.alternatives.values()) > found.sigma + chance


def test_real_texture_is_not_taken_for_strange_noise(clothes):
    for seed in range(3):
        # At full contrast and little noise, a third of the clothes have no flat place.
        assert not fired(estimate(white(clothes, 0.05, seed)))


@settings(max_examples=8)
@given(sigma=st.floats(0.02, 1.0), channels=st.sampled_from([1, 2, 3, 5]), seed=st.integers(0, 99))
def test_the_interval_holds_the_truth_on_drawn_images(sigma, channels, seed):
    found = estimate(white(boxes(250, channels, seed=seed), sigma, seed))
    assert found.low <= sigma <= found.high
    assert found.high - found.low < 0.2 * sigma


def test_pure_noise_is_measured_without_bias_and_with_the_stated_error():
    shape = (64, 1, 16, 16)
    found = [estimate(white(np.zeros(shape), 0.3, seed)) for seed in range(30)]
    sigma = np.array([one.sigma for one in found])
    error = np.mean([one.error for one in found])
    # Values of one estimate: 64 * 16 patches, an eighth of them, 3 quiet directions.
    assert error == pytest.approx(0.3 / np.sqrt(2 * 64 * 16 / 8 * 3), rel=0.15)
    assert sigma.std() == pytest.approx(error, rel=0.4)
    assert sigma.mean() == pytest.approx(0.3, abs=4 * error / np.sqrt(30))
    assert sum(one.low <= 0.3 <= one.high for one in found) >= 27


def test_the_interval_is_two_sided_chance_and_the_largest_disagreement_in_variances(clothes):
    found = estimate(white(clothes, 0.2))
    variance = found.sigma**2
    disagreement = max(abs(level**2 - variance) for level in found.alternatives.values())
    # 95 % of a normal law lie within 1.96 standard errors on both sides.
    chance = 1.959964 * 2 * found.sigma * found.error
    assert min(chance, disagreement) > 0.1 * max(chance, disagreement)
    assert found.high**2 - variance == pytest.approx(chance + disagreement, rel=1e-5)
    assert variance - found.low**2 == pytest.approx(chance + disagreement, rel=1e-5)


@settings(max_examples=8)
@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_units_and_brightness_do_not_matter(scale, shift):
    images = white(boxes(60), 0.2)
    expected, found = estimate(images), estimate(scale * images + scale * shift)
    for one, other in zip(
        (found.sigma, found.low, found.high, found.error),
        (expected.sigma, expected.low, expected.high, expected.error),
        strict=True,
    ):
        assert one == pytest.approx(scale * other, rel=2e-3)


def test_patches_are_chosen_by_loud_directions_that_say_nothing_of_quiet_noise():
    images = white(np.zeros((400, 1, 16, 16)), 1.0)
    patches = cut_patches(images, 4, np.zeros(images.shape, bool))
    for half in cross_fit(patches):
        energy = np.square(half.quiet).mean(-1)
        assert abs(np.corrcoef(energy.ravel(), half.loudness.ravel())[0, 1]) < 0.04
        # Directions of other images: the quietest are no quieter here than the others.
        by_direction = np.square(half.quiet).mean((0, 1))
        np.testing.assert_allclose(by_direction, 1, atol=0.1)
        np.testing.assert_allclose(half.basis.T @ half.basis, np.eye(7), atol=1e-12)
        assert half.quiet.shape == (200, 16, 7)


def test_a_patch_holds_its_pixels_less_their_mean():
    images = np.arange(2 * 2 * 9 * 8, dtype=float).reshape(2, 2, 9, 8)
    images[0, 1, :4, 4:] = 3
    clipped = np.zeros(images.shape, bool)
    clipped[1, 0, 7, 0] = True
    patches = cut_patches(images, 4, clipped)
    expected = images[1, :, 4:8, 4:]
    assert patches.values.shape == (2, 4, 32)
    np.testing.assert_array_equal(
        patches.values[1, 3], (expected - expected.mean((1, 2), keepdims=True)).ravel()
    )
    assert patches.mean[1, 3] == expected.mean()
    assert patches.usable.tolist() == [[True, False, True, True], [True, True, False, True]]


def test_the_upper_end_is_recommended_and_the_bracket_reaches_above_it():
    found = estimate(white(boxes(100), 0.1))
    assert found.recommended == found.high > found.sigma > found.low == found.bracket[0]
    assert found.bracket == tuple(sorted(found.bracket))
    assert found.bracket[1] == found.high
    assert json.loads(json.dumps(found.as_json()))["recommended"] == found.high


@pytest.mark.parametrize("channels", [1, 3])
def test_white_gaussian_noise_raises_no_alarm(channels):
    alarms = [
        check
        for seed in range(5)
        for sigma in (0.05, 0.3)
        for check in estimate(white(boxes(150, channels, seed=seed), sigma, seed)).suspicious
    ]
    assert not alarms


def correlated(images, sigma, rho):
    """Noise in which neighbours in a row correlate by ``rho`` and others do not."""
    drawn = np.random.default_rng(2).standard_normal((*images.shape[:3], images.shape[3] + 1))
    weight = (1 - np.sqrt(1 - 4 * rho**2)) / (2 * rho)
    return images + sigma * (drawn[..., 1:] + weight * drawn[..., :-1]) / np.hypot(1, weight)


@pytest.mark.parametrize("rho", [-0.35, 0.2, 0.4])
def test_correlated_noise_is_noticed_and_its_correlation_measured(rho):
    found = estimate(correlated(boxes(800), 0.2, rho))
    assert "white" in fired(found)
    check = found.checks[0]
    assert check.value == pytest.approx(rho, abs=0.05)
    assert check.text.startswith("neighbours in a row correlate by")
    assert "before any resizing" in check.text


def test_noise_that_channels_share_is_noticed():
    rng = np.random.default_rng(0)
    images = boxes(300, 3)
    common, own = rng.standard_normal((300, 1, 16, 16)), rng.standard_normal(images.shape)
    found = estimate(images + 0.1 * (np.sqrt(0.4) * common + np.sqrt(0.6) * own))
    assert "white" in fired(found)
    assert found.checks[0].value == pytest.approx(0.4, abs=0.15)
    assert found.checks[0].text.startswith("channels correlate")


@pytest.mark.parametrize(
    ("draw", "kurtosis"),
    [
        (lambda rng, shape: rng.laplace(scale=np.sqrt(0.5), size=shape), 3.0),
        (lambda rng, shape: rng.uniform(-np.sqrt(3), np.sqrt(3), shape), -1.2),
    ],
)
def test_noise_of_another_law_is_noticed_and_its_kurtosis_measured(draw, kurtosis):
    images = boxes(800)
    found = estimate(images + 0.2 * draw(np.random.default_rng(0), images.shape))
    assert fired(found) == {"gaussian"}
    assert value_of(found, "gaussian") == pytest.approx(kurtosis, rel=0.6)


def test_images_of_two_noise_levels_are_noticed():
    images = boxes(400)
    levels = np.where(np.arange(400) % 3 == 0, 0.3, 0.1)[:, None, None, None]
    found = estimate(white(images, levels))
    assert "one level" in fired(found)
    assert value_of(found, "one level") == pytest.approx(3, rel=0.2)


def shapes(count, size=16, seed=5):
    """Noise of standard deviation 1 that is not white, by name."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((count, 1, size, size))
    smooth = gaussian_filter(drawn, (0, 0, 2, 2), mode="wrap")
    return {
        "smooth": smooth / smooth.std(),
        "rows": np.repeat(rng.standard_normal((count, 1, size, 1)), size, -1),
        "columns": np.repeat(rng.standard_normal((count, 1, 1, size)), size, -2),
    }


@pytest.mark.parametrize("kind", ["smooth", "rows", "columns"])
@pytest.mark.parametrize("scene", ["boxes", "clothes"])
def test_white_noise_does_not_hide_coarse_noise(clothes, scene, kind):
    images = {"boxes": boxes(600), "clothes": clothes}[scene]
    rates = {}
    for strength in (0.0, 1.0):
        seen = [
            "flat spectrum"
            in fired(
                estimate(white(images, 0.1, seed) + strength * 0.1 * shapes(600, seed=seed)[kind])
            )
            for seed in range(5)
        ]
        rates[strength] = sum(seen)
    assert rates == {0.0: 0, 1.0: 5}


def test_texture_that_goes_on_from_patch_to_patch_does_not_raise_the_noise_beside_it():
    """Slopes of every image; only the diagonal neighbours tell them from noise."""
    place = np.arange(24) / 24
    measured = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        slopes = rng.uniform(1, 2, (300, 1, 2, 1)) * rng.choice([-1, 1], (300, 1, 2, 1))
        images = slopes[:, :, :1] * place[:, None] + slopes[:, :, 1:] * place
        measured.append(value_of(estimate(white(images, 0.1, seed)), "flat spectrum"))
    # Without what the neighbours' own noise adds it would be a quarter more.
    assert 0.9 < np.mean(measured) < 1.15


def test_partly_blank_images_are_as_noisy_as_others():
    """Blank patches are no calm ones: nothing is known of the level where only these are flat."""
    for seed in range(2):
        images = white(np.zeros((300, 1, 24, 24)), 0.2, seed)
        left = images[::3, :, :8, 20:].copy()
        images[::3] = 0
        images[::3, :, :8, 20:] = left
        found = estimate(images)
        assert value_of(found, "equal scale") < 0.3
        assert "equal scale" not in fired(found)


@pytest.mark.parametrize(("size", "count"), [(24, 1000), (32, 400)])
def test_scaling_each_image_by_itself_is_noticed(size, count):
    rates = {}
    for most in (1.0, 1.1, 1.8):
        seen = []
        for seed in range(5):
            images = white(boxes(count, size=size, seed=seed), 0.2, seed)
            scale = np.random.default_rng(seed).uniform(1, most, (count, 1, 1, 1))
            seen.append("equal scale" in fired(estimate(scale * images)))
        rates[most] = sum(seen)
    assert rates == {1.0: 0, 1.1: 0, 1.8: 5}


def test_the_spread_of_the_levels_is_measured():
    """Relative to the calmer half, whose mean variance is 1 - 0.3 * sqrt(2 / pi) of the mean."""
    found = []
    for seed in range(3):
        normal = np.random.default_rng(100 + seed).standard_normal((1000, 1, 1, 1))
        level = 0.2 * np.sqrt(1 + 0.3 * normal.clip(-3, 3))
        images = level * white(np.zeros((1000, 1, 24, 24)), 1.0, seed)
        found.append(value_of(estimate(images), "equal scale"))
    assert np.mean(found) == pytest.approx(0.3 / (1 - 0.3 * np.sqrt(2 / np.pi)), rel=0.2)


@pytest.mark.parametrize("scene", ["boxes", "clothes"])
def test_a_fixed_pattern_is_noticed_and_measured(clothes, scene):
    images = {"boxes": boxes(600), "clothes": clothes}[scene]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        noisy = white(images, 0.1, seed)
        assert "no fixed pattern" not in fired(estimate(noisy))
        for pattern in (rng.standard_normal((16, 16)), rng.standard_normal((1, 16))):
            found = estimate(noisy + 0.05 * pattern)
            assert "no fixed pattern" in fired(found)
            assert value_of(found, "no fixed pattern") == pytest.approx(0.5, abs=0.25)


def test_chance_in_few_images_is_no_fixed_pattern():
    for seed in range(3):
        found = estimate(white(np.zeros((40, 1, 32, 32)), 0.1, seed))
        assert value_of(found, "no fixed pattern") < 0.1


def test_salt_and_pepper_is_noticed():
    rng = np.random.default_rng(0)
    images = white(boxes(300), 0.05)
    hit = rng.random(images.shape) < 0.02
    assert "impulses" in fired(estimate(np.where(hit, rng.choice([-1, 1], images.shape), images)))
    gravel = images.copy()
    gravel[..., :8] += rng.uniform(-1, 1, gravel[..., :8].shape)
    assert "impulses" not in fired(estimate(gravel))


def test_noise_that_follows_the_brightness_is_noticed():
    images = boxes(800, seed=4)
    brightness = np.random.default_rng(5).uniform(-0.9, 0.9, (800, 1, 1, 1))
    images = 0.1 * images + brightness
    found = estimate(white(images, 0.1 * np.sqrt(images + 1.1)))
    assert "signal-independent" in fired(found)
    assert value_of(found, "signal-independent") > 2
    assert "signal-independent" not in fired(estimate(white(images, 0.1)))
    assert "signal-independent" not in fired(estimate(white(images, 0.1 + 0.005 * images)))


def test_clipped_pixels_are_noticed_and_left_out():
    images = 0.5 * boxes(800)
    images[:, :, :3] = 0.95
    found = estimate(white(images, 0.1).clip(-1, 1))
    assert fired(found) == {"unclipped"}
    assert 0.04 < value_of(found, "unclipped") < 0.1
    assert found.low <= 0.1 <= found.high


def test_constant_areas_are_noticed_and_left_out():
    images = white(boxes(400), 0.1)
    images[:, :, :, 12:] = 0.25
    found = estimate(images)
    assert fired(found) == {"everywhere"}
    assert value_of(found, "everywhere") == pytest.approx(0.25)
    assert found.low <= 0.1 <= found.high


def test_steps_coarser_than_the_noise_are_noticed():
    images = white(boxes(400), 0.05)
    assert "fine steps" in fired(estimate(np.round(images / 0.08) * 0.08))
    assert "fine steps" not in fired(estimate(np.round(images / 0.02) * 0.02))


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (np.zeros((19, 1, 16, 16)), "only 19 images, and 32 are needed: use more"),
        (
            every_other_blank(white(boxes(32), 0.1)),
            "only 0 patches of 4 x 4 .* 256 are needed: use more images",
        ),
        (np.zeros((99, 1, 7, 16)), "images of 16 x 7 are too small: use 8 x 8"),
        (np.full((99, 1, 16, 16), np.nan), "some pixels are NaN or infinite: repair"),
        (np.ones((99, 1, 16, 16)) * np.arange(99)[:, None, None, None], "images are constant"),
        (boxes(99).clip(-0.2, 0.2), "of the pixels are clipped .* use values from before"),
        (
            np.linspace(0, 1, 16) * np.arange(400).reshape(-1, 1, 1, 1) * np.ones((16, 1)),
            "no noise beyond rounding",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(images, problem):
    with pytest.raises(DataError, match=problem):
        estimate(images)


def stored(folder, images, **info):
    write_store(
        folder,
        [Block(images.astype(np.float32))],
        scale=1.0,
        offset=0.0,
        shard_size=100,
        info=lambda: info,
    )
    return ImageStore.open(folder)


def test_a_sample_is_a_function_of_the_seed_and_as_large_as_needed(tmp_path):
    assert choose_sample(50_000, (3, 32, 32), 0).shape == (2**22 // 3072,)
    assert choose_sample(50_000, (3, 2048, 2048), 0).shape == (2**22 // (3 * 64 * 64),)
    assert choose_sample(5, (1, 8, 8), 0).tolist() == list(range(5))
    chosen = choose_sample(50_000, (3, 32, 32), 1)
    assert torch.equal(chosen, choose_sample(50_000, (3, 32, 32), 1))
    assert not torch.equal(chosen, choose_sample(50_000, (3, 32, 32), 2))
    assert len(chosen.unique()) == len(chosen)
    assert torch.equal(chosen, chosen.sort().values)


def test_large_images_are_sampled_by_windows(tmp_path):
    numbers = np.arange(30 * 70 * 100, dtype=np.float32).reshape(30, 1, 70, 100)
    store = stored(tmp_path, numbers)
    windows = take_sample(store, 0)
    assert windows.shape == (30, 1, 64, 64)
    assert not torch.equal(take_sample(store, 1), windows)
    first = int(windows[0, 0, 0, 0])
    top, left = first // 100 % 70, first % 100
    expected = torch.from_numpy(numbers[:, :, top : top + 64, left : left + 64])
    torch.testing.assert_close(windows, expected)


# The stage and the command.


def run_corrupt(root, images, *, content, **changes):
    stored(root / "data/prepare", images, content=content)
    log = Recorder()
    keys = {"num_heldout": 30, "workers": 1, **changes}
    params = params_with(seed=3, corrupt=keys, data={"content": content, "pad": 0})
    run_stage(corrupt, params, Paths(root), log)
    parts = [ImageStore.open(root / "data/corrupt" / name) for name in ("train", "heldout")]
    report = json.loads((root / "reports/corrupt/noise.json").read_text())
    return log, parts, report


def test_an_unknown_level_is_estimated_and_its_upper_end_assumed(tmp_path):
    images = white(boxes(300), 0.15)
    log, parts, report = run_corrupt(tmp_path, images, content="noisy", sigma="auto")
    found = report["estimate"]
    assert report["sigma"] is None
    assert 0.15 < report["sigma_hat"] == found["high"] < 0.17
    for part in parts:
        levels = torch.full((len(part),), found["high"])
        torch.testing.assert_close(part.sigma, levels)
        assert torch.equal(part.all(), torch.from_numpy(images.astype(np.float32))[part.index])
        assert part.meta.info["sigma"] is None
    assert [len(part) for part in parts] == [270, 30]
    assert log.values[0] == (
        300,
        {
            "sigma_hat": found["high"],
            "sigma_estimate": found["sigma"],
            "sigma_low": found["low"],
            "sigma_high": found["high"],
        },
    )
    assert log.lines[0].startswith("noise level 0.15")
    assert "assumed from here on: 0.1" in log.lines[0]
    summary = json.loads((tmp_path / "reports/corrupt/summary.json").read_text())
    assert (summary["sigma"], summary["sigma_hat"]) == (None, found["high"])


@pytest.mark.parametrize("sigma_hat", [0.05, "auto", None])
def test_clean_images_get_the_true_noise_whatever_is_assumed(tmp_path, sigma_hat):
    images = boxes(300)
    _, parts, report = run_corrupt(
        tmp_path, images, content="clean", sigma=0.1, sigma_hat=sigma_hat
    )
    assumed = {0.05: 0.05, "auto": report["estimate"]["high"], None: 0.1}[sigma_hat]
    assert (report["sigma"], report["sigma_hat"]) == (0.1, assumed)
    assert report["estimate"]["low"] <= 0.1 <= report["estimate"]["high"]
    for part in parts:
        torch.testing.assert_close(part.sigma, torch.full((len(part),), assumed))
        noise = torch.from_numpy(noise_of(3, part.index.numpy(), (1, 16, 16)))
        expected = torch.from_numpy(images.astype(np.float32))[part.index] + 0.1 * noise
        torch.testing.assert_close(part.all(), expected)
        assert part.meta.info["sigma"] == 0.1


def test_a_level_that_is_given_needs_no_estimate_but_one_that_is_not_does(tmp_path):
    images = white(boxes(60), 0.1)[:, :, :8, :8]
    log, (train, _), report = run_corrupt(tmp_path, images, content="noisy", sigma=0.1)
    assert f"{report['problem']} (assumed: 0.1, as given)" == log.lines[0]
    assert "only 30 images, and 128 are needed" in log.lines[0]
    assert torch.equal(train.sigma, torch.full((30,), 0.1))
    with pytest.raises(DataError, match=r"only 30 .*; or set corrupt\.sigma .* to a number"):
        run_corrupt(tmp_path, images, content="noisy", sigma="auto")
    assert ImageStore.open(tmp_path / "data/corrupt/train").fingerprint == train.fingerprint


def test_a_failed_check_stops_auto(tmp_path):
    images = correlated(boxes(300), 0.2, 0.4)
    for levels in ({"sigma": "auto"}, {"sigma": 0.12, "sigma_hat": "auto"}):
        with pytest.raises(
            DataError, match=r"fails a check \(white: .*give corrupt\.sigma .*is 0"
        ):
            run_corrupt(tmp_path, images, content="noisy", **levels)
        assert not (tmp_path / "data/corrupt").exists()


@pytest.mark.parametrize("level", [0.0, 0.1, 0.14, 0.28, 5.0])
def test_a_given_level_that_the_images_contradict_stops_the_run(tmp_path, level):
    images = white(boxes(300), 0.2)
    message = rf"corrupt\.sigma is {level:g}, but the images show noise of level 0\.(19|20)"
    with pytest.raises(DataError, match=message):
        run_corrupt(tmp_path, images, content="noisy", sigma=level)
    assert not (tmp_path / "data/corrupt").exists()
    _, (train, _), _ = run_corrupt(
        tmp_path, images, content="noisy", sigma=level, trust_sigma=True
    )
    assert torch.equal(train.sigma, torch.full((270,), level))


@pytest.mark.parametrize("level", [0.17, 0.2, 0.24])
def test_a_given_level_near_the_interval_stands(tmp_path, level):
    _, (train, _), _ = run_corrupt(tmp_path, white(boxes(300), 0.2), content="noisy", sigma=level)
    assert torch.equal(train.sigma, torch.full((270,), level))


def test_a_given_level_is_compared_by_whatever_name_it_has(tmp_path):
    images = white(boxes(300), 0.2)
    with pytest.raises(DataError, match=r"corrupt\.sigma_hat is 0\.5, but the images show"):
        run_corrupt(tmp_path, images, content="noisy", sigma="auto", sigma_hat=0.5)
    # Beside a level that agrees, another one is a study of a wrong level.
    run_corrupt(tmp_path, images, content="noisy", sigma=0.2, sigma_hat=0.5)


def test_noise_that_is_not_white_contradicts_any_level(tmp_path):
    images = correlated(boxes(300), 0.2, 0.4)
    message = r"is 0\.12, but the noise of the images is not white \(white: neighbours"
    with pytest.raises(DataError, match=message):
        run_corrupt(tmp_path, images, content="noisy", sigma=0.12)
    run_corrupt(tmp_path, images, content="noisy", sigma=0.12, trust_sigma=True)


def test_coarse_noise_is_said_and_named_where_it_explains_the_level(tmp_path):
    images = white(boxes(300), 0.1) + 0.17 * shapes(300)["smooth"]
    log, _, _ = run_corrupt(tmp_path, images, content="noisy", sigma=0.1)
    assert log.lines[1].startswith(
        "suspicious noise (flat spectrum): smooth directions hold up to"
    )
    with pytest.raises(
        DataError, match=r"is 0\.2, but .* 0\.1.*\(flat spectrum: smooth directions"
    ):
        run_corrupt(tmp_path, images, content="noisy", sigma=0.2)
    with pytest.raises(DataError, match=r"fails a check \(flat spectrum"):
        run_corrupt(tmp_path, images, content="noisy", sigma="auto")


@pytest.mark.parametrize("images", [np.zeros((100, 1, 16, 16)), np.repeat(np.repeat(
    white(boxes(300, size=8), 0.2), 2, -1), 2, -2)], ids=["constant", "enlarged"])  # fmt: skip
def test_images_without_noise_contradict_a_level_above_zero(tmp_path, images):
    with pytest.raises(
        DataError, match=r"is 0\.2, but (all images are constant|the images have no)"
    ):
        run_corrupt(tmp_path, images, content="noisy", sigma=0.2)
    run_corrupt(tmp_path, images, content="noisy", sigma=0.0)


def test_a_level_from_before_averaging_is_refused_also_where_nothing_can_be_estimated(tmp_path):
    images = white(boxes(300), 0.05)
    told = r"averaged 4 x 4 pixels, .* by 4: 0\.2 of the original images is 0\.05 here"
    for some, reason in ((images, "the images show noise"), (images[:15], "pixels were averaged")):
        stored(tmp_path / "data/prepare", some, content="noisy", averaged=4)
        changes = {"sigma": 0.2, "num_heldout": 5, "workers": 1}
        data = {"content": "noisy", "pad": 0}
        with pytest.raises(DataError, match=f"0\\.2, but {reason}.*{told}"):
            run_stage(
                corrupt, params_with(corrupt=changes, data=data), Paths(tmp_path), Recorder()
            )
        for right in ({"sigma": 0.05}, {"trust_sigma": True}):
            if len(some) == 300 or "trust_sigma" in right:
                params = params_with(corrupt=changes | right, data=data)
                run_stage(corrupt, params, Paths(tmp_path), Recorder())


def test_frames_of_which_one_half_is_blank_are_no_basis_but_a_given_level_stands(tmp_path):
    images = np.full((60, 1, 16, 16), 0.2)
    images[::2] = white(images[::2], 0.2)
    with pytest.raises(DataError, match="half of the images has only 0 patches"):
        estimate(images)
    run_corrupt(tmp_path, images, content="noisy", sigma=0.2)


def test_levels_of_clean_images_are_below_what_is_compared(tmp_path):
    images = np.round(white(boxes(300), 0.004) * 127.5) / 127.5
    run_corrupt(tmp_path, images, content="noisy", sigma=0.0)


def test_images_known_to_be_clean_are_no_sample_of_the_noise(tmp_path):
    _, (train, _), report = run_corrupt(
        tmp_path, boxes(300), content="clean", sigma=0.15, clean_fraction=0.5
    )
    noisy = train.all()[train.sigma > 0]
    assert 60 < len(noisy) < 210
    assert torch.equal(take_sample(train, 0), noisy)
    assert report["estimate"]["sigma"] == pytest.approx(0.15, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": "auto"}, "corrupt.sigma is auto while data.content is clean"),
        (
            {
                "sigma_hat": "auto",
                "operator": {"kind": "mask", "keep_prob": 0.5, "further_mask_prob": 0.1},
            },
            "leaves gaps in the images: their noise cannot be estimated",
        ),
        ({"sigma_hat": 80.0}, "more than 10 in data units"),
        (
            {"sigma_hat": "auto", "trust_sigma": True},
            r"trust_sigma is true while corrupt\.sigma_hat is auto",
        ),
    ],
)
def test_levels_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        params_with(corrupt=changes)
    with pytest.raises(ValueError, match=r"clean_fraction is 0\.1, but data.content is noisy"):
        params_with(corrupt={"clean_fraction": 0.1}, data={"content": "noisy"})


def test_an_assumed_level_must_lie_below_the_samplers_too():
    values = params_with(corrupt={"sigma_hat": 2.0}).model_dump()
    values["evaluate"]["sampler"]["sigma_max"] = 1.0
    with pytest.raises(
        ValueError, match=r"sigma_max is 1 but must be above corrupt\.sigma_hat = 2"
    ):
        Params.model_validate(values)


def test_the_command_prints_estimate_checks_and_recommendation(tmp_path, capsys):
    run_corrupt(tmp_path, boxes(300), content="clean", sigma=0.1)
    show_noise(params_with(seed=3), Paths(tmp_path))
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "reports/corrupt/noise.json").read_text())["estimate"]
    assert printed.startswith("data/corrupt/train: 270 images\nnoise level 0.")
    assert f"corrupt.sigma: {report['high']:.4g}, the upper end" in printed
    assert printed.count("\n  ok  ") == len(report["checks"]) == 11
    assert f"worth a try: {report['low']:.4g}, {report['high']:.4g}, " in printed


def test_the_command_takes_noisy_images_before_they_are_split(tmp_path, capsys):
    stored(tmp_path / "data/prepare", white(boxes(300), 0.1), content="noisy")
    show_noise(params_with(), Paths(tmp_path))
    assert capsys.readouterr().out.startswith("data/prepare: 300 images\nnoise level 0.1")


def test_the_command_says_what_to_run_first(tmp_path):
    with pytest.raises(DataError, match="with `dvc repro prepare corrupt`"):
        show_noise(params_with(), Paths(tmp_path))
    stored(tmp_path / "data/prepare", boxes(10), content="clean")
    with pytest.raises(DataError, match="no noisy images yet; make them with `dvc repro corrupt`"):
        show_noise(params_with(), Paths(tmp_path))
