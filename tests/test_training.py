"""Training loops: determinism, resumption, and that they learn what they should."""

import copy
from collections import deque
from itertools import islice

import pytest
import torch
from stage_helpers import params_with

from dsd.checkpoint import TrainingState, build_denoiser
from dsd.errors import DataError, NonFiniteError
from dsd.losses.pretrain import ambient_denoising_loss
from dsd.noise import sample_generator_levels, sample_teacher_levels
from dsd.training.common import autocast, learning_rate_factor
from dsd.training.distill import Distillation
from dsd.training.ema import ema_decay, frozen_copy, update_ema
from dsd.training.meter import LevelMeter
from dsd.training.pretrain import TeacherTraining, denoising_step_loss

SHAPE = (1, 8, 8)
SIGMA = 0.3


def tiny_params(**sections):
    network = {"width": 8, "channel_mult": [1], "attention_resolutions": [], "dropout": 0.1}
    short = {"batch_size": 8, "kimg": 0.08, "warmup_kimg": 0.016}
    return params_with(
        network=network,
        pretrain={**short, **sections.get("pretrain", {})},
        distill={**short, **sections.get("distill", {})},
    )


def teacher_training(params, seed=0):
    denoiser = build_denoiser(params.network, SHAPE, seed=1)
    images = torch.randn(30, *SHAPE, generator=torch.Generator().manual_seed(2))
    levels = torch.full((30,), SIGMA)
    return TeacherTraining(
        denoiser, images, levels, params.pretrain, seed=seed, precision="float32"
    )


def distillation(params, seed=0):
    teacher = build_denoiser(params.network, SHAPE, seed=1)
    random = torch.Generator().manual_seed(3)
    for parameter in teacher.parameters():  # fresh weights end in zeros
        torch.nn.init.normal_(parameter, std=0.05, generator=random)
    return Distillation(
        teacher, torch.full((30,), SIGMA), SHAPE, params.distill, params.pretrain, seed=seed,
        precision="float32",
    )  # fmt: skip


def state_of_teacher(training):
    modules = {"net": training.denoiser, "ema": training.average}
    return TrainingState(modules, {"adam": training.optimizer})


def state_of_distillation(training):
    modules = {"net": training.generator, "fake": training.fake, "ema": training.average}
    optimizers = {"adam": training.optimizer, "adam_fake": training.optimizer_fake}
    return TrainingState(modules, optimizers)


KINDS = {
    "pretrain": (teacher_training, state_of_teacher),
    "distill": (distillation, state_of_distillation),
}


def run_steps(training, count):
    deque(islice(training.steps(), count), maxlen=0)


def weights(training):
    """Copies of the averaged and the trained weights."""
    own = training.denoiser if hasattr(training, "denoiser") else training.generator
    return [p.clone() for module in (training.average, own) for p in module.state_dict().values()]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_resumed_run_ends_with_the_same_bits(kind, stop, tmp_path):
    make, state_of = KINDS[kind]
    params = tiny_params()
    whole = make(params)
    for _ in whole.steps():
        torch.rand(1)  # the global generator is nobody's business
    interrupted = make(params)
    run_steps(interrupted, stop)
    state_of(interrupted).save(tmp_path / "state", {"step": interrupted.step})
    resumed = make(params)
    resumed.step = state_of(resumed).load(tmp_path / "state")["step"]
    for _ in resumed.steps():
        pass
    assert whole.step == resumed.step == 10
    assert equal(weights(whole), weights(resumed))


def test_sds_moves_the_generator_and_trains_no_fake():
    run = distillation(tiny_params(distill={"divergence": "sds"}))
    generator, fake = copy.deepcopy(run.generator), copy.deepcopy(run.fake)
    record = next(run.steps())
    assert record.loss_fake is None
    assert equal(fake.state_dict().values(), run.fake.state_dict().values())
    assert not equal(generator.state_dict().values(), run.generator.state_dict().values())


