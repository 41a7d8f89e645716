"""Linear operators: adjoints, projections, known kernels, and the laws of views."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import correlate1d
from small_operators import CHOICES, SHAPE, choice, normal, operator, random
from torch.nn import functional

from dsd.operators.operator import Operator, image_shape, observed_counts
from dsd.utils.errors import ParamsError

WITH_VIEWS = ("mask", "fourier")


def view_of(op, seed, count=3):
    return None if op.views is None else op.views.draw(count, random(seed))


def inner(a, b):
    return (a * b).flatten(1).sum(1)


KINDS = st.sampled_from([*CHOICES])
SEEDS = st.integers(0, 2**32)


@given(kind=KINDS, seed=SEEDS, height=st.integers(2, 7), width=st.integers(2, 7))
def test_the_adjoint_moves_an_operator_to_the_other_side_of_an_inner_product(
    kind, seed, height, width
):
    op = operator(kind, (2, 2 * height, 2 * width), **({"radius": 2} if kind == "blur" else {}))
    x, y = normal(op.shape, seed), normal(op.observed_shape, seed + 1)
    view = view_of(op, seed)
    left, right = inner(op.forward(x, view), y), inner(x, op.adjoint(y, view))
    torch.testing.assert_close(left, right, atol=1e-12, rtol=1e-12)


@given(kind=KINDS, seed=SEEDS, factor=st.floats(-3, 3))
def test_operators_are_linear_and_treat_images_apart(kind, seed, factor):
    op = operator(kind)
    x, other = normal(SHAPE, seed), normal(SHAPE, seed + 1)
    view = view_of(op, seed)
    together = op.forward(x + factor * other, view)
    torch.testing.assert_close(together, op.forward(x, view) + factor * op.forward(other, view))
    one = None if view is None else view[1:2]
    torch.testing.assert_close(op.forward(x, view)[1:2], op.forward(x[1:2], one))


@given(kind=st.sampled_from(WITH_VIEWS), seed=SEEDS)
def test_views_project_orthogonally(kind, seed):
    op = operator(kind)
    x, y, view = normal(SHAPE, seed), normal(SHAPE, seed + 1), view_of(op, seed)
    once = op.project(x, view)
    torch.testing.assert_close(op.project(once, view), once)
    torch.testing.assert_close(inner(once, y), inner(x, op.project(y, view)))
    torch.testing.assert_close(inner(once, x - once), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(inner(once, once) + inner(x - once, x - once), inner(x, x))


@given(kind=st.sampled_from(WITH_VIEWS), seed=SEEDS)
def test_a_view_determines_as_many_numbers_as_are_counted(kind, seed):
    """The trace of a projection is its rank."""
    op = operator(kind, (2, 2, 4))
    view = view_of(op, seed, count=1)
    basis = torch.eye(16, dtype=torch.float64).reshape(16, 2, 2, 4)
    trace = inner(op.project(basis, view.expand(16, -1, -1, -1)), basis).sum()
    assert trace.item() == pytest.approx(observed_counts(view, op.shape).item(), abs=1e-9)


def test_fourier_views_cut_columns_out_of_the_two_dimensional_transform():
    op = operator("fourier")
    x, view = normal(SHAPE, 0), view_of(op, 1)
    spectrum = np.fft.fft2((x[:, 0] + 1j * x[:, 1]).numpy(), norm="ortho")
    expected = np.fft.ifft2(spectrum * view[:, 0].numpy(), norm="ortho")
    y = op.forward(x, view)
    np.testing.assert_allclose(y[:, 0], expected.real, atol=1e-12)
    np.testing.assert_allclose(y[:, 1], expected.imag, atol=1e-12)
    assert not view.all()


def test_masks_hide_the_same_pixels_in_all_channels():
    op = operator("mask", (3, 6, 8))
    x, view = normal((3, 6, 8), 0), view_of(op, 1)
    torch.testing.assert_close(op.forward(x, view), torch.where(view, x, 0.0))
    assert view.shape == (3, 1, 6, 8)
    assert 0 < view.float().mean() < 1


@given(std=st.floats(0.3, 4), radius=st.integers(1, 5))
def test_blurring_is_scipy_s_convolution_with_mirrored_borders(std, radius):
    op = operator("blur", std=std, radius=radius)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    kernel /= kernel.sum()
    x = normal(SHAPE, 0).numpy()
    expected = correlate1d(correlate1d(x, kernel, axis=2, mode="mirror"), kernel, mode="mirror")
    np.testing.assert_allclose(op.forward(torch.from_numpy(x), None), expected, atol=1e-12)


@given(factor=st.sampled_from([2, 3, 4]))
def test_downsampling_takes_means_of_squares(factor):
    op = operator("downsample", (1, 12, 24), factor=factor)
    x = normal((1, 12, 24), 0)
    torch.testing.assert_close(op.forward(x, None), functional.avg_pool2d(x, factor))
    assert op.observed_shape == (1, 12 // factor, 24 // factor)
    assert image_shape(choice("downsample", factor=factor), op.observed_shape) == op.shape


def test_the_identity_gives_back_the_very_tensor():
    x = normal(SHAPE, 0)
    op = operator("identity")
    assert op.forward(x, None) is x
    assert op.adjoint(x, None) is x


@given(kind=st.sampled_from(WITH_VIEWS), seed=SEEDS)
def test_the_view_of_an_image_is_a_function_of_seed_and_number_alone(kind, seed):
    views = operator(kind).views
    together = views.of_images(seed, np.array([7, 0, 2**40]))
    assert torch.equal(together[2:], views.of_images(seed, np.array([2**40])))
    assert torch.equal(together[:1], views.of_images(seed, np.array([7])))


def test_images_and_seeds_have_views_of_their_own():
    views = operator("mask", (1, 16, 16)).views
    drawn = [views.of_images(seed, np.arange(5)) for seed in (0, 1)]
    assert len({view.numpy().tobytes() for view in torch.cat(drawn)}) == 10


@pytest.mark.parametrize("seen", ["of images", "fresh"])
def test_as_many_pixels_are_kept_as_asked_for(seen):
    views = operator("mask", (1, 16, 16)).views
    view = (
        views.of_images(3, np.arange(2000)) if seen == "of images" else views.draw(2000, random(3))
    )
    error = math.sqrt(0.4 * 0.6 / 2000)
    assert abs(view.float().mean().item() - 0.4) < 4 * error / 16
    assert (view.float().mean(0) - 0.4).abs().max() < 5 * error


@pytest.mark.parametrize("seen", ["of images", "fresh"])
@pytest.mark.parametrize("width", [15, 16])
def test_columns_are_kept_at_the_acceleration_with_a_whole_centre(seen, width):
    op = operator("fourier", (2, 4, width), acceleration=4.0, center=0.19, further_mask_prob=0.3)
    draws = 4000
    views = op.views
    view = (
        views.of_images(3, np.arange(draws))
        if seen == "of images"
        else views.draw(draws, random(3))
    )
    shown = view[:, 0, 0].float().mean(0)
    central = {15: [14, 0, 1], 16: [15, 0, 1]}[width]
    assert shown[central].tolist() == [1, 1, 1]
    others = torch.tensor([i for i in range(width) if i not in central])
    probability = (width / 4 - 3) / (width - 3)
    error = math.sqrt(probability * (1 - probability) / draws)
    assert (shown[others] - probability).abs().max() < 4 * error
    assert shown.sum().item() == pytest.approx(width / 4, abs=4 * error * math.sqrt(width))


def test_further_masking_hides_at_its_rate_and_never_the_centre():
    op = operator("fourier", (2, 4, 16), acceleration=2.0, center=0.19, further_mask_prob=0.3)
    view = op.views.draw(4000, random(0))
    further = op.views.further(view, random(1))
    assert not (further & ~view).any()
    assert further[..., [15, 0, 1]].all()
    others = view[..., 2:15]
    survived = further[..., 2:15].sum() / others.sum()
    error = math.sqrt(0.3 * 0.7 / others.sum())
    assert abs(survived - 0.7) < 4 * error
    masks = operator("mask", (1, 16, 16)).views
    share = masks.draw_further(1000, random(2)).float().mean()
    assert abs(share - 0.4 * 0.9) < 4 * math.sqrt(0.36 * 0.64 / 256_000)


def test_further_masking_is_independent_of_what_was_observed():
    views = operator("mask", (1, 16, 16)).views
    view = torch.ones(1000, 1, 16, 16, dtype=torch.bool)
    survived = views.further(view, random(0)).float()
    drawn = views.draw(1000, random(1)).float()
    correlation = torch.corrcoef(torch.stack([survived.flatten(), drawn.flatten()]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(256_000)


@pytest.mark.parametrize(
    ("kind", "shape", "changes", "complaint"),
    [
        ("fourier", (1, 8, 8), {}, r"images have 1 channels, not 2 .*set data\.phase to smooth"),
        ("fourier", (2, 8, 8), {"center": 0.5}, r"center observes 4 of 8 columns.*1 in 3: lower"),
        ("downsample", (1, 8, 8), {"factor": 3}, r"factor is 3, which does not divide .* of 8"),
        ("blur", (1, 8, 3), {}, r"radius is 3, but images of 3 pixels .*by 2 at most: lower it"),
    ],
)
def test_operators_that_do_not_fit_are_refused_with_the_remedy(kind, shape, changes, complaint):
    with pytest.raises(ParamsError, match=complaint):
        operator(kind, shape, **changes)


@pytest.mark.parametrize("kind", CHOICES)
def test_a_store_s_description_gives_the_operator_back(kind):
    info = {"operator": choice(kind).model_dump(), "shape": [*SHAPE], "seed": 3}
    again, first = Operator.of_store(info), operator(kind)
    x, view = normal(SHAPE, 0), view_of(first, 1)
    assert torch.equal(again.forward(x, view), first.forward(x, view))
    assert (again.shape, again.observed_shape) == (first.shape, first.observed_shape)


@pytest.mark.parametrize("kind", CHOICES)
def test_gradients_go_through_operators_as_their_adjoints(kind):
    op = operator(kind)
    x = normal(SHAPE, 0).requires_grad_(True)
    y, view = normal(op.observed_shape, 1), view_of(op, 2)
    inner(op.forward(x, view), y).sum().backward()
    torch.testing.assert_close(x.grad, op.adjoint(y, view))
