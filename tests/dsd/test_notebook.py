"""What a person tries first in a notebook: one level for all, wrong images, paths, printing."""

import copy
import re

import jaxtyping
import numpy as np
import pytest
import torch
from tiny_model import NETWORK, SHAPE, save_tiny_generator
from tiny_training import distillation, run_steps, teacher_training, tiny_params

import dsd
from dsd.corruption.writer import corrupt
from dsd.model.checkpoint import build_denoiser
from dsd.model.samplers import sample_teacher
from dsd.storage.image_store import ImageStore, write_store
from dsd.storage.shards import Block
from dsd.utils.errors import DataError
from dsd.utils.images import from_uint8, to_uint8
from dsd.utils.shapes import as_levels


def normal(count=3, dtype=torch.float32):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)


def pixels(count=3):
    return torch.arange(count * 64).reshape(count, *SHAPE).to(torch.uint8)


def each(level, count=3):
    return torch.full((count,), level)


@pytest.fixture(scope="module")
def denoiser():
    return build_denoiser(NETWORK, SHAPE, seed=0)


MIXTURE = dsd.GaussianMixture(torch.ones(1), torch.zeros(1, 64), 0.25 * torch.eye(64)[None])


def denoising_loss(level):
    return dsd.ambient_denoising_loss(
        MIXTURE.denoiser, normal(), sigma_y=0.0 * level, sigma=level, sigma_add=level,
        n=normal(), weighting="edm", sigma_data=0.5,
    )  # fmt: skip


TAKE_A_LEVEL = {
    "denoiser": lambda denoiser, level: denoiser(normal(), level),
    "encode": lambda denoiser, level: denoiser.encode(normal(), level)[-1],
    "loss": lambda _, level: denoising_loss(level),
    "renoise": lambda _, level: dsd.renoise(pixels(), level, seed=0),
    "exact denoiser": lambda _, level: MIXTURE.denoiser(normal(), level),
    "score": lambda _, level: MIXTURE.score(normal(), level),
    "log_prob": lambda _, level: MIXTURE.log_prob(normal(), level),
}


@pytest.mark.parametrize("name", TAKE_A_LEVEL)
@pytest.mark.parametrize("level", [0.5, 1, torch.tensor(0.5)])
def test_one_noise_level_stands_for_all_images(denoiser, name, level):
    take = TAKE_A_LEVEL[name]
    assert torch.equal(take(denoiser, level), take(denoiser, each(float(level))))


def test_one_noise_level_stands_for_all_clean_images():
    x0, numbers = normal().numpy(), np.arange(3)
    levels = np.full(3, 0.5, np.float32)
    expected = corrupt(x0, numbers, sigma=levels, seed=0)
    np.testing.assert_array_equal(corrupt(x0, numbers, sigma=0.5, seed=0), expected)


def test_a_teacher_is_sampled_with_a_number_or_a_tensor():
    one, other = (
        sample_teacher(MIXTURE.denoiser, normal(), sigma_y=level)
        for level in (0.5, torch.tensor(0.5))
    )
    assert torch.equal(one.truncated_exact, other.truncated_exact)


def test_a_teacher_is_trained_with_one_level_for_all_observations(denoiser):
    config = tiny_params().pretrain
    weights = []
    for sigma_y in (0.3, each(0.3, 30)):
        run = dsd.TeacherTraining(
            copy.deepcopy(denoiser), normal(30), sigma_y, config, seed=0, precision="float32"
        )
        run_steps(run, 1)
        weights.append(torch.cat([p.flatten() for p in run.denoiser.parameters()]))
    assert torch.equal(*weights)