def test_the_consistency_term_is_added_to_the_loss_with_its_weight():
    """Its gradient alone is (gradient with weight 3 - gradient without) / 3."""

    def gradient(weight):
        consistency = {"weight": weight, "batch_size": 4, "num_steps": 2}
        run = teacher_training(tiny_params(pretrain={"consistency": consistency}))
        for parameter in run.denoiser.parameters():  # fresh weights end in zeros
            random = torch.Generator().manual_seed(parameter.numel())
            torch.nn.init.normal_(parameter, std=0.1, generator=random)
        next(run.steps())
        return torch.cat([p.grad.flatten() for p in run.denoiser.parameters()])

    without, once, thrice = (gradient(weight) for weight in (0.0, 1.0, 3.0))
    assert float((once - without).abs().max()) > 1e-3
    torch.testing.assert_close(thrice - without, 3 * (once - without), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_gives_other_weights(kind):
    make, _ = KINDS[kind]
    first, second = make(tiny_params(), 0), make(tiny_params(), 1)
    for training in (first, second):
        next(training.steps())
    assert not equal(weights(first), weights(second))


@pytest.mark.parametrize("divergence", ["sid", "dmd"])
@pytest.mark.parametrize("fake_steps", [1, 3])
def test_a_distillation_step_moves_generator_and_fake_but_never_the_teacher(
    divergence, fake_steps
):
    run = distillation(tiny_params(distill={"divergence": divergence, "fake_steps": fake_steps}))
    teacher = copy.deepcopy(run.teacher.state_dict())
    generator, fake = copy.deepcopy(run.generator), copy.deepcopy(run.fake)
    # The second step: at the first, teacher and fake are the same network.
    run_steps(run, 2)
    assert equal(teacher.values(), run.teacher.state_dict().values())
    assert not equal(fake.state_dict().values(), run.fake.state_dict().values())
    assert not equal(generator.state_dict().values(), run.generator.state_dict().values())
    assert all(p.grad is None for p in run.teacher.parameters())


def test_the_generator_step_leaves_no_gradient_in_the_fake():
    run = distillation(tiny_params())
    record = next(run.steps())
    trained = [p.grad.clone() for p in run.fake.parameters()]
    x_g = run._generate(torch.Generator().manual_seed(0))
    run._train_generator(x_g, torch.Generator().manual_seed(0))
    assert equal(trained, [p.grad for p in run.fake.parameters()])
    assert record.gap.shape == record.sigma.shape == record.loss_fake.shape == (8,)


def test_the_fake_never_moves_the_generator():
    run = distillation(tiny_params())
    before = weights(run)
    z = torch.Generator().manual_seed(0)
    run._train_fake(run._generate(z).detach(), z)
    assert equal(before, weights(run))
    assert all(p.grad is None for p in run.generator.parameters())


def test_teacher_training_lowers_the_loss():
    params = tiny_params(pretrain={"kimg": 3.2, "batch_size": 32, "learning_rate": 5.0e-3})
    run = teacher_training(params)
    losses = torch.stack([record.loss.mean() for record in run.steps()])
    assert float(losses[-20:].mean()) < 0.9 * float(losses[:5].mean())


def test_the_average_of_constant_weights_is_constant():
    module = torch.nn.Linear(3, 3)
    average = frozen_copy(module)
    for decay in (0.0, 0.5, 0.999):
        update_ema(average, module, decay)
    assert equal(average.state_dict().values(), module.state_dict().values())
    assert not any(p.requires_grad for p in average.parameters())


def test_the_average_moves_by_its_decay():
    module, average = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
        average.weight.fill_(0.0)
    update_ema(average, module, 0.75)
    assert average.weight.item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [(1_000_000_000, 0.5 ** (512 / 500_000)), (10_000, 0.5 ** (512 / 500)), (0, 0.0)],
)
def test_the_half_life_is_a_fraction_of_the_images_seen_at_first(seen, expected):
    decay = ema_decay(seen, 512, halflife_kimg=500.0, rampup=0.05)
    assert decay == pytest.approx(expected)


def test_the_step_size_warms_up_and_follows_its_schedule():
    def factor(seen, schedule):
        return learning_rate_factor(seen, total_images=1000, warmup_images=100, schedule=schedule)

    assert factor(0, "cosine") == pytest.approx(1 / 101)
    assert factor(100, "cosine") == pytest.approx(1)
    assert factor(550, "cosine") == pytest.approx(0.525)
    assert factor(1000, "cosine") == pytest.approx(0.05)
    assert factor(1000, "constant") == 1


