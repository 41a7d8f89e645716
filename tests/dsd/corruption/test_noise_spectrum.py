"""The estimated spectrum holds the truth, and the stage and its successors use it."""

import json

import numpy as np
import pytest
import torch
from stage_helpers import Recorder, params_with
from test_noise_level import run_corrupt

from dsd.corruption.noise_spectrum import estimate_spectrum
from dsd.operators.gaussian_noise import GaussianNoise
from dsd.utils.errors import DataError, ParamsError
from pipeline.checks.check import check_before
from pipeline.checks.needs import Prepared, require
from pipeline.execution.run import run_stage
from pipeline.reports.noise import show_noise
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt
from sandbox.scenes import KERNELS, correlated, scenes, true_spectrum

SIGMA = 0.2


def noisy(kernel, seed, side=48, count=300, channels=1):
    rng = np.random.default_rng(seed)
    images = np.repeat(scenes(rng, count, side, 2), channels, 1)
    return images + SIGMA * correlated(rng, kernel, images.shape)


@pytest.mark.parametrize("name", KERNELS)
def test_the_intervals_hold_the_spectrum_and_the_level(name):
    for seed in range(3):
        found = estimate_spectrum(noisy(KERNELS[name], seed))
        truth = SIGMA**2 * true_spectrum(KERNELS[name], found.reach)[None]
        assert found.contains(truth)
        assert float(found.half_width.mean()) < SIGMA**2
        assert found.level.low < SIGMA < found.level.high < 1.1 * SIGMA
        assert not found.level.suspicious
        others = [other for other in KERNELS.values() if other is not KERNELS[name]]
        wrong = [SIGMA**2 * true_spectrum(other, found.reach)[None] for other in others]
        assert sum(map(found.contains, wrong)) <= 1


def test_each_channel_has_its_own_spectrum():
    images = noisy(KERNELS["white"], 1, channels=2)
    images[:, 1:] = noisy(KERNELS["along rows"], 2)
    found = estimate_spectrum(images)
    middle = found.reach
    row = found.covariance[:, middle, middle + 1] / found.covariance[:, middle, middle]
    assert row == pytest.approx([0, 2 / 3], abs=0.08)


def test_stars_in_flat_places_do_not_count():
    images = noisy(KERNELS["along rows"], 1)
    places = np.random.default_rng(2).integers(0, 48, (len(images), 2))
    images[np.arange(len(images)), 0, places[:, 0], places[:, 1]] += 5
    found = estimate_spectrum(images)
    assert found.level.low < SIGMA < found.level.high < 1.1 * SIGMA


@pytest.mark.parametrize(("side", "count"), [(23, 200), (24, 20)])
def test_too_little_is_refused_with_what_would_help(side, count):
    with pytest.raises(DataError, match=r"spectrum cannot be estimated.*corrupt\.spectrum"):
        estimate_spectrum(noisy(KERNELS["white"], 1, side=side, count=count))


def test_the_stage_estimates_stores_and_reports_the_spectrum(tmp_path, capsys):
    kernel = KERNELS["averaged 3 x 3"]
    log, parts, report = run_corrupt(
        tmp_path, noisy(kernel, 1), content="noisy", sigma="auto", spectrum="auto"
    )
    assert log.lines[0].startswith("the noise is correlated: neighbours by +0.6")
    assert SIGMA < report["sigma_hat"] == report["estimate"]["high"] < 1.1 * SIGMA
    laws = [GaussianNoise.of_store(part.meta.info) for part in parts]
    assert laws[0].same_as(laws[1])
    drawn = laws[0].draw((300, 1, 20, 20), torch.Generator())
    row = (drawn[..., 1:] * drawn[..., :-1]).mean()
    diagonal = (drawn[..., 1:, 1:] * drawn[..., :-1, :-1]).mean()
    assert [float(row), float(diagonal)] == pytest.approx([2 / 3, 4 / 9], abs=0.06)
    show_noise(params_with(data={"content": "noisy", "pad": 0}), Paths(tmp_path))
    assert "noise level 0.20" in capsys.readouterr().out


