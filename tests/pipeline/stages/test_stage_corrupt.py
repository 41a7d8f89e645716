import json

import numpy as np
import pytest
import torch
from PIL import Image
from stage_helpers import Recorder, params_with, random_images

from dsd.corruption.noise_level import estimate_noise
from dsd.storage.image_store import Block, ImageStore, write_store
from dsd.utils.errors import DataError, ParamsError
from dsd.utils.philox import noise_of
from pipeline.execution.run import run_stage
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt

COUNT = 40


def prepared(root, *, content="clean", shard_size=8):
    write_store(
        root / "data/prepare",
        [Block(random_images(COUNT, 1, 8, 8))],
        scale=1 / 127.5,
        offset=-1.0,
        shard_size=shard_size,
        info=lambda: {"content": content},
    )


def run(root, *, seed=3, **changes):
    log = Recorder()
    keys = {"sigma": 0.5, "num_heldout": 6, "workers": 1, **changes}
    run_stage(corrupt, params_with(seed=seed, corrupt=keys), Paths(root), log)
    return log


def stores(root):
    return [ImageStore.open(root / "data/corrupt" / name) for name in ("train", "heldout")]


def test_each_image_is_observed_once_in_one_of_two_parts(tmp_path):
    prepared(tmp_path)
    run(tmp_path)
    x0 = ImageStore.open(tmp_path / "data/prepare").all()
    train, heldout = stores(tmp_path)
    assert (len(train), len(heldout)) == (34, 6)
    assert sorted([*train.index.tolist(), *heldout.index.tolist()]) == list(range(COUNT))
    for part in (train, heldout):
        noise = torch.from_numpy(noise_of(3, part.index.numpy(), (1, 8, 8)))
        torch.testing.assert_close(part.all() - x0[part.index], 0.5 * noise, atol=1e-6, rtol=0)
        assert torch.equal(part.sigma, torch.full((len(part),), 0.5))
    assert train.all().abs().max() > 1


def test_some_training_images_may_stay_clean_but_none_of_those_held_out(tmp_path):
    prepared(tmp_path)
    run(tmp_path, clean_fraction=0.5)
    x0 = ImageStore.open(tmp_path / "data/prepare").all()
    train, heldout = stores(tmp_path)
    clean = train.sigma == 0
    assert 5 < clean.sum() < 29
    assert torch.equal(train.all()[clean], x0[train.index[clean]])
    assert (heldout.sigma == 0.5).all()
    assert (train.all() - x0[train.index])[~clean].std() == pytest.approx(0.5, rel=0.1)
    summary = json.loads((tmp_path / "reports/corrupt/summary.json").read_text())
    noise = [(part.all() - x0[part.index])[part.sigma > 0] for part in (train, heldout)]
    assert summary["measured_sigma"] == pytest.approx(float(torch.cat(noise).std()), rel=1e-3)


def test_the_assumed_level_is_stored_and_the_true_one_added(tmp_path):
    prepared(tmp_path)
    run(tmp_path, sigma_hat=0.7, clean_fraction=0.25)
    x0 = ImageStore.open(tmp_path / "data/prepare").all()
    train, heldout = stores(tmp_path)
    assert {*train.sigma.tolist()} == {0.0, np.float32(0.7)}
    assert {*heldout.sigma.tolist()} == {np.float32(0.7)}
    for part in (train, heldout):
        noise = (part.all() - x0[part.index])[part.sigma > 0]
        assert float(noise.std()) == pytest.approx(0.5, rel=0.08)
    assert 3 <= int((train.sigma == 0).sum()) <= 15
    assert set(train.index.tolist()).isdisjoint(heldout.index.tolist())
    for name in ("summary.json", "noise.json"):
        found = json.loads((tmp_path / "reports/corrupt" / name).read_text())
        assert (found["sigma"], found["sigma_hat"]) == (0.5, 0.7)


def test_the_estimate_is_that_of_the_noisy_training_images(tmp_path):
    """With noise on all of them, also where some stay clean afterwards."""
    write_store(
        tmp_path / "data/prepare",
        [Block(random_images(170, 1, 1, 1).repeat(8, 2).repeat(8, 3))],
        scale=1 / 127.5,
        offset=-1.0,
        shard_size=64,
        info=lambda: {"content": "clean"},
    )
    log = run(tmp_path, sigma=0.3, num_heldout=30, clean_fraction=0.5)
    train, _ = stores(tmp_path)
    noise = torch.from_numpy(noise_of(3, train.index.numpy(), (1, 8, 8)))
    y = ImageStore.open(tmp_path / "data/prepare").all()[train.index] + 0.3 * noise
    expected = estimate_noise(y)
    found = json.loads((tmp_path / "reports/corrupt/noise.json").read_text())["estimate"]
    for name in ("sigma", "low", "high", "error", "images", "patches"):
        assert found[name] == pytest.approx(getattr(expected, name), rel=1e-4), name
    assert found["images"] == 140
    logged = {name: value for _, values in log.values for name, value in values.items()}
    assert logged["sigma_hat"] == 0.3
    for name in ("sigma_estimate", "sigma_low", "sigma_high"):
        assert logged[name] == found[name.replace("_estimate", "").replace("sigma_", "")]


