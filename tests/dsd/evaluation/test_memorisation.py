"""Copies of training images, seen at the level of the noise; values beside plain numpy loops."""

import math

import numpy as np
import pytest
import torch
from clothes import clothes
from scipy.stats import multivariate_normal

from dsd.corruption.writer import Noise as StoredNoise
from dsd.corruption.writer import write_noisy_store
from dsd.evaluation import memorisation as module
from dsd.evaluation.memorisation import Observations, memorisation
from dsd.operators.config import (
    DownsampleOperator,
    FourierOperator,
    IdentityOperator,
    MaskOperator,
)
from dsd.operators.operator import Operator
from dsd.storage.image_store import Block, ImageStore, write_store
from dsd.utils.errors import DataError
from dsd.utils.images import from_uint8, to_uint8
from dsd.utils.philox import noise_of

IDENTITY = IdentityOperator(kind="identity")
OPERATORS = {
    "identity": IDENTITY,
    "downsample": DownsampleOperator(kind="downsample", factor=2),
    "mask": MaskOperator(kind="mask", keep_prob=0.6, further_mask_prob=0.1),
    "fourier": FourierOperator(
        kind="fourier", acceleration=2.0, center=0.25, further_mask_prob=0.1
    ),
}
SHAPES = {"identity": (3, 4, 4), "downsample": (1, 8, 8), "mask": (2, 4, 4), "fourier": (2, 4, 8)}


