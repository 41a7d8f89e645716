"""Correlated noise: its covariance, and that no place draws another one."""

import numpy as np
import pytest
import torch
from stage_helpers import params_with
from tiny_training import SHAPE, random_teacher, tiny_params

from dsd.corruption.noise_kernel import kernel_of, read_kernel
from dsd.corruption.writer import Noise, write_noisy_store
from dsd.distillation.trainer import Distillation
from dsd.evaluation.memorisation import _observed
from dsd.model.checkpoint import build_denoiser, load_denoiser, save_model
from dsd.model.denoiser import Denoiser
from dsd.model.generator import OneStepGenerator
from dsd.model.samplers import EDM_SAMPLER, sample_teacher
from dsd.operators.config import IdentityOperator
from dsd.operators.gaussian_noise import WHITE, GaussianNoise
from dsd.operators.operator import Operator
from dsd.pretraining.trainer import TeacherTraining
from dsd.selection.proximal import renoise
from dsd.storage.image_store import Block, ImageStore, write_store
from dsd.utils.errors import ParamsError
from dsd.utils.images import from_uint8

IDENTITY = IdentityOperator(kind="identity")
ROW, COLUMN = 2 / 3, -0.5
KERNEL = torch.outer(torch.tensor([0.0, 1.0, -1.0]), torch.ones(3))[None]
"""Neighbours of a row correlate by 2/3, of a column by -1/2."""

NOISE = GaussianNoise(KERNEL)
COUNT = 1500


def correlations(noise):
    """Variance, and correlation of neighbours along a row and along a column."""
    variance = noise.square().mean()
    row = (noise[..., 1:] * noise[..., :-1]).mean() / variance
    column = (noise[..., 1:, :] * noise[..., :-1, :]).mean() / variance
    return float(variance), float(row), float(column)


def test_white_noise_is_torchs_own_bit_for_bit():
    random = [torch.Generator().manual_seed(1) for _ in range(2)]
    shape = (3, 2, 5, 4)
    assert torch.equal(WHITE.draw(shape, random[0]), torch.randn(shape, generator=random[1]))
    assert WHITE.state_dict() == {}
    z = torch.randn(2, 1, 3, 3)
    assert WHITE.colour(z) is z


@pytest.mark.parametrize("shape", [(1, 5, 8), (2, 9, 6)])
def test_the_noise_has_the_covariance_of_its_kernel_and_independent_borders(shape):
    kernel = torch.rand(shape[0], 3, 5, generator=torch.Generator().manual_seed(1)) - 0.3
    law = GaussianNoise(kernel)
    noise = law.draw((20_000, *shape), torch.Generator().manual_seed(2)).double()
    weights = (kernel.double() / kernel.double().square().sum((1, 2), keepdim=True).sqrt()).numpy()
    places = [(c, y, x) for c in range(shape[0]) for y in range(shape[1]) for x in range(shape[2])]
    expected = np.zeros((len(places),) * 2)
    for i, (c, y, x) in enumerate(places):
        for j, (other, v, u) in enumerate(places):
            dy, dx = abs(v - y), (u - x) * (1 if v >= y else -1)
            if other == c and dy < 3 and abs(dx) < 5:
                a, b = weights[c][dy:], weights[c][: 3 - dy]
                a, b = (a[:, dx:], b[:, : 5 - dx]) if dx >= 0 else (a[:, :dx], b[:, -dx:])
                expected[i, j] = (a * b).sum()
    found = noise.flatten(1).T.cov().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.045)


def test_latents_keep_their_shape_and_get_the_spectrum():
    z = torch.randn(COUNT, 1, 6, 7, generator=torch.Generator().manual_seed(1))
    coloured = NOISE.colour(z)
    assert coloured.shape == z.shape
    assert correlations(coloured) == pytest.approx((1, ROW, COLUMN), abs=0.03)
    rolled = NOISE.colour(z.roll((1, 2), (-2, -1)))
    torch.testing.assert_close(rolled, coloured.roll((1, 2), (-2, -1)))


