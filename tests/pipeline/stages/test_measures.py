"""Everything that is measured of some images, on real clothes."""

import pytest
import torch
from clothes import clothes
from stage_helpers import params_with
from torch import nn

from dsd.features.cache import FeatureCache
from dsd.features.extractor import extract, load_extractor
from dsd.features.inception import PROTOCOLS, Inception
from dsd.metrics.frechet import frechet_distance, moments
from dsd.metrics.statistics_file import save_statistics
from dsd.operators.config import IdentityOperator
from dsd.operators.operator import Operator
from dsd.selection.proximal import renoise
from pipeline.stages.measures import Data, Space

SIGMA = 0.3
COUNT = 1300
CPU = torch.device("cpu")


def as_noisy(images, seed):
    return renoise(images, torch.full((len(images),), SIGMA), seed=seed)


@pytest.fixture(scope="module")
def data():
    (images, _), (others, _) = clothes()
    clean = images[:COUNT]
    return Data(
        clean,
        as_noisy(clean, 1),
        torch.full((COUNT,), SIGMA),
        torch.arange(COUNT),
        as_noisy(others[:300], 2),
        torch.full((300,), SIGMA),
        Operator(IdentityOperator(kind="identity"), tuple(clean.shape[1:])),
    )


def space_of(data, folder, **run):
    params = params_with(evaluate={"num_samples": COUNT}, run=run)
    extractor = load_extractor("fashion-classifier", device=CPU)
    return Space(extractor, data, params, FeatureCache(folder))


@pytest.fixture(scope="module")
def space(data, tmp_path_factory):
    return space_of(data, tmp_path_factory.mktemp("features"))


def test_perfect_images_have_no_distance_and_bad_ones_a_large_one(space, data):
    perfect, noisy = space.measures(data.clean, None), space.measures(data.noisy, None)
    assert perfect["frechet"] == pytest.approx(0, abs=1e-6)
    assert perfect["precision"] == perfect["recall"] == perfect["coverage"] == 1
    for name in ("frechet", "kid", "proximal_frechet"):
        assert noisy[name] > perfect[name] + 10 * perfect.get(f"{name}_standard_error", 0)
    assert noisy["precision"] < 0.5 < perfect["precision"]
    # Ten kinds of clothes, told apart more or less.
    assert noisy["inception_score"] < 5 < perfect["inception_score"] <= 10


def test_the_interval_and_the_limit_are_there_where_images_suffice(space, data):
    # 1.2 images for each of 64 features, and two.
    enough, few = (space.measures(data.noisy[:count], None) for count in (79, 78))
    for prefix in ("", "proximal_"):
        low, high = (enough[f"{prefix}frechet_infinity_{end}"] for end in ("low", "high"))
        assert low <= enough[f"{prefix}frechet_infinity"] <= high
        assert enough[f"{prefix}frechet_infinity"] < enough[f"{prefix}frechet"]
        assert f"{prefix}frechet_infinity" not in few
        assert few[f"{prefix}frechet_standard_error"] > 0


def test_too_few_images_are_noted(data, space, tmp_path):
    assert space.notes == ()
    few = params_with(evaluate={"num_samples": 50})
    extractor = load_extractor("fashion-classifier", device=CPU)
    (note,) = Space(extractor, data, few, FeatureCache(tmp_path)).notes
    assert "50 images are too few for 64 features" in note


def test_without_clean_images_only_noisy_ones_are_compared(space, data, tmp_path):
    alone = space_of(data._replace(clean=None), tmp_path).measures(data.clean, None)
    both = space.measures(data.clean, None)
    for name, value in alone.items():
        assert value == both[name] if name.startswith("proximal") else value is None


def test_noisy_images_are_measured_like_any(space, data):
    again = space.measures(data.noisy[: len(data.clean)], None)
    for name, value in space.measures_of_noisy().items():
        assert value == pytest.approx(again[name])


def test_images_of_another_size_are_not_compared_with_clean_ones(space):
    small = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8)
    measured = space.measures(small, None)
    assert {v for name, v in measured.items() if not name.startswith("proximal")} == {None}
    assert space.to_clean(small) is None


def test_batches_and_the_cache_do_not_matter(space, data, tmp_path):
    first = space.measures(data.heldout, None)
    for _ in ("made", "from the cache"):
        again = space_of(data, tmp_path, eval_batch_size=77).measures(data.heldout, None)
        for name, value in first.items():
            assert again[name] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_the_short_way_to_a_distance_agrees_with_the_whole(space, data):
    whole = space.measures(data.heldout, None)
    assert space.to_clean(data.heldout) == whole["frechet"]


@pytest.mark.parametrize("with_clean", [True, False])
def test_published_statistics_are_measured_in_the_space_that_they_are_for(
    data, tmp_path, with_clean
):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    edm, other = (Inception(name, network, CPU) for name in PROTOCOLS)
    few = data._replace(
        clean=data.clean[:30] if with_clean else None,
        noisy=data.noisy[:30],
        sigma=data.sigma[:30],
        numbers=data.numbers[:30],
    )
    published = moments(extract(edm, data.clean[30:60], batch_size=30), protocol=edm.protocol)
    save_statistics(tmp_path / "mine.npz", published)
    params = params_with(
        evaluate={
            "features": [edm.name, other.name],
            "inception_statistics": str(tmp_path / "mine.npz"),
        }
    )
    images = data.clean[60:90]
    measured, without = (
        Space(one, few, params, FeatureCache(tmp_path)).measures(images, None)
        for one in (edm, other)
    )
    expected = frechet_distance(moments(extract(edm, images, batch_size=30)), published)
    assert measured["frechet_published"] == pytest.approx(expected)
    assert "frechet_published" not in without
    assert (measured["frechet"] is None) == (not with_clean)
