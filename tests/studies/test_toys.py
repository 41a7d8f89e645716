"""The toys: laws whose support is known, the network for points, and the figures' training."""

import csv
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import optimize, stats

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
def test_a_law_is_centred_with_a_standard_deviation_of_one_half(name):
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


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_a_function_of_the_generator(name):
    toy = make_toy(name)
    assert torch.equal(draw(toy, 50, seed=1), draw(toy, 50, seed=1))
    assert not torch.equal(draw(toy, 50, seed=1), draw(toy, 50, seed=2))


@given(st.floats(0, 3), st.floats(0, 2 * math.pi))
def test_the_distance_to_a_circle_is_the_known_offset(radius, angle):
    point = radius * torch.tensor([[math.cos(angle), math.sin(angle)]])
    distance = circle(0.7, corners=2000).distance(point)
    assert distance.item() == pytest.approx(abs(radius - 0.7), abs=3e-6)


def test_the_rings_are_circles_with_radii_of_the_known_ratio():
    """Uniform along rings of radii r and 2.5 r: the variances add up to twice 0.25."""
    inner = math.sqrt(0.5 * 3.5 / (1 + 2.5**3))
    origin = torch.zeros(1, 2)
    far = torch.tensor([[3.0, 0.0]])
    toy = make_toy("rings")
    assert toy.distance(origin).item() == pytest.approx(inner, rel=1e-3)
    assert toy.distance(far).item() == pytest.approx(3 - 2.5 * inner, rel=1e-3)


def test_distance_to_segments_ends_at_their_ends():
    segment = Toy(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    points = torch.tensor([[0.5, 2.0], [4.0, 4.0], [-3.0, 4.0]])
    assert segment.distance(points).tolist() == [2.0, 5.0, 5.0]


def test_a_law_is_uniform_along_the_length_not_over_the_segments():
    long_and_short = Toy(
        torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    )
    x = draw(long_and_short, 5000)[:, 0]
    assert stats.kstest(x.numpy() / 4, "uniform").pvalue > 0.01


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


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_a_shift_moves_the_sliced_distance_by_its_mean_projection(x, y):
    """The mean of cos^2 over directions is one half."""
    points = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)).double()
    moved = points + torch.tensor([x, y], dtype=torch.float64)
    assert sliced_wasserstein(points, moved) == pytest.approx(math.hypot(x, y) / math.sqrt(2))


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


def test_the_network_varies_slowly_with_the_noise_level():
    """Its waves turn by less than half a turn between sigma and a tenth of it: no memory of
    separate levels, which could not be continued below those of training."""
    step = math.log(10) / 4
    assert step * MLP(dimensions=2, width=1, depth=1).noise_frequencies.max() < math.pi / 2


def small(kimg_teacher, kimg_student, *, batch_size=256, **changes):
    """The committed settings with a smaller network and shorter training."""
    both = {"lr_warmup_kimg": 2.0, "batch_size": batch_size}
    pretrain = SETTINGS.pretrain.model_copy(update={"kimg": kimg_teacher, **both})
    distill = SETTINGS.distill.model_copy(update={"kimg": kimg_student, **both})
    return dataclasses.replace(SETTINGS, pretrain=pretrain, distill=distill, **changes)


def test_the_student_comes_closer_to_the_curves_than_the_data_it_learned_from():
    """Seeds 0 to 3 gave 0.55 to 0.68 of the noisy points' distance, 0.52 to 0.90 of their W2."""
    settings = small(80.0, 60.0, batch_size=128, num_observations=4000, num_samples=1000, width=64)
    outcome = train_case(Case("moons", 0.2, 0.2, seed=3), settings)
    noisy, student = outcome.results["noisy"], outcome.results["one step"]
    assert student.distance < 0.8 * noisy.distance
    assert student.wasserstein < noisy.wasserstein
    assert student.coverage > 0.75


def test_a_case_is_a_function_of_its_seed():
    settings = small(2.0, 2.0, num_observations=300, num_samples=100, width=8, depth=1)
    first, again, other = (
        train_case(Case("rings", 0.1, 0.1, seed), settings) for seed in (0, 0, 1)
    )
    for method, points in first.points.items():
        np.testing.assert_array_equal(points, again.points[method])
        assert not np.array_equal(points, other.points[method])


def test_only_the_models_see_the_assumed_level():
    settings = small(2.0, 2.0, num_observations=300, num_samples=100, width=8, depth=1)
    right, over = (
        train_case(Case("rings", 0.1, sigma_hat, 0), settings) for sigma_hat in (0.1, 0.2)
    )
    same = {name for name in right.points if np.array_equal(right.points[name], over.points[name])}
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
def test_processes_side_by_side_give_what_one_after_the_other_gives(outcomes):
    """Slow because each process loads the libraries anew."""
    for outcome, alone in zip(toys.train_all(toys.CASES[:2], TINY), outcomes[:2], strict=True):
        assert outcome.case == alone.case
        for method, points in alone.points.items():
            np.testing.assert_allclose(outcome.points[method], points, rtol=1e-4, atol=1e-5)