def test_a_damaged_state_is_refused_by_name(tmp_path):
    path = tmp_path / "state"
    state_of_teacher(teacher_training(tiny_params())).save(path, {})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="state is damaged: delete it"):
        state_of_teacher(teacher_training(tiny_params())).load(path)


def test_the_meter_averages_by_level_and_starts_anew():
    meter = LevelMeter("loss")
    meter.add(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0.3, 0.4, 100.0]))
    reading = meter.read(3)
    assert reading.mean == 4
    assert reading.by_level == {"<=0.5": 2.0, ">20": 8.0}
    meter.add(torch.tensor([5.0]), torch.tensor([0.3]))
    assert meter.read(4).mean == 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_meter_names_where_a_value_is_not_finite(bad):
    meter = LevelMeter("the teacher's loss")
    meter.add(torch.tensor([1.0, bad]), torch.tensor([0.3, 1.5]))
    with pytest.raises(NonFiniteError, match=r"teacher's loss.*1,234 images.*<=2\."):
        meter.read(1234)


@pytest.mark.parametrize("objective", ["adjusted", "standard"])
def test_the_fake_learns_from_images_as_noisy_as_the_data(monkeypatch, objective):
    """Each like one of the observations, with the teacher's objective and its own levels."""
    law = {"sampler": "truncated", "P_mean": 0.3, "P_std": 0.7}
    params = tiny_params(
        pretrain={"objective": objective, "weighting": "ambient-omni"},
        distill={"batch_size": 200, "fake_noise": law},
    )
    run = distillation(params)
    run._sigma_y = torch.tensor([0.1, 0.8])
    seen = []

    def spy(denoiser, y, sigma_y, **options):
        seen.append((denoiser, y, sigma_y, options))
        return denoising_step_loss(denoiser, y, sigma_y, **options)

    monkeypatch.setattr("dsd.training.distill.denoising_step_loss", spy)
    x_g = torch.full((200, *SHAPE), 0.25)
    run._train_fake(x_g, torch.Generator().manual_seed(0))
    ((denoiser, y, sigma_y, options),) = seen
    assert denoiser is run.fake
    for level in run._sigma_y:
        alike = sigma_y == level
        assert float(alike.double().mean()) == pytest.approx(0.5, abs=0.1)
        assert float((y - x_g)[alike].std()) == pytest.approx(float(level), rel=0.03)
    assert options["objective"] == objective
    assert options["weighting"] == "ambient-omni"
    assert options["noise"] == params.distill.fake_noise


def test_every_step_of_the_fake_sees_images_of_its_own(monkeypatch):
    run = distillation(tiny_params(distill={"fake_steps": 3}))
    seen, train = [], run._train_fake

    def spy(x_g, random):
        seen.append(x_g)
        return train(x_g, random)

    monkeypatch.setattr(run, "_train_fake", spy)
    next(run.steps())
    assert len(seen) == len({x_g.detach().numpy().tobytes() for x_g in seen}) == 3
    assert not any(x_g.requires_grad for x_g in seen)


@pytest.mark.parametrize(("pixel_range", "largest"), [("clamped", 1.0), ("free", 3.0)])
def test_generated_images_are_clamped_where_that_is_asked_for(monkeypatch, pixel_range, largest):
    run = distillation(tiny_params(distill={"pixel_range": pixel_range}))
    monkeypatch.setattr(run.generator, "forward", lambda z: 3 * z.sign())
    assert float(run._generate(torch.Generator().manual_seed(0)).max()) == largest


