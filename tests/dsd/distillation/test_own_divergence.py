"""A divergence of the user's own, named as package.module:function."""

import sys
from itertools import islice

import pytest
import torch
from pydantic import ValidationError
from stage_helpers import params_with
from tiny_training import distillation, equal, run_steps, tiny_params, weights

from dsd.distillation.losses import DenoiserPair, divergence_of
from dsd.utils.errors import ParamsError
from pipeline.checks.check import show_check
from pipeline.stage_io.paths import Paths
from sandbox import ROOT

SOURCE = """
from dsd.distillation.losses import gap, reverse_kl_loss

def again(x_g, denoised):
    return reverse_kl_loss(x_g, denoised)

def squared(x_g, denoised):
    return gap(denoised)

def total(x_g, denoised):
    return reverse_kl_loss(x_g, denoised).sum()

def detached(x_g, denoised):
    return reverse_kl_loss(x_g, denoised).detach()

def text(x_g, denoised):
    return "loss"

constant = 5
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """A user's module, importable as ``own_losses``."""
    (tmp_path / "own_losses.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_losses", None)


def test_two_steps_with_a_loss_of_ones_own_are_those_of_the_loss_it_calls():
    own, ours = (
        distillation(tiny_params(distill={"divergence": name, "batch_size": 4}))
        for name in ("own_losses:again", "dmd")
    )
    before = weights(own)
    run_steps(own, 2)
    run_steps(ours, 2)
    assert own.step == 2
    assert equal(weights(own), weights(ours))
    assert not equal(weights(own), before)


def test_a_loss_of_ones_own_moves_the_generator_by_its_own_gradient():
    other, own = (
        distillation(tiny_params(distill={"divergence": name}))
        for name in ("dmd", "own_losses:squared")
    )
    first, second = (list(islice(run.steps(), 2)) for run in (own, other))
    assert torch.equal(first[0].gap, second[0].gap)
    assert not torch.equal(first[1].gap, second[1].gap)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_losses:total", r"returned \[\] for 3 images"),
        ("own_losses:detached", r"returned \[3\] for 3 images. It must .*differentiable"),
        ("own_losses:text", "returned a str for 3 images"),
        ("own_losses:constant", r"is a int; it must be a function of \(x_g, denoised\)"),
        ("own_losses:nothing", "cannot be imported"),
        ("no.such.module:loss", "divergence no.such.module:loss cannot be imported"),
    ],
)
def test_what_is_no_loss_is_refused_with_one_message(name, message):
    x_g = torch.zeros(3, 1, 4, 4, requires_grad=True)
    with pytest.raises(ParamsError, match=message):
        divergence_of(name, alpha=1.0)(x_g, DenoiserPair(x_g + 1, x_g - 1))


def test_names_are_checked_with_the_parameters():
    assert params_with(distill={"divergence": "a.b:c"}).distill.divergence == "a.b:c"
    for name in ("kl", "a.b", "a:b:c", ":a", "SID"):
        with pytest.raises(ValidationError, match="must be one of sid, dmd, sds, or a function"):
            params_with(distill={"divergence": name})


def test_the_check_imports_and_tries_it(capsys):
    show_check(params_with(distill={"divergence": "own_losses:again"}), Paths(ROOT))
    assert "OK: params.yaml is valid" in capsys.readouterr().out
    for name in ("own_losses:nothing", "own_losses:total"):
        with pytest.raises(ParamsError, match=f"divergence {name}"):
            show_check(params_with(distill={"divergence": name}), Paths(ROOT))