def test_a_generator_is_distilled_with_one_level_for_all_observations(denoiser):
    params = tiny_params()
    weights = []
    for sigma_y in (0.3, each(0.3, 1)):
        run = dsd.Distillation(
            denoiser, sigma_y, SHAPE, params.distill, params.pretrain, seed=0, precision="float32"
        )
        run_steps(run, 1)
        weights.append(torch.cat([p.flatten() for p in run.generator.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("sigma", [each(0.5, 2), torch.ones(3, 1), -0.5, float("nan")])
def test_levels_that_fit_no_images_are_refused(denoiser, untyped, sigma):
    with pytest.raises(ValueError, match=r"sigma: .*Give"):
        denoiser(normal(), sigma)


def test_levels_are_on_the_device_and_of_the_type_of_the_samples():
    assert as_levels(0.1, normal(dtype=torch.float64)).dtype == torch.float64
    assert as_levels(0.5, normal().to("meta")).device.type == "meta"
    levels = each(0.5)
    assert as_levels(levels, normal()) is levels


@pytest.fixture
def untyped():
    """Types are not checked, as for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def classifier(images):
    return dsd.load_extractor("fashion-classifier")(images)


WRONG_IMAGES = {
    "corrupt, 8 bit": lambda _: dsd.corrupt(pixels().numpy(), np.arange(3), sigma=0.5, seed=0),
    "corrupt, tensor": lambda _: dsd.corrupt(normal(), np.arange(3), sigma=0.5, seed=0),
    "corrupt, 0 to 255": lambda _: dsd.corrupt(
        pixels().float().numpy(), np.arange(3), sigma=0.5, seed=0
    ),
    "corrupt, nan": lambda _: dsd.corrupt(
        np.full((3, *SHAPE), np.nan, np.float32), np.arange(3), sigma=0.5, seed=0
    ),
    "denoiser": lambda denoiser: denoiser(pixels(), 0.5),
    "loss": lambda _: dsd.ambient_denoising_loss(
        MIXTURE.denoiser, pixels(), sigma_y=0.0, sigma=1.0, sigma_add=1.0, n=normal(),
        weighting="edm", sigma_data=0.5,
    ),
    "training": lambda denoiser: dsd.TeacherTraining(
        denoiser, pixels(), 0.5, tiny_params().pretrain, seed=0, precision="float32"
    ),
    "renoise": lambda _: dsd.renoise(normal(), 0.5, seed=0),
    "extractor": lambda _: classifier(normal()),
    "to_uint8": lambda _: to_uint8(pixels()),
    "from_uint8": lambda _: from_uint8(normal()),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_IMAGES)
def test_images_of_the_wrong_type_or_range_give_one_message(denoiser, untyped, name):
    with pytest.raises(DataError, match=r"images.*(uint8|float|numbers)") as caught:
        WRONG_IMAGES[name](denoiser)
    assert len(str(caught.value).splitlines()) == 1


def test_a_distance_of_anything_but_moments_says_what_to_call(untyped):
    with pytest.raises(TypeError, match="a str is given, not Moments"):
        dsd.frechet_distance("generated", "clean")


def test_paths_may_be_texts(tmp_path):
    save_tiny_generator(tmp_path / "generator")
    blocks = [Block(pixels().numpy())]
    write_store(tmp_path / "store", blocks, scale=1 / 127.5, offset=-1.0, shard_size=8)
    assert dsd.load_generator(str(tmp_path / "generator")).sample(1, seed=0).shape == (1, *SHAPE)
    assert torch.equal(
        dsd.load_denoiser(str(tmp_path / "generator"))(normal(), 0.5),
        dsd.load_denoiser(tmp_path / "generator")(normal(), 0.5),
    )
    assert len(ImageStore.open(str(tmp_path / "store"))) == 3
    with pytest.raises(DataError, match="nothing-here"):
        dsd.load_extractor("inception-edm", inception_weights=str(tmp_path / "nothing-here"))


@pytest.mark.parametrize(
    ("begin", "shown"),
    [
        (teacher_training, r"TeacherStep\(images_seen=8, loss=[\d.e-]+, sigma=[\d.]+\.\.[\d.]+\)"),
        (distillation, r"DistillStep\(images_seen=8, gap=[\d.e-]+, loss_fake=[\d.e-]+, sigma="),
    ],
)
def test_a_step_prints_as_one_line(begin, shown):
    step = next(begin(tiny_params()).steps())
    assert len(str(step).splitlines()) == 1
    assert re.match(shown, str(step))


def test_a_step_without_a_fake_denoiser_prints_no_loss_of_it():
    step = next(distillation(tiny_params(distill={"divergence": "sds"})).steps())
    assert "loss_fake" not in str(step)