def random_pixels(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def observe(images, level, operator, seed):
    """Observations in data units, and their views."""
    mapped = operator.mapped(from_uint8(images))
    view = None
    if operator.views is not None:
        view = operator.views.draw(len(images), torch.Generator().manual_seed(seed))
    eps = torch.from_numpy(noise_of(seed, np.arange(len(images)), tuple(mapped.shape[1:])))
    return operator.project(mapped + level[:, None, None, None] * eps, view), view


def searched(images, known, level, operator, *, heldout, seed=0, noise_seed=1):
    """A search among observations of ``known``, of which the last ones are held out."""
    y, view = observe(known, level, operator, noise_seed)
    parts = [
        Observations.of(y[rows], level[rows], None if view is None else view[rows])
        for rows in (slice(-heldout), slice(-heldout, None))
    ]
    return memorisation(images, *parts, operator=operator, seed=seed)


def identity_of(images):
    return Operator(IDENTITY, tuple(images.shape[1:]))


class Twin:
    """Scores in double precision, observation by observation."""

    def __init__(self, y, level, operator):
        flat, s = flat64(y), np.maximum(level.double().numpy(), 0.01)
        values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
        self.clean = vectors @ np.diag(np.maximum(values - (s**2).mean(), 0)) @ vectors.T
        self.mean, self.operator = flat.mean(0), operator

    def scores(self, images, y, view, level):
        """Of all images with one observation."""
        mapped, s = self.operator.mapped(from_uint8(images)), max(float(level), 0.01)
        if view is not None:
            mapped = self.operator.project(mapped, view[None].expand(len(images), -1, -1, -1))
        squares = ((flat64(mapped) - flat64(y[None])) ** 2).sum(1)
        dim = y.numel()
        if view is not None:
            return (int(view.sum()) * dim / view.numel() - squares / s**2) / 2
        data = multivariate_normal(self.mean, self.clean + s**2 * np.eye(dim))
        noise = -(squares / s**2 + dim * math.log(2 * math.pi * s**2)) / 2
        return noise - data.logpdf(flat64(y[None])[0])

    def matrix(self, images, y, views, level):
        """Images in rows, observations in columns."""
        views = [None] * len(y) if views is None else views
        each = [self.scores(images, *one) for one in zip(y, views, level, strict=True)]
        return np.stack(each, axis=1)


def flat64(x):
    return x.flatten(1).double().numpy()


def p_value_by_loops(scores, heldout):
    """From scores of all pairs; the last ``heldout`` observations are held out."""
    total, best = scores.shape[1], {}
    for row in scores:
        match = int(row.argmax())
        best[match] = max(best.get(match, -np.inf), row[match])
    ranked = sorted(best, key=lambda j: -best[j])
    looks = {max(1, len(ranked) // part) for part in (1, 4, 16)}
    few = []
    for top in looks:
        seen = sum(j >= total - heldout for j in ranked[:top])
        ways = [
            math.comb(heldout, i) * math.comb(total - heldout, top - i) for i in range(seen + 1)
        ]
        few.append(sum(ways) / math.comb(total, top))
    return min(1.0, len(looks) * min(few))


@pytest.mark.parametrize("kind", OPERATORS)
def test_scores_matches_and_p_are_their_definitions(kind, monkeypatch):
    shape = SHAPES[kind]
    operator = Operator(OPERATORS[kind], shape)
    known, heldout = random_pixels(0, 90, *shape), 30
    level = torch.tensor([0.0, 0.1, 0.2]).repeat(30)
    images = torch.cat([known[:14], random_pixels(2, 28, *shape)])
    y, views = observe(known, level, operator, 1)
    own, own_views = observe(images, level[: len(images)], operator, 2)
    made = Observations.of(own, level[: len(images)], own_views)
    monkeypatch.setattr(module, "_observed", lambda *_: made)
    found = searched(images, known, level, operator, heldout=heldout)
    twin = Twin(torch.cat([y, own]), torch.cat([level, level[: len(images)]]), operator)
    scores = twin.matrix(images, y, views, level)
    near = {"rtol": 1e-3, "atol": 0.05}
    np.testing.assert_allclose(found.scores, scores.max(1), **near)
    np.testing.assert_array_equal(found.nearest, scores[:, :-heldout].argmax(1))
    assert found.matched_training == pytest.approx((scores.argmax(1) < 60).mean())
    assert found.by_chance == pytest.approx(2 / 3)
    assert found.p_value == pytest.approx(p_value_by_loops(scores, heldout))
    assert found.p_value < 1
    better = twin.matrix(images, own, own_views, level[: len(images)]).diagonal() - scores.max(1)
    clear = np.abs(better) > 0.1
    least, most = ((better > 0) & clear).mean(), ((better > 0) | ~clear).mean()
    assert least - 1e-6 <= found.recognised <= most + 1e-6
    assert most > 0
    assert least < 1
    suspects = scores.max(1)[found.most_suspicious(5)]
    np.testing.assert_allclose(suspects, np.sort(scores.max(1))[:-6:-1], **near)


def test_an_observation_that_is_matched_twice_counts_once_with_its_best_score():
    """The best of four matches is one of 10 training observations among 40: 1/4, at two looks."""
    matches = module._Matches(
        torch.tensor([0, 1, 2, 3, 0]), torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0])
    )
    is_heldout = torch.arange(40).remainder(4) > 0
    assert matches.p_value(is_heldout) == pytest.approx(2 / 4)


def test_large_images_are_averaged_and_their_noise_too():
    y = torch.randn(3, 2, 32, 48, generator=torch.Generator().manual_seed(0))
    found = Observations.of(y, torch.tensor([0.2, 0.4, 0.6]), None)
    blocks = y.numpy().reshape(3, 2, 16, 2, 24, 2).mean((3, 5))
    np.testing.assert_allclose(found.values, blocks.reshape(3, -1), atol=1e-6)
    np.testing.assert_allclose(found.sigma, [0.1, 0.2, 0.3])
    assert found.seen is None
    small = Observations.of(y[..., :31, :31], torch.ones(3), None)
    assert small.values.shape == (3, 2 * 31 * 31)
    np.testing.assert_allclose(small.sigma, 1)


@pytest.mark.parametrize(("kind", "size"), [("identity", 32), ("downsample", 64), ("mask", 8)])
def test_images_are_observed_with_the_noise_that_the_data_have(kind, size):
    operator = Operator(OPERATORS[kind], (1, size, size))
    clean = torch.rand(400, 1, size, size)
    level = torch.tensor([0.1, 0.3]).repeat(200)
    found = module._observed(clean, level, operator, torch.Generator().manual_seed(0))
    assert torch.equal(found.sigma, level)
    shown = operator.mapped(clean)
    if size > 16:
        shown = shown.reshape(400, 16, 2, 16, 2).mean((2, 4))
    noise = found.values - shown.flatten(1)
    if found.seen is not None:
        assert float(found.seen.mean()) == pytest.approx(0.6, abs=0.01)
        assert not found.values[found.seen == 0].any()
        noise = noise * found.seen / 0.6**0.5
    for number in (0, 1):
        assert float(noise[number::2].std()) == pytest.approx([0.1, 0.3][number], rel=0.02)


def test_nothing_is_recognised_in_much_noise_even_with_few_images_of_many_pixels():
    known, images = random_pixels(0, 150, 1, 16, 16), random_pixels(1, 100, 1, 16, 16)
    level = torch.full((150,), 50.0)
    found = searched(images, known, level, identity_of(images), heldout=30)
    assert found.recognised < 0.1
    assert found.noticed_from is None
    assert found.verdict.startswith("nothing can be said")


@pytest.mark.parametrize("collapsed", [False, True])
def test_fresh_images_raise_no_alarm_however_often_they_or_the_data_repeat(collapsed, monkeypatch):
    """Three equal observations without noise, some of them held out: no order may favour one."""
    monkeypatch.setattr(module, "_SHARES", ())  # not asked here
    p = []
    for seed in range(100):
        distinct = random_pixels(seed, 40, 1, 3, 3)
        order = torch.randperm(120, generator=torch.Generator().manual_seed(seed))
        known = distinct.repeat(3, 1, 1, 1)[order]
        images = distinct[:5].repeat(8, 1, 1, 1) if collapsed else distinct
        level = torch.zeros(120)
        found = searched(images, known, level, identity_of(known), heldout=60, seed=seed)
        p.append(found.p_value)
    assert np.mean(np.array(p) < 0.05) <= 0.05 + 2 * (0.05 * 0.95 / 100) ** 0.5
    assert np.mean(np.array(p) < 0.5) <= 0.5 + 2 * (0.5 * 0.5 / 100) ** 0.5


def of_clothes(make, sigma, seed=0):
    """A search among 3,000 training and 600 held-out observations, for 600 "generated" images."""
    (images, _), _ = clothes()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:4200]
    known, fresh = images[order[:3600]], images[order[3600:]]
    level = torch.full((3600,), sigma)
    return searched(make(known, fresh), known, level, identity_of(known), heldout=600, seed=seed)


