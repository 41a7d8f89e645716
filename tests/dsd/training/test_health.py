"""A number that is not finite is told in the step in which it appears, with its place."""

import math

import pytest
import torch
from tiny_training import SHAPE, distillation, run_steps, teacher_training, tiny_params

from dsd.distillation.projection import project_to_range
from dsd.training.distributed import DistributedContext
from dsd.training.nonfinite import FiniteCheck, NonFiniteMonitor
from dsd.utils.errors import NonFiniteError

MAKE = {"pretrain": teacher_training, "distill": distillation}


def networks(training):
    """The trained networks by the name that messages give them."""
    if hasattr(training, "denoiser"):
        return {"teacher": training.denoiser}
    return {"generator": training.generator.denoiser, "fake denoiser": training.fake}


def layer(training, whose):
    """A weight in the middle of a network, and its name."""
    found = list(networks(training)[whose].named_parameters())
    return found[len(found) // 2]


def told_after(training, steps):
    """What a watch says of the next step, which is the first that is not well."""
    watch = NonFiniteMonitor(DistributedContext())
    records = training.steps()
    for _ in range(steps):
        watch.check(next(records))
    with pytest.raises(NonFiniteError) as told:
        watch.check(next(records))
    assert told.value.images_seen == training.step * 8
    return str(told.value)


PLACES = [("pretrain", "teacher"), ("distill", "generator"), ("distill", "fake denoiser")]


@pytest.mark.parametrize(
    ("kind", "whose", "bad"),
    [(*place, bad) for place, bad in zip(PLACES, (math.nan, math.inf, 1e20), strict=True)],
)
def test_a_gradient_is_told_in_its_step_with_its_layer(kind, whose, bad):
    training = MAKE[kind](tiny_params())
    run_steps(training, 2)
    name, weight = layer(training, whose)
    weight.requires_grad_(True).register_hook(
        lambda gradient: gradient.index_fill(0, torch.tensor(0), bad)
    )
    found = told_after(training, 0)
    assert f"after 24 images: the {whose}'s gradients (1 of " in found
    assert name in found


@pytest.mark.parametrize(("kind", "whose"), PLACES)
def test_a_weight_is_told_in_the_step_that_finds_it(kind, whose):
    training = MAKE[kind](tiny_params())
    run_steps(training, 2)
    _, weight = layer(training, whose)
    with torch.no_grad():
        weight.flatten()[0] = math.nan
    assert f"the {whose}'s weights" in told_after(training, 0)


def test_a_pixel_of_an_observation_is_told_with_the_level_of_its_loss():
    training = teacher_training(tiny_params())
    training._images[7, 0, 3, 3] = math.nan
    training._sigma_y[7] = 5.0  # by which it is recognised
    steps = next(number for number in range(9) if 7 in training._order.batch(number, 8))
    found = told_after(training, steps)
    assert "the teacher's loss (1 of 8) at sigma " in found
    level = float(found.split("at sigma ")[1].split(";")[0])
    assert level >= 5


def test_an_infinite_pixel_of_the_generator_is_not_hidden_by_the_range():
    assert project_to_range(torch.tensor([[[[math.inf, -math.inf, 2.0]]]])).isnan().sum() == 2
    training = distillation(tiny_params(distill={"clamp_output": True}))
    run_steps(training, 1)
    generate = training.generator.forward
    spot = torch.zeros(8, *SHAPE)
    spot[3, 0, 0, 0] = math.inf
    training.generator.forward = lambda z: generate(z) + spot
    found = told_after(training, 0)
    assert "the fake denoiser's loss (1 of 8) at sigma" in found
    assert "the gap between teacher and fake denoiser (8 of 8) at sigma" in found  # by its weights


class Step:
    """A step of eight images whose second loss is something."""

    images_seen = 8

    def __init__(self, loss):
        self.checks = [
            FiniteCheck("the loss", torch.tensor([1.0, loss]), sigma=torch.tensor([0.3, 1.5]))
        ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_each_kind_of_number_is_named_with_its_level(bad):
    NonFiniteMonitor(DistributedContext()).check(Step(3e38))
    with pytest.raises(
        NonFiniteError, match=r"after 8 images: the loss \(1 of 2\) at sigma 1\.5$"
    ):
        NonFiniteMonitor(DistributedContext()).check(Step(bad))


class Told(DistributedContext):
    """Another process found something."""

    def all_reduce_max(self, *values):
        return [1.0 for _ in values]


def test_all_processes_hear_what_one_finds():
    training = teacher_training(tiny_params())
    with pytest.raises(NonFiniteError, match="in another process of the training"):
        NonFiniteMonitor(Told()).check(next(training.steps()))


def test_all_processes_hear_of_a_pixel_that_the_leading_one_finds():
    def diverged():
        raise NonFiniteError("3 of 4 images hold NaN")

    with pytest.raises(NonFiniteError, match="after 8 images: 3 of 4 images hold NaN") as found:
        NonFiniteMonitor(DistributedContext()).on_main_process(diverged, 8)
    assert found.value.images_seen == 8
    with pytest.raises(NonFiniteError, match="after 8 images: pixels in the main process"):
        NonFiniteMonitor(Told()).on_main_process(lambda: 1.0, 8)
    assert NonFiniteMonitor(DistributedContext()).on_main_process(lambda: 1.0, 8) == 1.0


def test_large_numbers_are_well():
    training = distillation(tiny_params())
    with torch.no_grad():
        for network in networks(training).values():
            next(network.parameters()).mul_(1e6)
    watch = NonFiniteMonitor(DistributedContext())
    for record in training.steps():
        watch.check(record)
    watch.flush()
