"""Gradients of both trainings against the formulas, without dropout so that they repeat.

Hooks of torch record what networks were given; the loss is written out from that and
differentiated once more.
"""

import copy
from collections import deque
from itertools import islice

import numpy as np
import pytest
import torch
from tiny_run import Call, Update, adam_in_numpy, averages, flat, recorded, step_size
from tiny_training import SIGMA, distillation, teacher_training, tiny_params
from torch.nn.modules.module import register_module_forward_hook

from dsd.model.config import UNetConfig


def without_dropout(params):
    network = UNetConfig.model_validate({**params.network.model_dump(), "dropout": 0.0})
    return params.model_copy(update={"network": network})


def steps(run, count):
    with recorded() as events:
        for number, record in enumerate(islice(run.steps(), count)):
            assert record.images_seen == 8 * (number + 1)
    return events


def with_weights(module, weights):
    """A copy with these weights, to differentiate."""
    twin = copy.deepcopy(module).requires_grad_(True)
    for parameter, value in zip(twin.parameters(), weights, strict=True):
        parameter.data.copy_(value)
    return twin


def column(values):
    return values.reshape(-1, 1, 1, 1)


def adjusted_loss(denoiser, x, y, sigma, sigma_y, sigma_data):
    """|h - y|^2, the mean over pixels, over Var(y | x_t): weighting ``inverse-variance``."""
    a = 1 - (sigma_y / sigma) ** 2
    h = column(a) * denoiser(x, sigma) + column(1 - a) * x
    var_y, var_x = sigma_data**2 + sigma_y**2, sigma_data**2 + sigma**2
    weight = 1 / (var_y - var_y**2 / var_x)
    return weight * (h - y).square().mean((1, 2, 3))


def assert_gradients(found, expected):
    size = max(float(g.abs().max()) for g in found)
    assert size > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4 * size)


def test_the_teachers_gradient_is_that_of_the_mean_loss_of_its_batch():
    """And of this step alone; of observations and levels that belong together."""
    # Little noise, so that the observation behind each state is known.
    levels_of = {"distribution": "added", "P_mean": -3.0, "P_std": 0.3}
    params = without_dropout(tiny_params(pretrain={"noise": levels_of, "learning_rate": 2e-3}))
    run = teacher_training(params)
    images, levels = run._images, torch.where(torch.arange(30) % 2 == 0, SIGMA, 0.5)
    run._sigma_y = levels
    events = steps(run, 8)
    calls = [event for event in events if isinstance(event, Call)]
    updates = [event for event in events if isinstance(event, Update)]
    seen = []
    for call, update in zip(calls, updates, strict=True):
        numbers = (call.x[:, None] - images[None]).square().sum((2, 3, 4)).argmin(1)
        seen += numbers.tolist()
        twin = with_weights(call.denoiser, update.before)
        loss = adjusted_loss(twin, call.x, images[numbers], call.sigma, levels[numbers], 0.5)
        assert_gradients(update.gradients, torch.autograd.grad(loss.mean(), [*twin.parameters()]))
    assert sorted(seen[:30]) == sorted(seen[30:60]) == list(range(30))
    assert seen[:30] != seen[30:60]


def test_each_step_of_the_teacher_has_other_levels_and_noise_and_the_same_when_repeated():
    seen = [
        [event for event in steps(teacher_training(tiny_params()), 3) if isinstance(event, Call)]
        for _ in range(2)
    ]
    for first, second in zip(*seen, strict=True):
        torch.testing.assert_close(first.x, second.x)
    assert len({float(level) for call in seen[0] for level in call.sigma}) == 24