def test_summary_line_and_metrics_tell_the_measured_level(tmp_path):
    prepared(tmp_path)
    log = run(tmp_path)
    summary = json.loads((tmp_path / "reports/corrupt/summary.json").read_text())
    assert (summary["train"], summary["heldout"], summary["sigma"]) == (34, 6, 0.5)
    x0 = ImageStore.open(tmp_path / "data/prepare").all()
    noise = np.concatenate([(part.all() - x0[part.index]).numpy() for part in stores(tmp_path)])
    assert summary["measured_sigma"] == pytest.approx(noise.std(), rel=1e-4)
    psnr = 10 * np.log10(4 / np.square(noise).mean())
    assert summary["psnr_db"] == pytest.approx(psnr, rel=1e-4)
    assert log.values == [
        (COUNT, {key: summary[key] for key in ("measured_sigma", "psnr_db")}),
    ]
    assert log.lines[-1].startswith("34 noisy images and 6 held out, measured_sigma 0.")
    assert log.bars[0].seen == [8, 16, 24, 32, 34, 40, "closed"]


def test_the_picture_shows_clean_images_above_noisy_ones(tmp_path):
    prepared(tmp_path)
    run(tmp_path, sigma=0.1)
    picture = np.asarray(Image.open(tmp_path / "reports/corrupt/images.png").convert("L"))
    assert picture.shape == (2 * 66 + 2, 10 * 66 + 2)
    train, _ = stores(tmp_path)
    noisy = np.clip(np.floor(train.all().numpy()[:, 0] * 127.5 + 128), 0, 255)
    for number in range(10):
        left = 2 + 66 * number
        clean = random_images(COUNT, 1, 8, 8)[train.index[number], 0]
        np.testing.assert_array_equal(picture[2:66:8, left : left + 64 : 8], clean)
        np.testing.assert_array_equal(picture[68:132:8, left : left + 64 : 8], noisy[number])


def test_another_seed_gives_other_noise_and_another_split(tmp_path):
    prepared(tmp_path)
    run(tmp_path)
    first, _ = stores(tmp_path)
    before, index = first.all(), first.index
    run(tmp_path, seed=4)
    second, _ = stores(tmp_path)
    assert not torch.equal(second.index, index)
    assert not torch.equal(second.all(), before)


def test_observations_are_taken_as_they_are_and_nothing_is_claimed_of_their_noise(tmp_path):
    prepared(tmp_path, content="noisy")
    log = run(tmp_path, sigma=0.2)
    train, _ = stores(tmp_path)
    x = ImageStore.open(tmp_path / "data/prepare").all()
    assert torch.equal(train.all(), x[train.index])
    assert torch.equal(train.sigma, torch.full((34,), 0.2))
    summary = json.loads((tmp_path / "reports/corrupt/summary.json").read_text())
    assert summary == {"train": 34, "heldout": 6, "sigma": 0.2, "sigma_hat": 0.2}
    assert log.lines[-1] == "34 noisy images and 6 held out"


def test_without_noise_the_psnr_is_left_out(tmp_path):
    prepared(tmp_path)
    run(tmp_path, sigma=0.0)
    summary = json.loads((tmp_path / "reports/corrupt/summary.json").read_text())
    assert summary["measured_sigma"] == 0
    assert "psnr_db" not in summary


@pytest.mark.parametrize("num_heldout", [COUNT, 2000])
def test_holding_out_everything_is_refused(tmp_path, num_heldout):
    prepared(tmp_path)
    with pytest.raises(ParamsError, match=r"corrupt\.num_heldout is .* only 40 images: lower it"):
        run(tmp_path, num_heldout=num_heldout)
    assert not (tmp_path / "data/corrupt").exists()


def test_a_damaged_input_is_refused(tmp_path):
    prepared(tmp_path)
    path = tmp_path / "data/prepare/part-00001.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"part-00001\.arrow is damaged"):
        run(tmp_path)
