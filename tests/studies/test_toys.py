"""The toys: data whose support is known, the network for points, and the figures' training."""

import csv
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import optimize

from dsd.model.denoiser import Denoiser, coefficients
from dsd.model.networks.mlp import MLP
from dsd.theory.toys import Toy, make_toy, sliced_wasserstein
from pipeline.stage_io.paths import Paths
from studies import toys
from studies.toy_cases import SETTINGS, Case, train_case

NAMES = ["moons", "rings", "spirals"]


def draw(toy, count, seed=0):
    return toy.sample(count, generator=torch.Generator().manual_seed(seed))


def circle(radius, corners):
    angle = torch.linspace(0, 2 * math.pi, corners + 1)
    points = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    return Toy(points[:-1], points[1:])


def square():
    """The square from -1 to 1, corner by corner."""
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    return Toy(corners, corners.roll(-1, dims=0))


@pytest.mark.parametrize("name", NAMES)
def test_points_are_centred_with_a_standard_deviation_of_one_half(name):
    points = draw(make_toy(name), 200_000)
    assert points.shape == (200_000, 2)
    assert points.mean(0).abs().max() < 0.006
    assert points.var(dim=0).mean().sqrt() == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize("name", NAMES)
def test_samples_lie_on_the_curves_and_cover_them(name):
    toy = make_toy(name)
    points = draw(toy, 4000)
    assert toy.distance(points).max() < 1e-6
    # Total variation of a multinomial of 64 equal shares from equal shares.
    expected = 1 - math.sqrt(64 / (2 * math.pi * 4000))
    assert toy.coverage(points) == pytest.approx(expected, abs=0.015)


@given(st.floats(0, 3), st.floats(0, 2 * math.pi))
def test_the_distance_to_a_circle_is_the_known_offset(radius, angle):
    point = radius * torch.tensor([[math.cos(angle), math.sin(angle)]])
    distance = circle(0.7, corners=2000).distance(point)
    assert distance.item() == pytest.approx(abs(radius - 0.7), abs=3e-6)


def test_coverage_counts_the_share_of_the_curve_that_has_its_mass():
    shape = square()
    at = torch.linspace(-0.99, 0.99, 100)
    lower = torch.stack([at, torch.full_like(at, -1.3)], dim=1)
    everywhere = torch.cat([lower, -lower, lower.flip(1), -lower.flip(1)])
    assert shape.coverage(everywhere, parts=4) == pytest.approx(1)
    assert shape.coverage(lower, parts=4) == pytest.approx(0.25)
    assert shape.coverage(torch.cat([lower, -lower]), parts=4) == pytest.approx(0.5)
    assert shape.coverage(torch.cat([lower, lower, lower, -lower]), parts=4) == pytest.approx(0.5)
    assert shape.coverage(lower[:1], parts=64) == pytest.approx(1 / 64)