@pytest.mark.parametrize("divergence", ["sid", "dmd", "sds"])
def test_the_distillations_gradients_are_those_of_its_mean_losses(divergence):
    """Of generator and fake, each of its own loss, of this step and of nothing else.

    Observations have no noise here, so that the fake's are the generated images.
    """
    sizes = {"learning_rate": 2e-3, "learning_rate_fake": 3e-3}
    params = without_dropout(
        tiny_params(
            distill={"divergence": divergence, "clamp_output": False, "alpha": 1.1, **sizes}
        )
    )
    run = distillation(params)
    run._sigma_y = torch.zeros(30)
    calls, fake, done = [], None, 0
    for event in steps(run, 4):
        if isinstance(event, Call):
            calls.append(event)
            continue
        made, *others = calls
        v = made.out
        if event.optimizer is not run.optimizer:
            (learned,) = others
            twin = with_weights(learned.denoiser, event.before)
            loss = adjusted_loss(twin, learned.x, v, learned.sigma, 0 * learned.sigma, 0.5).mean()
            fake = with_weights(learned.denoiser, event.after)
        else:
            twin = with_weights(made.denoiser, event.before)
            x_g, judged = twin(made.x, made.sigma), others[-1]
            x_t = x_g + (judged.x - v).detach()
            teacher = run.teacher(x_t, judged.sigma)
            other = x_g.detach() if divergence == "sds" else fake(x_t, judged.sigma)
            difference = teacher - other
            if divergence == "sid":
                product = difference * ((teacher - x_g) - 1.1 * difference)
            else:
                product = -x_g * difference.detach()
            omega = (x_g - teacher).detach().abs().mean((1, 2, 3))
            loss = (product.sum((1, 2, 3)) / omega).mean()
            calls, done = [], done + 1
        assert_gradients(event.gradients, torch.autograd.grad(loss, [*twin.parameters()]))
    assert done == 4


@pytest.mark.parametrize(("kind", "betas"), [("pretrain", (0.9, 0.999)), ("distill", (0.4, 0.9))])
def test_weights_move_as_adam_moves_them(kind, betas):
    """With these betas, without decay; here also for the fake denoiser."""
    own = {"learning_rate": 2e-3}
    more = {"learning_rate_fake": 2e-3, "betas": [*betas]} if kind == "distill" else {}
    params = tiny_params(**{kind: {**own, **more}})
    run = {"pretrain": teacher_training, "distill": distillation}[kind](params)
    events = [event for event in steps(run, 6) if isinstance(event, Update)]
    for optimizer in run.optimizers:
        updates = [update for update in events if update.optimizer is optimizer]
        sizes = [step_size(2e-3, 8 * step, getattr(params, kind), 10) for step in range(6)]
        for update, weights in zip(updates, adam_in_numpy(updates, betas, sizes), strict=True):
            np.testing.assert_allclose(flat(update.after), weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["pretrain", "distill"])
def test_the_average_has_the_half_life_and_ramp_up_of_its_stage(kind):
    params = tiny_params(**{kind: {"ema_halflife_kimg": 0.02, "ema_rampup_ratio": 0.7}})
    run = {"pretrain": teacher_training, "distill": distillation}[kind](params)
    events = [event for event in steps(run, 6) if isinstance(event, Update)]
    updates = [update for update in events if update.optimizer is run.optimizer]
    expected = averages(updates, updates[0].before, getattr(params, kind))[-1]
    np.testing.assert_allclose(
        flat(run.average.parameters()), flat(expected), rtol=1e-4, atol=1e-6
    )


def test_each_step_of_the_teacher_drops_other_numbers_and_the_same_when_repeated():
    masks = []
    for _ in range(2):
        found = []

        def see(module, _, out, found=found):
            if isinstance(module, torch.nn.Dropout):
                found.append(out == 0)

        hook = register_module_forward_hook(see)
        deque(islice(teacher_training(tiny_params()).steps(), 2), maxlen=0)
        hook.remove()
        masks.append(found)
    count = len(masks[0]) // 2
    assert count > 0
    assert all(map(torch.equal, *masks))
    for first, second in zip(masks[0][:count], masks[0][count:], strict=True):
        assert 0.05 < float(first.double().mean()) < 0.2
        assert float((first == second).double().mean()) < 0.95


@pytest.mark.parametrize(("kind", "schedule"), [("pretrain", "constant"), ("distill", "cosine")])
def test_step_sizes_follow_warm_up_and_schedule_to_the_end(kind, schedule):
    section = {"lr_schedule": schedule, "learning_rate": 2.0e-3}
    section |= {"learning_rate_fake": 3.0e-3} if kind == "distill" else {}
    params = tiny_params(**{kind: section})
    run = {"pretrain": teacher_training, "distill": distillation}[kind](params)
    updates = [event for event in steps(run, 10) if isinstance(event, Update)]
    config = getattr(params, kind)
    for optimizer, peak in zip(run.optimizers, (2.0e-3, 3.0e-3), strict=False):
        found = [update.group["lr"] for update in updates if update.optimizer is optimizer]
        assert found == pytest.approx([step_size(peak, 8 * s, config, 10) for s in range(10)])
