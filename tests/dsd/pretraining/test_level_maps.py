"""Noise levels that are known of each pixel: the loss, the draws, and the way from FITS files."""

import json

import numpy as np
import pytest
import torch
from astropy.io import fits
from stage_helpers import Recorder, params_with
from tiny_stages import NETWORK, SCHEDULE, run
from tiny_training import SHAPE, random_teacher, tiny_params

from dsd.distillation.trainer import Distillation
from dsd.pretraining.config import Weighting
from dsd.pretraining.denoising_loss import ambient_denoising_loss, mapped_denoising_loss
from dsd.pretraining.trainer import TeacherTraining
from dsd.selection.proximal import renoise
from dsd.storage.image_store import ImageStore
from dsd.theory.gaussian_mixture import GaussianMixture
from dsd.utils.errors import DataError
from dsd.utils.images import from_uint8
from pipeline.execution.run import run_stage
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, evaluate, prepare, pretrain

MAP = torch.tensor([0.0, 0.3, 0.6])
WEIGHTINGS = ("edm", "ambient-omni", "inverse-variance")
MIXTURE = GaussianMixture(
    torch.tensor([0.4, 0.6]),
    torch.tensor([[-0.8, 0.2, 0.5], [0.6, -0.4, 0.1]]),
    torch.stack([0.1 * torch.eye(3), torch.full((3, 3), 0.04) + 0.05 * torch.eye(3)]),
)


def perturbation_gradient(weighting: Weighting, step, believed=MAP):
    """Slope of the mean loss of D* + step tanh(x), and its standard error, by many draws."""
    count, random = 60_000, torch.Generator().manual_seed(1)
    x0 = MIXTURE.sample(count, generator=random).view(-1, 1, 1, 3)
    y, n = (torch.randn(x0.shape, generator=random, dtype=torch.float64) for _ in range(2))
    y = x0 + MAP * y
    sigma = torch.full((count,), 0.8, dtype=torch.float64)
    maps = believed.double().expand_as(y)
    step = torch.full((count,), step, dtype=torch.float64, requires_grad=True)
    loss = mapped_denoising_loss(
        lambda x, s: MIXTURE.denoiser(x, s) + step[:, None, None, None] * x.tanh(), y,
        sigma_y=maps, sigma=sigma, sigma_add=(0.64 - maps**2).sqrt(), n=n, weighting=weighting,
        sigma_data=0.5,
    )  # fmt: skip
    (slopes,) = torch.autograd.grad(loss.sum(), step)
    return float(slopes.mean()), float(slopes.std()) / count**0.5


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_loss_leads_to_the_clean_posterior_mean(weighting):
    slope, error = perturbation_gradient(weighting, 0.0)
    ahead, _ = perturbation_gradient(weighting, 0.2)
    assert abs(slope) < 4 * error < 0.2 * ahead


def test_one_level_for_all_pixels_leads_elsewhere():
    mean = MAP.square().mean().sqrt().expand(3)
    slope, error = perturbation_gradient("edm", 0.0, believed=mean)
    assert abs(slope) > 6 * error


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_map_of_one_level_is_that_level(weighting):
    random = torch.Generator().manual_seed(1)
    y, n = torch.randn(2, 5, 1, 4, 4, generator=random).unbind()
    sigma_y, sigma = torch.rand(2, 5, generator=random).unbind()
    sigma = sigma_y + sigma
    add = (sigma**2 - sigma_y**2).sqrt()
    rest = {"n": n, "weighting": weighting, "sigma_data": 0.5}

    def denoise(x, level):
        return x.tanh() * level[:, None, None, None]

    expected = ambient_denoising_loss(
        denoise, y, sigma_y=sigma_y, sigma=sigma, sigma_add=add, **rest
    )
    maps = [value[:, None, None, None].expand_as(y) for value in (sigma_y, add)]
    found = mapped_denoising_loss(
        denoise, y, sigma_y=maps[0], sigma=sigma, sigma_add=maps[1], **rest
    )
    torch.testing.assert_close(found, expected)


def level_maps(count):
    """Levels from 0.1 to 0.6, other ones in each image."""
    return 0.1 + 0.5 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("consistency", [False, True])
def test_training_raises_each_pixel_to_one_level(consistency):
    maps = level_maps(30)
    weight = {"consistency": {"weight": 1.0 * consistency, "batch_size": 8, "num_steps": 1}}
    params = tiny_params(pretrain=weight)
    run = TeacherTraining(
        random_teacher(params), torch.zeros(30, *SHAPE), maps, params.pretrain, seed=0,
        precision="float32",
    )  # fmt: skip
    _, *drawn = run._sample_batch(torch.Generator().manual_seed(1))
    chosen = run._order.batch(0, params.pretrain.batch_size)
    for noise in drawn[: 1 + consistency]:
        total = (maps[chosen].square() + noise.sigma_add.square()).sqrt()
        torch.testing.assert_close(total, noise.sigma[:, None, None, None].expand_as(total))
    next(run.steps())


