import itertools

import pytest
import torch
from clothes import clothes

from dsd.features.extractor import extract, load_extractor
from dsd.metrics.frechet import frechet_distance, moments
from dsd.selection.proximal import FrechetReference, ProximalReference, choose, measure, renoise
from dsd.utils.errors import DataError
from dsd.utils.images import from_uint8, to_uint8

NUM_IMAGES = 1000


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("fashion-classifier", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def clean():
    (images, _), _ = clothes()
    return images[:NUM_IMAGES], images[NUM_IMAGES : 2 * NUM_IMAGES]


def levels(images, sigma):
    return torch.full((len(images),), sigma)


def noisier(images, sigma, seed=7):
    """An independent way to put noise on saved images."""
    generator = torch.Generator().manual_seed(seed)
    return to_uint8(from_uint8(images) + sigma * torch.randn(images.shape, generator=generator))


def grey(count, size=8, value=128):
    return torch.full((count, 3, size, size), value, dtype=torch.uint8)


def test_noise_of_level_zero_changes_nothing(clean):
    assert torch.equal(renoise(clean[0], levels(clean[0], 0.0), seed=1), clean[0])


def test_noise_has_each_images_own_level():
    sigma = torch.tensor([0.05, 0.1, 0.2])
    noisy = from_uint8(renoise(grey(3, size=128), sigma, seed=1)) - from_uint8(grey(3, size=128))
    # 49,152 draws for each image; the standard error of the std is 0.3 %.
    torch.testing.assert_close(noisy.std(dim=(1, 2, 3)), sigma, rtol=0.015, atol=0)
    # Quantising rounds to the nearest level, so that noise on grey has mean 0.
    torch.testing.assert_close(noisy.mean(dim=(1, 2, 3)), torch.zeros(3), rtol=0, atol=0.004)


def test_noise_is_clamped_as_a_file_would_clamp_it():
    black = renoise(grey(1, size=64, value=0), torch.tensor([0.5]), seed=1)
    assert black.dtype == torch.uint8
    # Half of the noise is negative; black has nothing below.
    assert float((black == 0).double().mean()) == pytest.approx(0.5, abs=0.02)


def test_noise_depends_on_seed_and_position_alone_and_leaves_the_global_state():
    before = torch.get_rng_state()
    whole = renoise(grey(6), levels(grey(6), 0.3), seed=5)
    assert torch.equal(whole[:2], renoise(grey(2), levels(grey(2), 0.3), seed=5))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, renoise(grey(6), levels(grey(6), 0.3), seed=6))
    assert torch.equal(torch.get_rng_state(), before)


def test_proximal_with_level_zero_is_the_plain_distance(extractor, clean):
    plain = FrechetReference(clean[0], extractor, batch_size=500)
    proximal = ProximalReference(
        clean[0], levels(clean[0], 0.0), extractor, batch_size=500, seed=1
    )
    assert proximal.distance(clean[1]) == plain.distance(clean[1])
    assert plain.distance(clean[0]) < 1e-12


def test_a_reference_gives_the_distance_of_moments(extractor, clean):
    a, b = (moments(extract(extractor, images, batch_size=500)) for images in clean)
    reference = FrechetReference(clean[0], extractor, batch_size=500)
    assert reference.distance(clean[1]) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_more_noise_is_farther_from_clean(extractor, clean):
    reference = FrechetReference(clean[0], extractor, batch_size=500)
    distances = [
        reference.distance(noisier(clean[1], sigma)) for sigma in (0.0, 0.05, 0.1, 0.2, 0.5)
    ]
    # Each step is far beyond the sampling error, which is about the first distance.
    assert all(b > a + distances[0] for a, b in itertools.pairwise(distances))


def test_proximal_needs_no_clean_images_to_prefer_them(extractor, clean):
    sigma = levels(clean[0], 0.5)
    reference = ProximalReference(noisier(clean[0], 0.5), sigma, extractor, batch_size=500, seed=1)
    distances = [reference.distance(noisier(clean[1], left)) for left in (0.0, 0.2, 0.4)]
    blurred = torch.nn.functional.avg_pool2d(clean[1].float(), 3, 1, padding=1).to(torch.uint8)
    assert distances[0] < distances[1] < distances[2]
    assert reference.distance(blurred) > 5 * distances[0]


def test_generated_images_take_the_observations_levels_in_turn(extractor, clean):
    sigma = torch.tensor([0.1, 0.4]).repeat(50)
    observed = renoise(clean[0][:100], sigma, seed=3)
    reference = ProximalReference(observed, sigma, extractor, batch_size=100, seed=2)
    more = clean[1][:150]
    expected = FrechetReference(observed, extractor, batch_size=100).distance(
        renoise(more, torch.tensor([0.1, 0.4]).repeat(75), seed=2)
    )
    assert reference.distance(more) == expected


def test_a_reference_of_another_size_or_other_channels_is_refused(extractor, clean):
    small = clean[0][:50]
    plain = FrechetReference(small, extractor, batch_size=50)
    proximal = ProximalReference(small, levels(small, 0.1), extractor, batch_size=50, seed=1)
    for others, size in (
        (small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), "1 x 32 x 32"),
        (small.expand(-1, 3, -1, -1), "3 x 16 x 16"),
    ):
        for reference in (plain, proximal):
            with pytest.raises(DataError, match=f"images of {size} .* reference of 1 x 16 x 16"):
                reference.distance(others)


def test_a_reference_without_variation_is_refused(extractor):
    with pytest.raises(DataError, match="all 5 reference images are the same"):
        FrechetReference(grey(5), extractor, batch_size=5)
    with pytest.raises(DataError, match="at least 2 images in each set but one has 1"):
        FrechetReference(grey(1), extractor, batch_size=5)


def test_measured_moments_know_how_they_were_made(extractor, clean):
    measured = measure(extractor, clean[0][:10], batch_size=5)
    assert measured.protocol == extractor.protocol
    assert measured.count == 10
    assert "10 images are too few for 64 features" in measured.notes[0]


@pytest.mark.parametrize(
    ("distances", "errors", "chosen"),
    [
        ([9.0, 2.0, 3.0], [0.0, 0.0, 0.0], 1),
        ([9.0, 2.0, 2.5, 4.0], [9.0, 0.5, 9.0, 9.0], 2),  # the error of the least, not their own
        ([9.0, 2.5, 2.0, 2.4, 2.6], [0.0, 9.0, 0.5, 0.0, 0.0], 3),
        ([2.0, 9.0], [0.5, 9.0], 0),
        ([1.0, 1.0], [0.0, 0.0], 1),
    ],
)
def test_the_last_checkpoint_within_one_error_of_the_least_distance_is_chosen(
    distances, errors, chosen
):
    assert choose(distances, errors) == chosen
