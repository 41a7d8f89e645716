"""Randomness as a function of names and numbers."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dsd.seeds import batch_indices, derive_seed, seeded_dropout, step_generator

CPU = torch.device("cpu")


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    steps=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_every_epoch_visits_each_image_once(count, batch_size, steps, seed):
    order = torch.cat(
        [batch_indices(seed, s, batch_size=batch_size, count=count) for s in range(steps)]
    )
    assert len(order) == steps * batch_size
    for epoch in range(len(order) // count):
        visited = order[epoch * count : (epoch + 1) * count]
        assert sorted(visited.tolist()) == list(range(count))


def test_epochs_and_seeds_have_their_own_order():
    first, second = (batch_indices(0, s, batch_size=50, count=50) for s in (0, 1))
    assert first.tolist() != second.tolist()
    assert first.tolist() != batch_indices(1, 0, batch_size=50, count=50).tolist()


def test_steps_and_purposes_have_their_own_draws():
    draws = {
        float(torch.rand((), generator=step_generator(seed, purpose, step, CPU)))
        for seed in (0, 1)
        for purpose in ("pretrain", "distill")
        for step in (0, 1)
    }
    assert len(draws) == 8


def test_derived_seeds_fit_torch_and_do_not_change():
    assert derive_seed(0, "weights") == 133_441_691_874_178_746
    assert all(0 <= derive_seed(i) < 2**63 for i in range(100))


def test_dropout_is_seeded_and_the_global_state_put_back():
    layer = torch.nn.Dropout(0.5)
    ones, before = torch.ones(100), torch.get_rng_state()
    masks = []
    for step in (3, 3, 4):
        with seeded_dropout(0, "pretrain", step, CPU):
            masks.append(layer(ones))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(before, torch.get_rng_state())
