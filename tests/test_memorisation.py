import numpy as np
import pytest
import torch

from dsd.errors import DataError
from dsd.metrics.memorisation import memorisation


def normal(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TRAINING, HELDOUT = normal(0, 300, 5), normal(1, 200, 5)


def test_copies_are_found_with_what_they_are_copies_of():
    chosen = torch.randperm(300, generator=torch.Generator().manual_seed(4))[:100]
    found = memorisation(TRAINING[chosen] + 0.01 * normal(2, 100, 5), TRAINING, HELDOUT)
    assert torch.equal(found.indices[:, 0], chosen)
    assert found.nearer > 0.99
    assert found.ratio < 0.05
    assert found.p_value < 1e-20


def test_a_fresh_sample_of_the_law_is_not_suspected():
    values = [memorisation(normal(9 + i, 200, 5), TRAINING, HELDOUT) for i in range(20)]
    assert np.mean([one.nearer for one in values]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([one.ratio for one in values]) == pytest.approx(1, abs=0.05)
    assert sum(one.p_value < 0.05 for one in values) <= 5


def test_far_images_are_not_suspected_either():
    found = memorisation(TRAINING[:50] + 20, TRAINING, HELDOUT)
    assert found.nearer == 0
    assert found.p_value > 0.99
    assert found.ratio > 5


def test_nearer_is_the_share_of_pairs_and_ties_count_half():
    training = torch.zeros(3, 1, dtype=torch.float64)
    generated = torch.tensor([[1.0], [2.0], [4.0]])
    heldout = torch.tensor([[2.0], [3.0]])
    found = memorisation(generated, training, heldout, k=1)
    # Pairs of generated and held-out distances: 1<2, 1<3, 2=2, 2<3, 4>2, 4>3.
    assert found.nearer == pytest.approx(3.5 / 6)
    assert found.ratio == pytest.approx((7 / 3) / (5 / 2))


def test_the_most_suspicious_are_the_nearest():
    generated = torch.cat([normal(3, 5, 5) + 3, TRAINING[7:8] + 1e-3, TRAINING[2:3] + 1e-2])
    found = memorisation(generated, TRAINING, HELDOUT, k=2)
    assert found.most_suspicious(2).tolist() == [5, 6]
    assert found.indices[5:, 0].tolist() == [7, 2]
    assert found.distances.shape == (7, 2)
    assert bool((found.distances[:, 0] <= found.distances[:, 1]).all())


def test_bad_input_is_refused():
    broken = HELDOUT.clone()
    broken[0, 0] = torch.nan
    for training, heldout, k, message in (
        (TRAINING[:2], HELDOUT, 3, "needs at least 3 images in each set but one has 2"),
        (TRAINING, HELDOUT[:0], 3, "needs at least 1 images in each set but one has 0"),
        (TRAINING, broken, 3, "features of 1 of 200 images are NaN"),
        (TRAINING, HELDOUT[:, :4], 3, "features of 4 and of 5 numbers"),
        (TRAINING, TRAINING[:9], 3, "all held-out images have a copy"),
    ):
        with pytest.raises(DataError, match=message):
            memorisation(normal(3, 20, 5), training, heldout, k=k)