@pytest.mark.parametrize("objective", ["adjusted", "standard"])
def test_a_denoisers_step_is_its_loss_at_drawn_levels(objective):
    """The standard objective takes observations for clean images."""
    params = tiny_params()
    denoiser, law = build_denoiser(params.network, SHAPE, seed=1).eval(), params.pretrain.noise
    y = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(2))
    sigma_y = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    loss, sigma = denoising_step_loss(
        denoiser, y, sigma_y, objective=objective, weighting="edm", noise=law,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    again = torch.Generator().manual_seed(3)
    known = sigma_y if objective == "adjusted" else torch.zeros(6)
    expected_sigma, sigma_add = sample_teacher_levels(law, known, again)
    n = torch.randn(y.shape, generator=again)
    expected = ambient_denoising_loss(
        denoiser, y, sigma_y=known, sigma=expected_sigma, sigma_add=sigma_add, n=n,
        weighting="edm", sigma_data=params.network.sigma_data,
    )  # fmt: skip
    torch.testing.assert_close(sigma, expected_sigma)
    torch.testing.assert_close(loss, expected)


def test_each_observation_is_trained_on_with_its_own_level(monkeypatch):
    run = teacher_training(tiny_params())
    run._images = torch.arange(30.0).reshape(30, 1, 1, 1).expand(30, *SHAPE)
    run._sigma_y = torch.arange(30) / 100

    def spy(denoiser, y, sigma_y, **options):
        torch.testing.assert_close(y[:, 0, 0, 0] / 100, sigma_y)
        return denoising_step_loss(denoiser, y, sigma_y, **options)

    monkeypatch.setattr("dsd.training.pretrain.denoising_step_loss", spy)
    run_steps(run, 4)


def rate(optimizer):
    return optimizer.param_groups[0]["lr"]


def test_step_sizes_follow_their_schedules():
    """The first step of a warm-up of 16 images has 1/17 of the peak."""
    sizes = {"learning_rate": 1.0e-3, "learning_rate_fake": 3.0e-3}
    run = distillation(tiny_params(distill=sizes))
    next(run.steps())
    assert (rate(run.optimizer), rate(run.optimizer_fake)) == pytest.approx((1e-3 / 17, 3e-3 / 17))
    teacher = teacher_training(tiny_params(pretrain={"learning_rate": 2.0e-3}))
    next(teacher.steps())
    assert rate(teacher.optimizer) == pytest.approx(2e-3 / 17)


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_is_that_of_the_trained_weights(kind):
    """With a half-life of all images seen so far: one half after the first step."""
    make, _ = KINDS[kind]
    run = make(tiny_params(**{kind: {"ema_rampup": 1.0}}))
    before = copy.deepcopy(run.average)
    next(run.steps())
    trained = run.denoiser if kind == "pretrain" else run.generator
    triples = zip(before.parameters(), trained.parameters(), run.average.parameters(), strict=True)
    for old, new, average in triples:
        torch.testing.assert_close(average, (old + new) / 2)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_networks_compute_in_the_precision_asked_for(precision, dtype):
    x = torch.ones(2, 2)
    with autocast(torch.device("cpu"), precision):
        assert (x @ x).dtype is dtype


class Scale(torch.nn.Module):
    """A denoiser that multiplies."""

    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x, sigma):
        return self.factor * x


@pytest.mark.parametrize("divergence", ["sid", "dmd", "sds"])
def test_the_generator_step_is_the_loss_of_teacher_and_fake_on_diffused_images(divergence):
    """Against the formulas written out: which denoiser is which, and where gradients flow."""
    run = distillation(tiny_params(distill={"divergence": divergence, "alpha": 1.2}))
    run.teacher, run.fake = Scale(0.7).requires_grad_(False), Scale(0.4)
    random = torch.Generator().manual_seed(5)
    x_g = torch.randn(8, *SHAPE, generator=random).requires_grad_()
    gaps, sigma = run._train_generator(x_g, torch.Generator().manual_seed(6))

    again = torch.Generator().manual_seed(6)
    law = tiny_params().distill.noise
    level = sample_generator_levels(law, 8, again, torch.device("cpu"))
    n = torch.randn(x_g.shape, generator=again)
    copied = x_g.detach().clone().requires_grad_()
    x_t = copied + level[:, None, None, None] * n
    teacher, fake = 0.7 * x_t, 0.4 * x_t
    omega = (copied - teacher).detach().abs().mean((1, 2, 3))
    difference = teacher - (copied.detach() if divergence == "sds" else fake)
    if divergence == "sid":
        product = difference * ((teacher - copied) - 1.2 * difference)
    else:
        product = -copied * difference.detach()
    (product.sum((1, 2, 3)) / omega).mean().backward()
    torch.testing.assert_close(x_g.grad, copied.grad)
    torch.testing.assert_close(sigma, level)
    torch.testing.assert_close(gaps, difference.square().mean((1, 2, 3)))
    assert run.fake.factor.grad is None
