"""Compiled steps against plain ones, on a CPU: all but the recording of a CUDA graph.

The quick tests have torch's own kernels behind the compiler's graphs and its choice of what is
kept; one has inductor's C++.
"""

import logging
from itertools import islice

import jaxtyping
import pytest
import torch
from team_worker import CASES
from tiny_training import (
    KINDS,
    SHAPE,
    distillation,
    equal,
    random_teacher,
    run_steps,
    teacher_training,
    tiny_params,
    weights,
)

from dsd.model.networks.block_call import plain_call
from dsd.pretraining.denoising_loss import ambient_denoising_loss
from dsd.training import compiled
from dsd.training.compiled import Compilation, missing_compiler, tree_map
from dsd.training.distributed import DistributedContext
from dsd.training.nonfinite import NonFiniteMonitor
from dsd.utils.errors import Interrupted, NonFiniteError

CPU = torch.device("cpu")
COMPILE = torch.compile
STEPS = 3
"""A warm-up, the one that is captured, and one that is only replayed."""


@pytest.fixture(scope="module")
def compiler():
    """A compiler without C++; its users share what is compiled. It knows no checks of shapes."""
    backend = "aot_eager_decomp_partition"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
        patch.setattr(compiled, "_WARM_UPS", 1)
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        patch.setattr(torch, "compile", lambda f, **_: COMPILE(f, dynamic=False, backend=backend))
        compiled._compiled_call.cache_clear()
        yield
        compiled._compiled_call.cache_clear()


@pytest.fixture
def replayed(monkeypatch):
    """Steps whose blocks stay plain, so that only what surrounds them differs."""
    monkeypatch.setattr(compiled, "_compiled_call", lambda: plain_call)
    monkeypatch.setattr(compiled, "_WARM_UPS", 1)


def taught(said=None, steps=STEPS, **more):
    """A teacher, compiled if its lines go to ``said``, and records of its steps."""
    compilation = None if said is None else Compilation(said.append)
    run = teacher_training(tiny_params(dropout=0.0), compilation=compilation, **more)
    # Fresh weights end in zeros, where no mistake shows.
    run.denoiser.load_state_dict(random_teacher(tiny_params()).state_dict())
    return run, list(islice(run.steps(), steps))


def distilled(said=None, steps=STEPS, divergence="sid", updates=2, **more):
    compilation = None if said is None else Compilation(said.append)
    changes = {"divergence": divergence, "fake_updates_per_step": updates}
    run = distillation(tiny_params(dropout=0.0, distill=changes), compilation=compilation, **more)
    return run, list(islice(run.steps(), steps))


def assert_same_training(found, wanted, tolerance):
    """Losses, norms of gradients and weights of each step, and the last weights."""
    (run, records), (plain, expected) = found, wanted
    for record, other in zip(records, expected, strict=True):
        for check, reference in zip(record.checks, other.checks, strict=True):
            assert check.term == reference.term
            torch.testing.assert_close(
                check.values, reference.values, rtol=tolerance, atol=tolerance / 100
            )
    for weight, reference in zip(weights(run), weights(plain), strict=True):
        torch.testing.assert_close(weight, reference, rtol=0, atol=tolerance)


@pytest.mark.parametrize("make", [taught, distilled])
def test_compiled_steps_are_the_plain_ones(make, compiler):
    said = []
    found = make(said)
    assert said[0].startswith("compiling the network for this CPU")
    assert said[1].startswith("compiled in")
    assert len(said) == 2
    assert found[0]._update._replay is not None
    assert_same_training(found, make(), 1e-4)


@pytest.mark.parametrize("name", CASES)
def test_replayed_steps_are_the_plain_ones(name, replayed):
    """With dropout, views, the consistency term, all divergences and micro-batches."""
    said = []
    wishes = {"compilation": Compilation(said.append)}, {}
    pair = [
        (run, list(run.steps()))
        for run in (CASES[name](DistributedContext(micro_batch_size=6), **w) for w in wishes)
    ]
    assert pair[0][0]._update._replay is not None
    assert len(said) == 2
    assert_same_training(*pair, 1e-5)


def test_records_are_not_the_memory_of_later_steps(replayed):
    _, records = taught([])
    assert len({float(record.loss.sum()) for record in records}) == STEPS


def test_what_cannot_be_compiled_is_computed_plainly(monkeypatch):
    def failing(*args):
        msg = "the assembler is missing\nand much more"
        raise RuntimeError(msg)

    monkeypatch.setattr(compiled, "_compiled_call", lambda: failing)
    said = []
    run, _ = taught(said, steps=1)
    assert said[1] == "the network is not compiled, which is slower: the assembler is missing"
    assert equal(weights(run), weights(taught(steps=1)[0]))


def test_what_cannot_be_captured_is_computed_step_by_step(monkeypatch, replayed):
    def failing(self, inputs):
        CAPTURE(self, inputs)
        msg = "operation not permitted when stream is capturing"
        raise RuntimeError(msg)

    monkeypatch.setattr(compiled.CompiledStep, "_capture", failing)
    said = []
    run, _ = found = taught(said)
    assert said[2].startswith("steps are not captured as a CUDA graph: operation not permitted")
    assert isinstance(run.optimizer.param_groups[0]["lr"], float)
    assert_same_training(found, taught(), 1e-4)


