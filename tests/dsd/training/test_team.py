"""Several processes, or one that takes a batch in parts, learn what one does with the whole."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_training import distillation, run_steps, teacher_training, tiny_params, weights
from torch import Tensor

from dsd.training.distributed import DistributedContext, TensorBatch
from sandbox import ROOT

WORKER = ROOT / "tests" / "helpers" / "team_worker.py"
SIZES = (1, 2)
BOUNDS = {"float64": 1e-13, "float32": 1e-5}
"""For weights after three steps of 1e-3 and 2.5e-4; 6e-16 and 2e-6 were measured."""


@given(
    total=st.integers(0, 70),
    size=st.integers(1, 9),
    micro_batch_size=st.none() | st.integers(1, 20),
    count=st.none() | st.integers(1, 9),
)
def test_the_parts_of_all_processes_are_the_batch(total, size, micro_batch_size, count):
    everything = [
        DistributedContext(rank, size, micro_batch_size).micro_batches(total, count)
        for rank in range(size)
    ]
    rows = [row for parts in everything for part in parts for row in range(total)[part]]
    assert rows == list(range(total))
    shares = [sum(part.stop - part.start for part in parts) for parts in everything]
    assert max(shares) - min(shares) <= 1
    if count is not None:
        assert all(len(parts) == count for parts in everything)
    elif micro_batch_size is not None:
        assert all(part.stop - part.start <= micro_batch_size for p in everything for part in p)


def test_a_batch_of_at_least_one_image_for_each_process_has_no_empty_part():
    for size, micro_batch_size in ((4, 1), (4, 2), (3, None)):
        for total in range(size, 40):
            parts = [
                p
                for rank in range(size)
                for p in DistributedContext(rank, size, micro_batch_size).micro_batches(total)
            ]
            assert all(part.stop > part.start for part in parts)


@dataclass(frozen=True)
class Pair(TensorBatch):
    first: Tensor
    second: Tensor | None


@dataclass(frozen=True)
class Nested(TensorBatch):
    pair: Pair
    other: Tensor


def test_rows_are_taken_of_every_member():
    nested = Nested(Pair(torch.arange(5), None), torch.arange(10).reshape(5, 2))
    taken = nested[slice(1, 3)]
    assert taken.pair.first.tolist() == [1, 2]
    assert taken.pair.second is None
    assert taken.other.tolist() == [[2, 3], [4, 5]]


@pytest.mark.parametrize(("make", "size"), [(teacher_training, 1), (distillation, 3)])
def test_micro_batches_learn_what_the_whole_batch_does(make, size):
    params = tiny_params(dropout=0.0, distill={"fake_updates_per_step": 2})
    runs = [make(params), make(params, distributed=DistributedContext(micro_batch_size=size))]
    for run in runs:
        run_steps(run, 3)
    for first, second in zip(*map(weights, runs), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=BOUNDS["float32"])


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What each process ended with, by number of processes; in turn, to resume each other."""
    folder = tmp_path_factory.mktemp("teams")
    for size in SIZES:
        command = [sys.executable, WORKER, folder, str(size)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        distributed = [subprocess.Popen([*command, str(rank)], env=env) for rank in range(size)]
        assert [process.wait(300) for process in distributed] == [0] * size
    return {
        (size, rank): load_file(folder / f"{size}-{rank}.safetensors")
        for size in SIZES
        for rank in range(size)
    }


@pytest.mark.slow
def test_all_processes_end_with_the_same_bits(ended):
    for (size, _), found in ended.items():
        assert all(torch.equal(found[key], value) for key, value in ended[size, 0].items())


@pytest.mark.slow
def test_the_number_of_processes_and_parts_changes_nothing_but_rounding(ended):
    """Views, levels, noise, the order of images: all as in one process; levels to the last bit."""
    one = ended[1, 0]
    for size in SIZES:
        names = [name for name in ended[size, 0] if "resumed" not in name]
        assert len(names) > 200
        for name in names:
            found, expected = ended[size, 0][name], one[name.replace(" parts/", " whole/")]
            torch.testing.assert_close(found, expected, rtol=0, atol=BOUNDS["float64"], msg=name)
        levels = [name for name in names if "/sigma " in name]
        assert len(levels) > 10
        assert all(torch.equal(ended[size, 0][name], one[name]) for name in levels)


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_processes(ended):
    """One process began what two went on with."""
    one, begun = ended[1, 0], "pretrain whole/"
    names = [name.removeprefix("resumed/") for name in one if name.startswith("resumed")]
    weights = [name for name in names if "/" in name]
    assert len(weights) > 50
    for name in weights:
        found = ended[SIZES[-1], 0][f"resumed/{name}"]
        torch.testing.assert_close(found, one[begun + name], rtol=0, atol=BOUNDS["float64"])