@pytest.mark.parametrize(
    ("sigma", "make", "limit"),
    [
        (0.5, lambda known, _: known[:600], 1e-10),
        (0.5, lambda known, _: observe(known, torch.full((3600,), 0.5), identity_of(known), 1)[0]
            [:600], 1e-20),
        (0.2, lambda known, fresh: torch.cat([known[:150], fresh[150:]]), 1e-4),
    ],
    ids=["copies", "observations", "a quarter copies"],
)  # fmt: skip
def test_copies_of_clothes_are_seen(sigma, make, limit):
    def saved(known, fresh):
        made = make(known, fresh)
        return made if made.dtype == torch.uint8 else to_uint8(made)

    found = of_clothes(saved, sigma)
    assert found.p_value < limit
    assert found.matched_training > found.by_chance
    assert found.verdict.startswith("generated images match training observations more often")
    # Copies that are there do not help to notice others.
    assert found.noticed_from is None or found.noticed_from > 1 / 128


def test_what_would_be_noticed_is_noticed_and_less_is_not():
    fresh = of_clothes(lambda _, fresh: fresh, 0.2)
    assert fresh.p_value > 0.01
    share = fresh.noticed_from
    assert 1 / 128 < share < 1
    expected = f"none found; noticed would be copies from {share:.1%} of the images on"
    assert fresh.verdict == expected
    assert alarms(round(600 * share)) >= 3
    assert alarms(round(600 * share / 8)) <= 2


def alarms(count):
    """In how many of 4 splits so many copies are noticed among 600 images."""

    def mixed(known, fresh):
        return torch.cat([known[:count], fresh[count:]])

    return sum(of_clothes(mixed, 0.2, seed).p_value < 0.01 for seed in range(4))


def test_images_that_look_the_same_are_counted_in_images_and_in_pairs():
    (images, _), _ = clothes()
    first, pairs = images[:10], 10 * 5 * 4
    known, level = images[100:200], torch.full((100,), 0.5)
    step = torch.full_like(first, 4).where(first < 128, -4 + 256)  # 4 grey levels up or down
    for change, repeated, distinct in (
        (0 * step, 1.0, 50 * 49 / pairs),
        (step, 1.0, 50 * 49 / pairs),
        (2 * step, 0.8, 50 * 49 / (10 * 4 * 3)),
    ):
        copies = torch.cat([first.repeat(4, 1, 1, 1), first + change])
        found = searched(copies, known, level, identity_of(known), heldout=50)
        assert found.repeated == pytest.approx(repeated)
        assert found.distinct == pytest.approx(distinct)
    found = searched(first, known, level, identity_of(known), heldout=50)
    assert found.repeated == 0
    assert found.distinct is None


def test_a_store_gives_its_observations_as_they_are(tmp_path):
    clean = random_pixels(0, 700, 1, 4, 4).numpy()
    write_store(tmp_path / "clean", [Block(clean)], shard_size=400, scale=1 / 127.5, offset=-1.0)
    noise = StoredNoise(sigma=0.5, assumed=0.5, seed=3, add=True, clean_fraction=0.3)
    numbers = np.arange(0, 700, dtype=np.int64)[::-1].copy()
    write_noisy_store(
        tmp_path / "clean", tmp_path / "y", numbers, noise=noise, operator=OPERATORS["mask"]
    )
    store = ImageStore.open(tmp_path / "y")
    found = Observations.of_store(store)
    assert torch.equal(found.values, store.all().flatten(1))
    assert torch.equal(found.sigma, store.sigma)
    assert set(found.sigma.tolist()) == {0.0, 0.5}
    assert torch.equal(found.seen > 0, found.values != 0)


def test_bad_input_is_refused():
    known, level = random_pixels(0, 20, 1, 4, 4), torch.full((20,), 0.5)
    for images, heldout, message in (
        (known[:1], 5, "needs at least 2 images in each set but one has 1"),
        (known, 20, "needs at least 1 images in each set but one has 0"),
        (random_pixels(0, 20, 1, 4, 5), 5, "features of 20 and of 16 numbers"),
    ):
        with pytest.raises(DataError, match=message):
            searched(images, known, level, identity_of(images), heldout=heldout)