def test_the_sliced_distance_is_the_mean_of_scipys_distances_of_projections():
    a, b = (torch.randn(50, 2, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    a = a * torch.tensor([0.3, 2.0])
    found = sliced_wasserstein(a, b, directions=2)
    costs = [(a[:, None, axis] - b[None, :, axis]).square().numpy() for axis in (0, 1)]
    best = [cost[optimize.linear_sum_assignment(cost)].mean() for cost in costs]
    assert found == pytest.approx(math.sqrt(np.mean(best)), rel=1e-5)
    assert sliced_wasserstein(a, a.flip(0)) == 0


def network(**changes):
    torch.manual_seed(0)
    net = MLP(**{"dimensions": 2, "width": 16, "depth": 2, **changes})
    for parameter in net.parameters():  # the head starts at 0 and would hide every path
        torch.nn.init.normal_(parameter, std=0.3)
    return net


@pytest.mark.parametrize("shape", [(2, 1, 1), (2,), (3, 2, 2)])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_network_keeps_the_shape_of_any_sample(shape, depth):
    x = torch.randn(5, *shape)
    net = network(dimensions=math.prod(shape), depth=depth)
    assert net(x, torch.zeros(5)).shape == x.shape


def test_samples_of_a_batch_do_not_see_each_other():
    net, x, c_noise = network().double(), torch.randn(6, 2, 1, 1).double(), torch.randn(6).double()
    together = net(x, c_noise)
    alone = torch.cat([net(x[i : i + 1], c_noise[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together, net(x, c_noise.flip(0)))


def test_every_weight_of_the_network_is_used():
    net = network()
    net(torch.randn(8, 2, 1, 1), torch.randn(8)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in net.parameters())


def test_a_fresh_network_leaves_the_skip_connection_alone():
    x, sigma = torch.randn(4, 2, 1, 1), torch.tensor([0.1, 0.5, 1.0, 9.0])
    fresh = Denoiser(MLP(dimensions=2, width=16, depth=2), sigma_data=0.5)
    skip = coefficients(sigma, 0.5).c_skip
    torch.testing.assert_close(fresh(x, sigma), skip[:, None, None, None] * x)


def small(kimg_teacher, kimg_student, *, batch_size=256, **changes):
    """The committed settings with a smaller network and shorter training."""
    both = {"lr_warmup_kimg": 2.0, "batch_size": batch_size}
    pretrain = SETTINGS.pretrain.model_copy(update={"kimg": kimg_teacher, **both})
    distill = SETTINGS.distill.model_copy(update={"kimg": kimg_student, **both})
    return dataclasses.replace(SETTINGS, pretrain=pretrain, distill=distill, **changes)


def test_a_case_is_a_function_of_its_seed_and_only_models_see_the_assumed_level():
    settings = small(2.0, 2.0, num_observations=300, num_samples=100, width=8, depth=1)
    first, again, other, over = (
        train_case(Case("rings", 0.1, *case), settings)
        for case in ((0.1, 0), (0.1, 0), (0.1, 1), (0.2, 0))
    )
    for method, points in first.points.items():
        np.testing.assert_array_equal(points, again.points[method])
        assert not np.array_equal(points, other.points[method])
    same = {name for name in first.points if np.array_equal(first.points[name], over.points[name])}
    assert same == {"clean", "noisy"}


TINY = small(1.0, 1.0, num_observations=300, num_samples=200, width=8, depth=1)


@pytest.fixture(scope="module")
def outcomes():
    """All cases of the command, with settings of a moment."""
    return [train_case(case, TINY) for case in toys.CASES]


@pytest.fixture(scope="module")
def report(outcomes, tmp_path_factory):
    """What the command writes."""
    root = tmp_path_factory.mktemp("toys")
    toys.write_report(Paths(root), outcomes)
    return root / "reports/toys"


def test_each_panel_shows_the_points_of_its_method(outcomes):
    figure = toys.draw_gaps(outcomes[:2])
    panels = iter(figure.axes)
    for outcome in outcomes[:2]:
        for method, points in outcome.points.items():
            panel = next(panels)
            np.testing.assert_array_equal(panel.collections[0].get_offsets(), points)
            assert panel.get_title().startswith(f"{method}\n")
    assert next(panels, None) is None


def test_the_curves_of_levels_are_the_measured_values(outcomes):
    shown = outcomes[-3:]
    *panels, left, right = toys.draw_levels(shown).axes
    assert len(panels) == 2 * len(shown)
    for axes, measure in ((left, "distance"), (right, "wasserstein")):
        lines = {line.get_label(): line for line in axes.lines if len(line.get_xdata()) == 3}
        assert set(lines) == set(shown[0].points) - {"clean"}
        for method, line in lines.items():
            assert [*line.get_ydata()] == [getattr(o.results[method], measure) for o in shown]
            assert [*line.get_xdata()] == [o.case.sigma_hat / o.case.sigma for o in shown]


def test_the_report_holds_both_figures(report):
    """Points are blue; frames, curves and letters are grey."""
    for name, panels in (("figure4.png", 18), ("figure6.png", 12)):
        pixels = np.asarray(Image.open(report / name).convert("RGB")).astype(int)
        coloured = (pixels.max(2) - pixels.min(2)) > 40
        assert coloured.sum() > 40 * panels


def test_the_table_has_a_row_for_each_case_and_method(report):
    with (report / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    cases = {(row["toy"], row["sigma"], row["sigma_hat"], row["seed"]) for row in rows}
    methods = {row["method"] for row in rows}
    assert methods == {"clean", "noisy", "Full", "Truncated", "Truncated at sigma", "one step"}
    assert len(rows) == len(cases) * len(methods)
    calls = {row["method"]: int(row["evaluations"]) for row in rows if row["sigma_hat"] == "0.2"}
    assert calls == {
        "clean": 0, "noisy": 0, "Full": 35, "Truncated": 25, "Truncated at sigma": 27,
        "one step": 1,
    }  # fmt: skip
    assert all(float(row["distance"]) < 1e-6 for row in rows if row["method"] == "clean")


@pytest.mark.slow
def test_other_processes_give_what_this_one_gives(outcomes):
    for outcome, alone in zip(toys.train_all(toys.CASES[:1], TINY), outcomes[:1], strict=True):
        assert outcome.case == alone.case
        for method, points in alone.points.items():
            np.testing.assert_allclose(outcome.points[method], points, rtol=1e-4, atol=1e-5)
