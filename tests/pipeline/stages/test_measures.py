"""Everything that is measured of some images, on real clothes."""

import pytest
import torch
from clothes import clothes
from stage_helpers import Recorder, params_with
from torch import nn

from dsd.evaluation.inception_score import inception_score
from dsd.evaluation.kid import kernel_distance
from dsd.features.cache import FeatureCache
from dsd.features.extractor import extract, load_extractor
from dsd.features.inception import PROTOCOLS, Inception
from dsd.metrics.frechet import frechet_distance, moments
from dsd.metrics.intervals import frechet_estimate
from dsd.metrics.statistics_file import save_statistics
from dsd.operators.config import IdentityOperator
from dsd.operators.operator import Operator
from dsd.selection.proximal import renoise
from dsd.utils.errors import DataError
from dsd.utils.random import derive_seed
from pipeline.stages.features import load_features
from pipeline.stages.measures import (
    EvaluationData,
    FeatureSpaceEvaluator,
    Measuring,
    published_statistics,
)

SIGMA = 0.3
COUNT = 1300
CPU = torch.device("cpu")


def as_noisy(images, seed):
    return renoise(images, torch.full((len(images),), SIGMA), seed=seed)


@pytest.fixture(scope="module")
def data():
    (images, _), (others, _) = clothes()
    clean = images[:COUNT]
    return EvaluationData(
        clean,
        as_noisy(clean, 1),
        torch.full((COUNT,), SIGMA),
        torch.arange(COUNT),
        as_noisy(others[:300], 2),
        torch.full((300,), SIGMA),
        Operator(IdentityOperator(kind="identity"), tuple(clean.shape[1:])),
    )


def space_of(data, folder, num_samples=COUNT, **run):
    params = params_with(evaluate={"num_samples": num_samples}, run=run)
    extractor = load_extractor("fashion-classifier", device=CPU)
    return FeatureSpaceEvaluator(extractor, data, params, FeatureCache(folder))


@pytest.fixture(scope="module")
def space(data, tmp_path_factory):
    return space_of(data, tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def noisy(space, data):
    return space.measures(data.noisy, None)


def test_perfect_images_have_no_distance_and_bad_ones_a_large_one(space, data, noisy):
    perfect = space.measures(data.clean, None)
    assert perfect["frechet"] == pytest.approx(0, abs=1e-6)
    assert perfect["precision"] == perfect["recall"] == perfect["coverage"] == 1
    for name in ("frechet", "kid", "proximal_frechet"):
        assert noisy[name] > perfect[name] + 10 * perfect.get(f"{name}_standard_error", 0)
    assert noisy["precision"] < 0.5 < perfect["precision"]
    # Ten kinds of clothes, told apart more or less.
    assert noisy["inception_score"] < 5 < perfect["inception_score"] <= 10


def test_measures_are_those_of_the_features(data, noisy):
    extractor = load_extractor("fashion-classifier", device=CPU)
    made, clean = (extract(extractor, x, batch_size=99) for x in (data.noisy, data.clean))
    estimate = frechet_estimate(made, moments(clean))
    kid = kernel_distance(made, clean, seed=derive_seed(0, "evaluation noise"))
    score = inception_score(extractor.logits(made).softmax(1))
    expected = {
        "frechet": estimate.value,
        "frechet_standard_error": estimate.standard_error,
        "frechet_infinity": estimate.limit,
        "frechet_infinity_low": estimate.interval.low,
        "frechet_infinity_high": estimate.interval.high,
        "kid": kid.value,
        "kid_standard_error": kid.standard_error,
        "inception_score": score,
    }
    assert {name: noisy[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_the_limit_is_there_where_images_suffice(space, data, tmp_path):
    # 1.2 images for each of 64 features, and two.
    enough, few = (space.measures(data.noisy[:count], None) for count in (79, 78))
    for prefix in ("", "proximal_"):
        assert enough[f"{prefix}frechet_infinity"] < enough[f"{prefix}frechet"]
        assert f"{prefix}frechet_infinity" not in few
        assert few[f"{prefix}frechet_standard_error"] > 0
    assert space.notes == ()
    (note,) = space_of(data, tmp_path, num_samples=50).notes
    assert "50 images are too few for 64 features" in note


def test_without_clean_images_of_their_size_only_noisy_ones_are_compared(
    space, data, noisy, tmp_path
):
    alone = space_of(data._replace(clean=None), tmp_path).measures(data.noisy, None)
    for name, value in alone.items():
        assert value == noisy[name] if name.startswith("proximal") else value is None
    small = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8)
    measured = space.measures(small, None)
    assert {v for name, v in measured.items() if not name.startswith("proximal")} == {None}
    assert space.to_clean(small) is None


def test_noisy_images_are_measured_like_any(space, data, noisy, tmp_path):
    for name, value in space.measures_of_noisy().items():
        assert value == pytest.approx(noisy[name])
    fewer = space_of(data, tmp_path, num_samples=200).measures_of_noisy()
    assert fewer["frechet"] == pytest.approx(space.to_clean(data.noisy[:200]))


def test_batches_and_the_cache_do_not_matter(space, data, tmp_path):
    first = space.measures(data.heldout, None)
    assert space.to_clean(data.heldout) == first["frechet"]
    for _ in ("made", "from the cache"):
        again = space_of(data, tmp_path, eval_batch_size=77).measures(data.heldout, None)
        for name, value in first.items():
            assert again[name] == pytest.approx(value, rel=1e-4, abs=1e-6)


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
    images, cache = data.clean[60:90], FeatureCache(tmp_path)
    named = published_statistics(params)
    measured, without = (
        FeatureSpaceEvaluator(one, few, params, cache, named).measures(images, None)
        for one in (edm, other)
    )
    expected = frechet_distance(moments(extract(edm, images, batch_size=30)), published)
    assert measured["frechet_published"] == pytest.approx(expected)
    assert "frechet_published" not in without
    assert (measured["frechet"] is None) == (not with_clean)


def test_a_file_at_fault_is_refused_with_its_key(tmp_path):
    weights, statistics = str(tmp_path / "weights.pth"), f"inception-edm:{tmp_path}/none.npz"
    params = params_with(
        evaluate={
            "features": ["inception-edm"],
            "inception_weights": weights,
            "inception_statistics": statistics,
        }
    )
    with pytest.raises(DataError, match=r"^evaluate\.inception_weights: .*weights\.pth: cannot"):
        load_features("inception-edm", params, CPU)
    with pytest.raises(DataError, match=r"^evaluate\.inception_statistics: .*none\.npz: statis"):
        published_statistics(params)


def test_progress_moves_with_every_batch_and_lines_name_what_is_measured(data, tmp_path):
    log = Recorder()
    params = params_with(evaluate={"num_samples": COUNT}, run={"eval_batch_size": 600})
    extractor = load_extractor("fashion-classifier", device=CPU)
    with Measuring(log, 3 * COUNT) as measuring:
        measuring.now("the data")
        FeatureSpaceEvaluator(extractor, data, params, FeatureCache(tmp_path), done=measuring.add)
    batches = [600, 1200, 1300, 1900, 2500, 2600]
    assert log.bars[0].seen == [0, *batches, 3 * COUNT, "closed"]
    assert log.lines == ["measuring the data"]