def test_the_fake_and_proximal_fid_observe_images_with_maps_of_the_data(monkeypatch):
    maps, params = level_maps(30), tiny_params()
    run = Distillation(
        random_teacher(params), maps, SHAPE, params.distill, params.pretrain, seed=0,
        precision="float32",
    )  # fmt: skip
    _, (fake,) = run._sample_noise(torch.Generator().manual_seed(1))
    assert all(any(torch.equal(one, each) for each in maps) for one in fake.sigma_y)
    torch.testing.assert_close(fake.denoising.sigma_y, fake.sigma_y)
    seen = []
    monkeypatch.setattr(
        "dsd.distillation.trainer.denoising_step_loss",
        lambda _, y, *more: seen.append(y) or y.sum((1, 2, 3)),
    )
    run._fake_loss(torch.zeros(8, *SHAPE), fake)
    torch.testing.assert_close(seen[0], fake.sigma_y * fake.eps)
    grey = torch.full((2000, *SHAPE), 128, dtype=torch.uint8)
    noise = from_uint8(renoise(grey, maps[:1].expand(2000, -1, -1, -1) / 2, seed=1))
    torch.testing.assert_close(noise.std(0), maps[0] / 2, rtol=0.1, atol=0.01)


# From files to a generator.

DATA = {
    "source": "fits", "path": "cut-outs", "key": "SCI", "variance": "VAR", "content": "noisy",
    "intensity": {"low": 0.0, "high": 200.0}, "pad": 0, "resolution": None,
    "patches": {"size": 8, "stride": None, "per_image": None, "min_contrast": 0.0},
}  # fmt: skip
CORRUPT = {"sigma": "auto", "num_heldout": 70, "workers": 1}


def cut_outs(root, count=40, variance=None):
    (root / "cut-outs").mkdir()
    rng = np.random.default_rng(1)
    for number in range(count):
        known = rng.uniform(25, 400, (16, 24)) if variance is None else variance
        pixels = rng.normal(100, np.sqrt(np.abs(rng.uniform(25, 400, (16, 24)))))
        planes = [fits.PrimaryHDU(), fits.ImageHDU(pixels.astype(np.float32), name="SCI")]
        planes.append(fits.ImageHDU(np.asarray(known, np.float32), name="VAR"))
        fits.HDUList(planes).writeto(root / f"cut-outs/{number:02}.fits")


def params_of(**changes):
    selection = {"features": "teacher", "every_kimg": 0.08, "num_samples": 70, "save_top_k": 1}
    return params_with(
        data=DATA | changes, corrupt=CORRUPT, network=NETWORK, pretrain=SCHEDULE,
        distill={**SCHEDULE, "selection": selection},
        evaluate={"features": ["teacher"], "num_samples": 70},
        compute={"device": "cpu", "precision": "float32"},
    )  # fmt: skip


def test_a_variance_plane_leads_from_files_to_a_generator(tmp_path):
    cut_outs(tmp_path)
    paths, params, log = Paths(tmp_path), params_of(), Recorder()
    for stage in (prepare, corrupt, pretrain, distill, evaluate):
        run(stage, params, paths, log)
    assert any("0.05" in line and "to 0.2" in line for line in log.lines)
    prepared = ImageStore.open(paths.artifact("prepare"))
    with fits.open(tmp_path / "cut-outs/00.fits") as file:
        expected = np.sqrt(file["VAR"].data[:8, 8:16]) / 100
    np.testing.assert_allclose(prepared.noise_levels[1, 0].numpy(), expected, rtol=1e-6)
    for part in ("train", "heldout"):
        store = ImageStore.open(paths.artifact("corrupt") / part)
        assert torch.equal(store.noise_levels, prepared.noise_levels[store.index])
        assert torch.equal(store.sigma, store.noise_levels.flatten(1).amax(1))
    assert json.loads(paths.summary.read_text())["generator"]["proximal_frechet"] > 0
    (paths.artifact("corrupt") / "train/levels/meta.json").unlink()
    with pytest.raises(DataError, match="levels"):
        run(pretrain, params, paths)


@pytest.mark.parametrize(
    ("variance", "message"),
    [
        (-np.ones((16, 24)), "VAR holds negative numbers"),
        (np.ones((16, 16)), "planes of another kind than the images: 160 of 1 x 8 x 8, not 240"),
        (np.full((16, 24), np.nan), "NaN"),
    ],
)
def test_a_plane_that_is_no_variance_of_the_images_is_refused(tmp_path, variance, message):
    cut_outs(tmp_path, variance=variance)
    with pytest.raises(DataError, match=message):
        run_stage(prepare, params_of(), Paths(tmp_path), Recorder())
    assert not (tmp_path / "data/prepare").exists()


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("data", {"content": "clean"}, "data.content to noisy"),
        ("data", {"source": "mrc"}, "data.source to one of"),
        ("data", {"on_error": "skip"}, "data.on_error to raise"),
        ("data", {"invalid": "mask"}, "data.invalid to refuse"),
        ("data", {"intensity": None}, "data.intensity to a linear map"),
        ("data", {"patches": None, "resolution": 8}, "data.resolution to null"),
        ("corrupt", {"sigma": 0.5}, "corrupt.sigma to auto"),
        ("corrupt", {"spectrum": "auto"}, "corrupt.spectrum to white"),
        ("corrupt", {"operator": {"kind": "blur", "std": 1.0, "radius": 2}}, "corrupt.operator"),
    ],
)
def test_what_does_not_hold_for_known_variances_is_refused(section, changes, message):
    sections = {"data": DATA, "corrupt": CORRUPT}
    with pytest.raises(ValueError, match=f"data.variance is set: set {message}"):
        params_with(**(sections | {section: sections[section] | changes}))
