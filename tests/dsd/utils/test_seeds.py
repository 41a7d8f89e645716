"""Randomness as a function of names and numbers."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dsd.utils.random import EpochSampler, derive_seed, seeded_dropout, step_generator

CPU = torch.device("cpu")


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    first=st.integers(0, 5),
    steps=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_batches_follow_the_orders_of_the_epochs_from_any_step_on(
    count, batch_size, first, steps, seed
):
    """Also where a batch is longer than an epoch, training is resumed, or a step repeated."""
    last = (first + steps) * batch_size // count
    orders = [
        torch.randperm(
            count, generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        )
        for epoch in range(last + 1)
    ]
    expected = torch.cat(orders)[first * batch_size : (first + steps) * batch_size]
    order = EpochSampler(seed, count, CPU)
    batches = [order.batch(step, batch_size) for step in range(first, first + steps)]
    assert torch.equal(torch.cat(batches), expected)
    assert torch.equal(order.batch(first, batch_size), batches[0])
    assert all(sorted(visited.tolist()) == list(range(count)) for visited in orders)


def test_epochs_and_seeds_have_their_own_order():
    first, second = (EpochSampler(0, 50, CPU).batch(step, 50) for step in (0, 1))
    assert first.tolist() != second.tolist()
    assert first.tolist() != EpochSampler(1, 50, CPU).batch(0, 50).tolist()


def test_an_epoch_is_shuffled_once(monkeypatch):
    shuffled, randperm = [], torch.randperm

    def spy(*args, **kwargs):
        shuffled.append(1)
        return randperm(*args, **kwargs)

    monkeypatch.setattr(torch, "randperm", spy)
    order = EpochSampler(0, 100, CPU)
    for step in range(30):
        order.batch(step, 10)
    assert len(shuffled) == 3


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
    for step, rank in ((3, 0), (3, 0), (4, 0), (3, 1)):
        with seeded_dropout(0, "pretrain", step, CPU, rank):
            masks.append(layer(ones))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[3])
    assert torch.equal(before, torch.get_rng_state())