class Recorder(torch.nn.Module):
    """A network that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, c_noise):
        self.seen.append(x / x.std())
        return 0 * x


def recorder():
    return Denoiser(Recorder(), sigma_data=0.5, noise=NOISE)


def teacher_noise(consistency):
    params = params_with(
        pretrain={
            "batch_size": COUNT,
            "consistency": {"weight": 1.0 * consistency, "batch_size": COUNT, "num_steps": 1},
        }
    )
    training = TeacherTraining(
        with_noise(), torch.zeros(COUNT, *SHAPE), 0.3, params.pretrain, seed=0,
        precision="float32",
    )  # fmt: skip
    _, drawn, more = training._sample_batch(torch.Generator().manual_seed(1))
    return drawn.n if more is None else torch.cat([more.n[:, None], more.walk, more.ends], 1)


def with_noise():
    teacher = random_teacher(tiny_params())
    teacher.noise = NOISE
    return teacher


def distilled_noise(part):
    params = tiny_params(distill={"batch_size": COUNT})
    run = Distillation(
        with_noise(), 0.3, SHAPE, params.distill, params.pretrain, seed=0, precision="float32"
    )
    noise, (fake,) = run._sample_noise(torch.Generator().manual_seed(1))
    return {"eps": fake.eps, "fake": fake.denoising.n, "generator": noise.n}[part]


def sampled_noise(churn):
    """The teacher's first state: latents, or with churn and latents 0 the noise it adds."""
    denoiser, z = recorder(), torch.randn(COUNT, *SHAPE)
    added = EDM_SAMPLER.churn.model_copy(update={"S_churn": 10.0 * churn})
    sampler = EDM_SAMPLER.model_copy(update={"num_steps": 2, "churn": added})
    sample_teacher(denoiser, (1 - churn) * z, config=sampler, sigma_y=0.0, seed=1)
    return denoiser.network.seen[0]


def generated_noise():
    generator = OneStepGenerator(recorder(), sigma_init=2.5, shape=SHAPE)
    generator(torch.randn(COUNT, *SHAPE))
    return generator.denoiser.network.seen[0]


def proximal_noise():
    grey = torch.full((COUNT, *SHAPE), 128, dtype=torch.uint8)
    return (from_uint8(renoise(grey, 0.2, seed=1, noise=NOISE)) - from_uint8(grey)) / 0.2


def memorisation_noise():
    clean = torch.zeros(COUNT, *SHAPE)
    operator = Operator(IDENTITY, SHAPE)
    made = _observed(clean, torch.ones(COUNT), operator, torch.Generator(), NOISE)
    return made.values.reshape(COUNT, *SHAPE)


PLACES = {
    "pretrain": lambda: teacher_noise(False),
    "consistency": lambda: teacher_noise(True),
    "observations of the fake": lambda: distilled_noise("eps"),
    "the fake's states": lambda: distilled_noise("fake"),
    "the generator's states": lambda: distilled_noise("generator"),
    "the sampler's latents": lambda: sampled_noise(0),
    "the sampler's churn": lambda: sampled_noise(1),
    "the generator's latents": generated_noise,
    "Proximal FID": proximal_noise,
    "planted copies": memorisation_noise,
}


@pytest.mark.parametrize("place", PLACES)
def test_every_place_draws_noise_of_the_same_spectrum(place):
    torch.manual_seed(0)
    assert correlations(PLACES[place]()) == pytest.approx((1, ROW, COLUMN), abs=0.03)


