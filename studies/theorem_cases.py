"""The descents of ``python -m studies.theorem``, and the rows that they give."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from dsd.theory.linear_model import (
    Factor,
    LinearModel,
    Pull,
    descend,
    fisher_pull,
    learned_covariance,
    predicted_covariance,
    reverse_kl_pull,
    score_identity_pull,
    subspace_error,
    wasserstein,
)

_SEED = 0
CLEAN_VARIANCES = (1.0, 0.4, 0.1, 0.0, 0.0, 0.0)
RANK, DIMENSION = 3, len(CLEAN_VARIANCES)
NUM_STARTS, NUM_STEPS = 5, 1000
STARTS = {"narrow": 0.1, "wide": 1.0}
"""Standard deviation of the entries of a starting generator."""

SIGMAS_Y = (0.25, 0.5, 1.0)
PICTURED_SIGMA_Y = 0.5
_LEVELS = (0.1, 0.3, 0.7, 1.5, 3.0, 6.0)
FAKE_NOISES = {
    "none (theorem)": 0.0,
    "sigma_y (matched)": 1.0,
    "0.8 sigma_y": 0.8,
    "1.25 sigma_y": 1.25,
}
"""Noise on generated images before the fake denoiser sees them, as a multiple of sigma_y."""

DIVERGENCES: dict[str, Pull] = {
    "Fisher": fisher_pull,
    "reverse KL": reverse_kl_pull,
    "SiD, alpha 0.5": score_identity_pull(0.5),
    "SiD, alpha 1": score_identity_pull(1.0),
    "SiD, alpha 1.2": score_identity_pull(1.2),
}
_ARRIVED = 1e-3
"""Largest error of an eigenvalue at which a start counts as arrived."""


class Row(NamedTuple):
    """Result of one divergence in one set-up: the worst of the starts of one kind."""

    fake_noise: str
    divergence: str
    rank: int
    sigma_y: float
    starts: str
    arrived: int
    eigenvalues: str
    predicted: str
    eigenvalue_error: float
    subspace_error: float
    w2_noisy: float
    w2_generated: float


def all_cases() -> Iterator[tuple[str, str, int, float]]:
    """All set-ups, divergences, ranks and levels; full rank at one level only."""
    yield from product(FAKE_NOISES, DIVERGENCES, [RANK], SIGMAS_Y)
    yield from product(FAKE_NOISES, DIVERGENCES, [DIMENSION], [PICTURED_SIGMA_Y])


def measure(fake_noise: str, divergence: str, rank: int, sigma_y: float) -> Iterator[Row]:
    """Descend from all starts; a row for each kind of start."""
    model = model_of(fake_noise, sigma_y)
    reached = descend(model, make_starts(rank), DIVERGENCES[divergence], num_steps=NUM_STEPS)
    best = torch.linalg.eigvalsh(predicted_covariance(model, rank))
    noisy = wasserstein(model.clean + sigma_y**2 * torch.eye(DIMENSION).double(), model.clean)
    for kind, learned in zip(STARTS, learned_covariance(reached).chunk(len(STARTS)), strict=True):
        found = torch.linalg.eigvalsh(learned)
        errors = (found - best).abs().amax(1)
        worst = int(errors.argmax())
        yield Row(
            fake_noise=fake_noise,
            divergence=divergence,
            rank=rank,
            sigma_y=sigma_y,
            starts=kind,
            arrived=int((errors < _ARRIVED).sum()),
            eigenvalues=_listed(_leading(found[worst], rank)),
            predicted=_listed(_leading(best, rank)),
            eigenvalue_error=float(errors[worst]),
            subspace_error=float(subspace_error(learned, model.clean, _kept(model)).max()),
            w2_noisy=noisy,
            w2_generated=max(wasserstein(one, model.clean) for one in learned),
        )


def data_axes() -> Float64[Tensor, " d d"]:
    """Axes of the clean covariance, in the order of its variances."""
    random = torch.Generator().manual_seed(_SEED)
    shape = (DIMENSION, DIMENSION)
    axes: Tensor = torch.linalg.qr(torch.randn(shape, generator=random, dtype=torch.float64)).Q
    return axes


def model_of(fake_noise: str, sigma_y: float) -> LinearModel:
    """The linear problem of a set-up."""
    axes, levels = data_axes(), torch.tensor(_LEVELS, dtype=torch.float64)
    clean = axes * torch.tensor(CLEAN_VARIANCES, dtype=torch.float64) @ axes.T
    # Squared levels as weights let all of them count; the optimum depends on neither.
    return LinearModel(clean, sigma_y, FAKE_NOISES[fake_noise] * sigma_y, levels, levels**2)


def make_starts(rank: int) -> Factor:
    """Random generators, the narrow ones first."""
    random = torch.Generator().manual_seed(_SEED + 1)
    shape = (NUM_STARTS, DIMENSION, rank)
    return torch.cat(
        [s * torch.randn(shape, generator=random, dtype=torch.float64) for s in STARTS.values()]
    )


def _kept(model: LinearModel) -> int:
    """Number of directions of the data that the optimum keeps."""
    excess = model.sigma_fake**2 - model.sigma_y**2
    return sum(variance > max(excess, 0) for variance in CLEAN_VARIANCES)


def _leading(ascending: Float64[Tensor, " d"], rank: int) -> list[float]:
    """The largest eigenvalues first; rounding makes none negative."""
    leading: list[float] = ascending.flip(0)[:rank].clamp(min=0).tolist()
    return leading


def _listed(values: Iterable[float]) -> str:
    """Numbers as one cell of a table."""
    return " ".join(f"{value:.2f}" for value in values)