def test_the_command_says_that_noise_is_correlated_and_what_to_set(tmp_path, capsys):
    images = noisy(KERNELS["interpolated"], 1)
    run_corrupt(tmp_path, images, content="noisy", sigma=SIGMA, trust_sigma=True)
    show_noise(params_with(data={"content": "noisy", "pad": 0}), Paths(tmp_path))
    shown = capsys.readouterr().out
    assert "correlated noise: neighbours by +0.6" in shown
    assert "corrupt.spectrum: auto" in shown


def test_white_noise_is_not_called_correlated(tmp_path, capsys):
    run_corrupt(tmp_path, noisy(KERNELS["white"], 1), content="noisy", sigma=SIGMA)
    show_noise(params_with(data={"content": "noisy", "pad": 0}), Paths(tmp_path))
    assert "correlated noise" not in capsys.readouterr().out


def test_a_file_gives_clean_images_its_noise(tmp_path):
    np.save(tmp_path / "kernel.npy", KERNELS["along rows"])
    clean = np.zeros((300, 1, 16, 16))
    _, (train, _), _ = run_corrupt(
        tmp_path, clean, content="clean", sigma=0.3, spectrum="kernel.npy"
    )
    y = train.all()
    found = [float(y.std()), float((y[..., 1:] * y[..., :-1]).mean() / y.var())]
    assert found == pytest.approx([0.3, 2 / 3], abs=0.01)


def test_stripes_are_beyond_the_reach_and_stop_the_run(tmp_path):
    images = noisy(KERNELS["white"], 1)
    images += SIGMA * np.random.default_rng(3).standard_normal((len(images), 1, 48, 1))
    with pytest.raises(DataError, match=r"pixels of a row more than 5 apart correlate.*frames"):
        run_corrupt(tmp_path, images, content="noisy", sigma=0.28, spectrum="auto")
    assert not (tmp_path / "data/corrupt").exists()


def test_a_level_that_the_correlated_noise_contradicts_stops_the_run(tmp_path):
    images = noisy(KERNELS["interpolated"], 1)
    with pytest.raises(DataError, match=r"is 0\.5, but the images show noise of level 0\.2"):
        run_corrupt(tmp_path, images, content="noisy", sigma=0.5, spectrum="auto")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"content": "clean"}, "corrupt": {"spectrum": "auto"}}, "data.content is clean"),
        ({"corrupt": {"spectrum": "noise.npy", "operator": {
            "kind": "mask", "keep_prob": 0.5, "further_mask_prob": 0.1,
        }}}, "correlated noise would tell of what is hidden"),
        ({"corrupt": {"spectrum": "auto", "sigma": 0.2}, "data": {
            "content": "noisy", "pad": 0, "resolution": None, "invalid": "mask",
            "intensity": {"low": 0.0, "high": 1.0},
        }}, "while data.invalid is mask"),
        ({"corrupt": {"spectrum": "pink"}}, "String should match"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        params_with(**changes)


def test_small_images_are_refused_before_anything_runs():
    noisy_data = {"content": "noisy", "pad": 0, "resolution": None}
    params = params_with(data=noisy_data, corrupt={"spectrum": "auto", "num_heldout": 500})
    with pytest.raises(
        ParamsError, match="images of 16 x 16 are too small to estimate it: use 24"
    ):
        require(params, Prepared(5000, (1, 16, 16)))


def test_a_missing_file_is_named(tmp_path):
    run_corrupt(tmp_path, np.zeros((300, 1, 16, 16)), content="clean", sigma=0.3)
    before = json.loads((tmp_path / "data/corrupt/train/meta.json").read_text())
    params = params_with(corrupt={"spectrum": "gone.npy", "num_heldout": 30}, data={"pad": 0})
    for work in (
        lambda: run_stage(corrupt, params, Paths(tmp_path), Recorder()),
        lambda: check_before("corrupt", params, Paths(tmp_path)),
    ):
        with pytest.raises(ParamsError, match=r"gone\.npy cannot be read \(FileNotFoundError\)"):
            work()
    assert json.loads((tmp_path / "data/corrupt/train/meta.json").read_text()) == before