@pytest.mark.parametrize("workers", [1, 2])
def test_observations_get_it_and_remember_it(tmp_path, workers):
    write_store(
        tmp_path / "clean", [Block(np.full((400, *SHAPE), 128, np.uint8))],
        scale=1 / 127.5, offset=-1.0, shard_size=250,
    )  # fmt: skip
    noise = Noise(sigma=0.5, assumed=0.5, seed=3, add=True, kernel=KERNEL.tolist())
    numbers = np.arange(400)
    _, residual = write_noisy_store(
        tmp_path / "clean", tmp_path / "noisy", numbers, noise=noise, operator=IDENTITY,
        workers=workers,
    )  # fmt: skip
    store = ImageStore.open(tmp_path / "noisy")
    found = correlations(store.all() - (128 / 127.5 - 1))
    assert found == pytest.approx((0.25, ROW, COLUMN), abs=0.03)
    assert residual.std == pytest.approx(0.5, abs=0.01)
    assert GaussianNoise.of_store(store.meta.info).same_as(NOISE)
    write_noisy_store(
        tmp_path / "clean", tmp_path / "few", numbers[7:9], noise=noise, operator=IDENTITY
    )
    assert torch.equal(ImageStore.open(tmp_path / "few").all(), store.all()[7:9])


def test_a_model_remembers_the_noise_that_it_removes(tmp_path):
    params = tiny_params()
    for noise in (NOISE, WHITE):
        teacher = random_teacher(params)
        teacher.noise = noise
        folder = tmp_path / str(noise is WHITE)
        save_model(
            folder, teacher, network=params.network, operator=IDENTITY, shape=SHAPE,
            sigma_init=None,
        )  # fmt: skip
        assert load_denoiser(folder).noise.same_as(noise)
    assert not NOISE.same_as(WHITE)
    assert not NOISE.same_as(GaussianNoise(KERNEL.mT))
    assert NOISE.same_as(GaussianNoise(-3 * KERNEL.flip(1)))


@pytest.mark.parametrize("kernel", [torch.ones(1, 2, 3), torch.zeros(1, 3, 3), KERNEL / 0])
def test_what_is_no_kernel_is_refused(kernel):
    with pytest.raises(ValueError, match="odd numbers of rows and columns"):
        GaussianNoise(kernel)


def test_a_kernel_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="a kernel for 1 channels, the images 2"):
        build_denoiser(tiny_params().network, (2, 8, 8), seed=0, noise=NOISE)


def test_the_kernel_of_a_covariance_gives_that_covariance():
    noise = NOISE.draw((200, 1, 40, 40), torch.Generator().manual_seed(1))
    covariance = torch.zeros(1, 5, 5)
    covariance[0, 2] = torch.tensor([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])
    covariance[0, 1] = covariance[0, 3] = COLUMN * covariance[0, 2]
    again = GaussianNoise(torch.from_numpy(kernel_of(covariance.double().numpy())))
    drawn = again.draw(noise.shape, torch.Generator().manual_seed(2))
    assert correlations(drawn) == pytest.approx((1, ROW, COLUMN), abs=0.03)


def test_a_file_holds_a_kernel_or_frames_of_noise(tmp_path):
    frames = 40 + 7 * NOISE.draw((60, 1, 30, 33), torch.Generator().manual_seed(1)).numpy()
    for name, values in {"kernel": KERNEL[0].numpy(), "frames": frames[:, 0], "4": frames}.items():
        np.save(tmp_path / f"{name}.npy", values)
        kernel = read_kernel(tmp_path / f"{name}.npy", 2)
        assert len(kernel) == 2
        drawn = GaussianNoise(torch.from_numpy(kernel)).draw((500, 2, 9, 9), torch.Generator())
        assert correlations(drawn) == pytest.approx((1, ROW, COLUMN), abs=0.04)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((2, 3)), "odd numbers"),
        (np.zeros((3, 3)), "all 0"),
        (np.ones((3, 4, 3)), "less than"),
        (np.ones((3, 9, 9)), "constant"),
        (np.ones((3, 2, 9, 9)), "for images of 1 channels"),
        (np.ones(3), "has the shape 3"),
        (np.ones((3, 3), complex), "no real numbers"),
        (np.array([[object()]]), "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, values, message):
    if values is not None:
        np.save(tmp_path / "noise.npy", values)
    with pytest.raises(ParamsError, match=rf"corrupt\.spectrum: noise\.npy .*{message}.*Name a"):
        read_kernel(tmp_path / "noise.npy", 1)
