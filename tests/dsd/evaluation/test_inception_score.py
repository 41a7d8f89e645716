import pytest
import torch
from clothes import clothes
from hypothesis import given
from hypothesis import strategies as st

from dsd.evaluation.inception_score import inception_score
from dsd.features.extractor import extract, load_extractor
from dsd.utils.errors import DataError


def test_one_sure_image_of_each_class_scores_their_number():
    assert inception_score(torch.eye(7).repeat(3, 1)) == pytest.approx(7)


@given(seed=st.integers(0, 2**32))
def test_it_is_the_mean_divergence_from_the_mean(seed):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(6, 4, dtype=torch.float64, generator=generator).softmax(dim=1)
    divergences = (p * (p / p.mean(dim=0)).log()).sum(dim=1)
    assert inception_score(p) == pytest.approx(float(divergences.mean().exp()), rel=1e-12)
    assert inception_score(p.flip(0)) == pytest.approx(inception_score(p))


def test_clothes_score_high_and_blurred_or_fewer_kinds_of_clothes_lower():
    (images, labels), _ = clothes()
    images, labels = images[:600], labels[:600]
    classifier = load_extractor("fashion-classifier", device=torch.device("cpu"))

    def score(x):
        return inception_score(classifier.probabilities(extract(classifier, x, batch_size=200)))

    grey = (images.float() * 0.3 + images.float().mean(dim=0) * 0.7).to(torch.uint8)
    assert 5.5 < score(images) < 10
    assert score(images[labels < 5]) < score(images) - 2
    assert score(grey) < score(images) - 2


def test_broken_probabilities_are_refused():
    with pytest.raises(DataError, match="at least 2 images"):
        inception_score(torch.eye(3)[:1])
    with pytest.raises(DataError, match="features of 1 of 2 images are NaN"):
        inception_score(torch.tensor([[0.5, 0.5], [torch.nan, 1.0]]))