CAPTURE = compiled.CompiledStep._capture


def own_divergence(x_g, denoised):
    return ((denoised.teacher - x_g) ** 2).flatten(1).sum(1)


@pytest.mark.parametrize(
    ("make", "more", "why"),
    [
        (distilled, {"divergence": f"{__name__}:own_divergence", "updates": 1}, "your own"),
        (taught, {"activation_checkpointing": True}, "activation checkpointing"),
    ],
)
def test_some_trainings_are_compiled_but_not_captured(make, more, why, replayed):
    said = []
    found = make(said, **more)
    assert said[2].startswith("steps are not captured as a CUDA graph")
    assert why in said[2]
    assert_same_training(found, make(**more), 1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_a_compiled_state_is_continued_without_a_compiler_and_back(name, replayed, tmp_path):
    make, state_of = {"pretrain": taught, "distill": distilled}[name], KINDS[name][1]
    first, _ = make([], steps=2)
    state_of(first).save(tmp_path / "state", {})
    runs = [make(said, steps=0)[0] for said in (None, [])]
    for run in runs:
        state_of(run).load(tmp_path / "state")
        run.step = first.step
    records = [list(islice(run.steps(), 2)) for run in (first, *runs)]
    for run, found in zip(runs, records[1:], strict=True):
        assert_same_training((run, found), (first, records[0]), 1e-4)


def test_a_stop_while_compiling_leaves_everything_as_it_was(replayed):
    def stop():
        raise Interrupted("stopped", 15)

    run = teacher_training(tiny_params(), compilation=Compilation(print, stop))
    before = weights(run)
    with pytest.raises(Interrupted):
        run_steps(run, 1)
    assert equal(weights(run), before)
    assert not run.optimizer.state
    assert all(weight.grad is None for weight in run.denoiser.parameters())


def test_nan_in_a_replayed_step_is_named(replayed):
    run, _ = taught([])
    next(run.denoiser.parameters()).data.fill_(torch.nan)
    watch = NonFiniteMonitor(DistributedContext())
    with pytest.raises(NonFiniteError, match=r"after 32 images: the teacher's loss \(8 of 8\)"):
        watch.check(next(run.steps()))


def test_why_nothing_can_be_compiled(monkeypatch, tmp_path):
    assert missing_compiler(CPU) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing_compiler(CPU) == "there is no C compiler (cc, gcc or clang)"


def test_trees_keep_their_form():
    tree = (torch.ones(2), [None, torch.zeros(1)])
    doubled = tree_map(torch.add, tree, tree)
    assert doubled[0].tolist() == [2.0, 2.0]
    assert doubled[1][0] is None
    assert isinstance(doubled[1], list)


def kept_bytes(precision, *, compiles=False, recomputes=False):
    """Bytes of activations that one image leaves for the gradient."""
    denoiser = random_teacher(tiny_params(dropout=0.0)).train()
    network, count = denoiser.network, 8
    network.recomputes = recomputes
    if compiles:
        network.call_block = compiled._compiled_call()
    kept = {}

    def keep(tensor):
        if tensor.ndim > 1 and len(tensor) == count:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    y = torch.randn(count, *SHAPE)
    levels = {"sigma_y": 0.2, "sigma": 0.5, "sigma_add": 0.4, "n": y, "weighting": "edm"}
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        ambient_denoising_loss(denoiser, y, **levels, sigma_data=0.5)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / count


def test_a_step_keeps_no_more_than_it_needs_for_the_gradient(compiler):
    """Fractions of this small network; those of the paper's are in docs/running.md."""
    whole = kept_bytes("float32")
    print(
        kept_bytes("bfloat16") / whole,
        kept_bytes("float32", compiles=True) / whole,
        kept_bytes("bfloat16", recomputes=True) / whole,
    )
    assert kept_bytes("bfloat16") < 0.52 * whole
    assert kept_bytes("float32", compiles=True) < 0.6 * whole
    assert kept_bytes("bfloat16", recomputes=True) < 0.15 * whole


@pytest.mark.slow
def test_inductor_computes_the_same(monkeypatch, tmp_path):
    """Its C++, without optimisation, which takes half the time to compile."""
    monkeypatch.setattr(torch, "compile", COMPILE)
    monkeypatch.setattr(compiled, "_WARM_UPS", 1)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled._compiled_call.cache_clear()
    torch._dynamo.reset()
    fast = {"aot_inductor.debug_compile": True, "cpp.simdlen": 1}
    with torch._inductor.config.patch(fast):
        said = []
        assert_same_training(taught(said), taught(), 1e-4)
    assert said[1].startswith("compiled in")
    assert list(tmp_path.rglob("*.so"))
    torch._dynamo.reset()
    compiled._compiled_call.cache_clear()
