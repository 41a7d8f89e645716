"""Theorem 1 in numbers: ``python -m studies.theorem`` descends, compares and draws.

Data of 3 dimensions lie in a space of 6. From random starts, each divergence takes a linear
generator downhill in four set-ups, and the result is held against the closed form. Needs no data
and no parameters; writes ``reports/theorem/table.csv`` and ``theorem.png``.
"""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float64
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dsd.theory.gaussian_mixture import GaussianMixture
from dsd.theory.linear_model import (
    descend,
    fisher_pull,
    learned_covariance,
    predicted_covariance,
    wasserstein,
)
from dsd.utils.files import published
from pipeline.runtime.signals import set_up_cpu
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import write_csv
from studies.theorem_cases import (
    DIMENSION,
    DIVERGENCES,
    FAKE_NOISES,
    NUM_STARTS,
    NUM_STEPS,
    PICTURED_SIGMA_Y,
    RANK,
    SIGMAS_Y,
    STARTS,
    Row,
    all_cases,
    data_axes,
    make_starts,
    measure,
    model_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["run"]

_COLOURS = dict(zip(FAKE_NOISES, ("tab:orange", "tab:blue", "tab:red", "tab:purple"), strict=True))
_PICTURED = {"none (theorem)": RANK, "sigma_y (matched)": RANK, "0.8 sigma_y": DIMENSION}
"""Generators whose distributions are drawn, with their rank."""


def run(paths: Paths) -> None:
    """Measure, write the table and the picture, print how near descent comes."""
    rows = [row for case in all_cases() for row in measure(*case)]
    folder = paths.report("theorem")
    write_csv(folder / "table.csv", Row._fields, ([*map(_short, row)] for row in rows))
    _draw(rows, folder / "theorem.png")
    Console().print(_descents(rows))
    print(f"Table:    {(folder / 'table.csv').relative_to(paths.root)}")
    print(f"Picture:  {(folder / 'theorem.png').relative_to(paths.root)}")


def _short(value: object) -> object:
    return f"{value:.3g}" if isinstance(value, float) else value


def _descents(rows: list[Row]) -> Table:
    """Largest errors of narrow starts in each set-up, and how many starts arrive."""
    table = Table(title="Descent against the closed form: the worst narrow start at each level")
    for column in (
        "noise on the\nfake side",
        "divergence",
        "eigenvalue\nerror",
        "subspace\nerror",
    ):
        table.add_column(column)
    for kind in STARTS:
        table.add_column(f"{kind}\nstarts")
    for fake_noise, divergence in product(FAKE_NOISES, DIVERGENCES):
        here = [row for row in rows if row[:2] == (fake_noise, divergence)]
        by_kind = [[row for row in here if row.starts == kind] for kind in STARTS]
        table.add_row(
            fake_noise,
            divergence,
            f"{max(row.eigenvalue_error for row in by_kind[0]):.0e}",
            f"{max(row.subspace_error for row in by_kind[0]):.0e}",
            *(f"{sum(r.arrived for r in some)}/{NUM_STARTS * len(some)}" for some in by_kind),
            end_section=divergence == [*DIVERGENCES][-1],
        )
    return table


def _draw(rows: list[Row], path: Path) -> None:
    """Draw distributions from two sides, and distances to the clean one against the noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    front, side, distances = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    reached = {name: _descended(name, rank) for name, rank in _PICTURED.items()}
    _draw_plane(front, reached, across=1)
    _draw_plane(side, reached, across=RANK)
    _draw_distances(distances, rows)
    front.set(title=f"Inside the data's space (sigma_y {PICTURED_SIGMA_Y:g})")
    front.set(ylabel="second data axis")
    side.set(title="From the side: across the data's space", ylabel="an axis without data")
    figure.legend(*front.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    with published(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _descended(fake_noise: str, rank: int) -> Float64[Tensor, " d d"]:
    """Covariance that Fisher descent reaches from the first narrow start."""
    model, start = model_of(fake_noise, PICTURED_SIGMA_Y), make_starts(rank)[:1]
    return learned_covariance(descend(model, start, fisher_pull, num_steps=NUM_STEPS))[0]


def _draw_plane(axes: "Axes", reached: dict[str, Float64[Tensor, " d d"]], *, across: int) -> None:
    """Points of the noisy data, and ellipses of two standard deviations, on two axes."""
    plane = data_axes()[:, [0, across]]
    centre = torch.zeros(1, DIMENSION, dtype=torch.float64)
    clean = GaussianMixture(torch.ones(1), centre, _clean_covariance()[None])
    noisy = clean.noisy(PICTURED_SIGMA_Y)
    points = noisy.sample(600, generator=torch.Generator().manual_seed(0)) @ plane
    axes.plot(*points.T.numpy(), ".", ms=4, color="0.75", label="noisy data")
    outline = _ellipse(clean.covariances[0], plane)
    axes.plot(*outline, color="tab:green", lw=7, alpha=0.35, label="clean data")
    axes.plot(*_ellipse(noisy.covariances[0], plane), "--", color="0.45", label="noisy, 2 s.d.")
    for name, covariance in reached.items():
        label = f"generator of rank {_PICTURED[name]}, fake side's noise {name}"
        style = ":" if _PICTURED[name] == DIMENSION else "-"
        axes.plot(*_ellipse(covariance, plane), style, color=_COLOURS[name], label=label)
    axes.set(xlabel="first data axis", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))


def _clean_covariance() -> Float64[Tensor, " d d"]:
    return model_of("sigma_y (matched)", PICTURED_SIGMA_Y).clean


def _ellipse(
    covariance: Float64[Tensor, " d d"], plane: Float64[Tensor, " d 2"]
) -> Float64[np.ndarray, " 2 n"]:
    """Outline of two standard deviations of a distribution's shadow on a plane."""
    variances, axes = torch.linalg.eigh(plane.T @ covariance @ plane)
    angle = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()])
    outline: Tensor = axes * variances.clamp(min=0).sqrt() @ circle
    return 2 * outline.numpy()


def _draw_distances(axes: "Axes", rows: list[Row]) -> None:
    """Closed forms as lines, results of descent as marks."""
    grid = np.linspace(0, max(SIGMAS_Y) * 1.05, 60)
    clean = _clean_covariance()
    identity = torch.eye(DIMENSION, dtype=torch.float64)
    noisy = [wasserstein(clean + float(s) ** 2 * identity, clean) for s in grid]
    axes.plot(grid, noisy, color="0.45", ls="--", label="noisy data")
    for fake_noise, colour in _COLOURS.items():
        best = [predicted_covariance(model_of(fake_noise, float(s)), RANK) for s in grid]
        curve = [wasserstein(covariance, clean) for covariance in best]
        axes.plot(grid, curve, color=colour, label=f"fake side's noise {fake_noise}")
        setting = (fake_noise, "Fisher", RANK, "narrow")
        here = [row for row in rows if (*row[:3], row.starts) == setting]
        marks = [row.sigma_y for row in here], [row.w2_generated for row in here]
        axes.plot(*marks, "o", color=colour, ms=5)
    axes.set(
        title=f"Distance to the clean data, rank {RANK} (dots: by descent)",
        xlabel="sigma_y, noise of the observations",
        ylabel="squared Wasserstein distance",
    )
    axes.legend()


if __name__ == "__main__":
    set_up_cpu()
    run(Paths(Path.cwd()))
