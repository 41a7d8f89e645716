"""What ``python -m studies.theorem`` shows: three tables and a picture."""

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
from studies.theorem_cases import (
    CLEAN_VARIANCES,
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
    data_axes,
    listed,
    make_starts,
    model_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw", "print_tables"]


def print_tables(rows: list[Row], console: Console) -> None:
    """Print how near descent comes to the closed form, and what that means for the images."""
    for table in (_descent_table(rows), _eigenvalue_table(rows), _distance_table(rows)):
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column)
    return table


def _descent_table(rows: list[Row]) -> Table:
    table = _table(
        f"Descent against the closed form: the worst of {NUM_STARTS} narrow starts at each "
        "level,\nand how many starts arrive",
        "noise on the\nfake side", "divergence", "eigenvalue\nerror", "subspace\nerror",
        "narrow\nstarts", "wide\nstarts",
    )  # fmt: skip
    for fake_noise, divergence in product(FAKE_NOISES, DIVERGENCES):
        here = [row for row in rows if row[:2] == (fake_noise, divergence)]
        narrow, wide = ([row for row in here if row.starts == kind] for kind in STARTS)
        table.add_row(
            fake_noise,
            divergence,
            f"{max(row.eigenvalue_error for row in narrow):.0e}",
            f"{max(row.subspace_error for row in narrow):.0e}",
            *map(_arrivals, (narrow, wide)),
            end_section=divergence == [*DIVERGENCES][-1],
        )
    return table


def _arrivals(rows: list[Row]) -> str:
    return f"{sum(row.arrived for row in rows)}/{NUM_STARTS * len(rows)}"


def _eigenvalue_table(rows: list[Row]) -> Table:
    ranks = (RANK, DIMENSION)
    table = _table(
        f"Variances of generated images (sigma_y {PICTURED_SIGMA_Y:g}, Fisher, narrow starts)",
        "noise on the\nfake side", *(f"generator of rank {rank}" for rank in ranks),
    )  # fmt: skip
    noisy = [variance + PICTURED_SIGMA_Y**2 for variance in CLEAN_VARIANCES]
    for name, variances in (("(clean data)", CLEAN_VARIANCES), ("(noisy data)", noisy)):
        table.add_row(name, "", listed(variances), end_section=name == "(noisy data)")
    for fake_noise in FAKE_NOISES:
        found = [_fisher_row(rows, fake_noise, rank, PICTURED_SIGMA_Y) for rank in ranks]
        table.add_row(fake_noise, *(row.eigenvalues for row in found))
    return table


def _distance_table(rows: list[Row]) -> Table:
    columns = [(RANK, sigma_y) for sigma_y in SIGMAS_Y] + [(DIMENSION, PICTURED_SIGMA_Y)]
    table = _table(
        "Squared Wasserstein distance to the clean law (Fisher, narrow starts)",
        "noise on the\nfake side", *(f"rank {rank},\nsigma_y {s:g}" for rank, s in columns),
    )  # fmt: skip
    noisy = [_fisher_row(rows, next(iter(FAKE_NOISES)), *column).w2_noisy for column in columns]
    table.add_row("(noisy data)", *map(_distance, noisy), end_section=True)
    for fake_noise in FAKE_NOISES:
        found = [_fisher_row(rows, fake_noise, *column) for column in columns]
        table.add_row(fake_noise, *(_distance(row.w2_generated) for row in found))
    return table


def _distance(value: float) -> str:
    return f"{value:.4f}"


def _fisher_row(rows: list[Row], fake_noise: str, rank: int, sigma_y: float) -> Row:
    wanted = (fake_noise, "Fisher", rank, sigma_y, "narrow")
    return next(row for row in rows if row[: len(wanted)] == wanted)


_COLOURS = dict(zip(FAKE_NOISES, ("tab:orange", "tab:blue", "tab:red", "tab:purple"), strict=True))
_PICTURED = {"none (theorem)": RANK, "sigma_y (matched)": RANK, "0.8 sigma_y": DIMENSION}
"""Generators whose laws are drawn, with their rank."""


def draw(rows: list[Row], path: Path) -> None:
    """Draw the laws from two sides, and their distance to the clean law against the noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    front, side, distances = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    reached = {name: _descended(name, rank) for name, rank in _PICTURED.items()}
    _draw_laws(front, reached, across=1)
    _draw_laws(side, reached, across=RANK)
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


def _draw_laws(axes: "Axes", reached: dict[str, Float64[Tensor, " d d"]], *, across: int) -> None:
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
    """Outline of two standard deviations of a law's shadow on a plane."""
    variances, axes = torch.linalg.eigh(plane.T @ covariance @ plane)
    angle = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()])
    outline: Tensor = axes * variances.clamp(min=0).sqrt() @ circle
    return 2 * outline.numpy()


def _draw_distances(axes: "Axes", rows: list[Row]) -> None:
    """Closed forms as lines, what descent reached as marks."""
    grid = np.linspace(0, max(SIGMAS_Y) * 1.05, 60)
    clean = _clean_covariance()
    identity = torch.eye(DIMENSION, dtype=torch.float64)
    noisy = [wasserstein(clean + float(s) ** 2 * identity, clean) for s in grid]
    axes.plot(grid, noisy, color="0.45", ls="--", label="noisy data")
    for fake_noise, colour in _COLOURS.items():
        best = [predicted_covariance(model_of(fake_noise, float(s)), RANK) for s in grid]
        curve = [wasserstein(covariance, clean) for covariance in best]
        axes.plot(grid, curve, color=colour, label=f"fake side's noise {fake_noise}")
        reached = [_fisher_row(rows, fake_noise, RANK, s).w2_generated for s in SIGMAS_Y]
        axes.plot(SIGMAS_Y, reached, "o", color=colour, ms=5)
    axes.set(
        title=f"Distance to the clean law, rank {RANK} (dots: by descent)",
        xlabel="sigma_y, noise of the observations",
        ylabel="squared Wasserstein distance",
    )
    axes.legend()
