r"""Theorem 1 of DSD, executable: what score distillation learns in the linear Gaussian model.

Clean data are x = E z with covariance S = E E^T, observed as y = x + sigma_y eps. The generator
G z, a factor with as many columns as its rank, makes images of covariance C = G G^T, and its fake
denoiser sees them with noise of level ``sigma_fake``. With perfect scores and noise of level t
added on both sides, teacher and fake know the distributions

    N(0, A),  A = S + (sigma_y^2 + t^2) I      and      N(0, B),  B = C + (sigma_fake^2 + t^2) I.

``sigma_fake`` 0 is the theorem, whose generator is compared without noise; ``sigma_y`` is matched
re-corruption; anything else is a noise level guessed wrong, with which both denoisers train and
re-corrupt. Expectations below are exact, nothing is drawn. Both sides agree where A = B at all
levels, so C tends to the positive part of S + (sigma_y^2 - sigma_fake^2) I, cut to the generator's
rank, whatever the levels and their weights.

Reference:
    Chen et al. 2025, DSD (arXiv:2503.07578), Theorem 1, for ``sigma_fake = 0``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from jaxtyping import Float, Float64
from torch import Tensor, optim

from dsd.metrics.frechet import Moments, frechet_distance

__all__ = [
    "Factor",
    "LinearModel",
    "Pull",
    "descend",
    "fisher_pull",
    "generator_gradient",
    "ideal_loss",
    "learned_covariance",
    "predicted_covariance",
    "reverse_kl_pull",
    "score_identity_pull",
    "subspace_error",
    "wasserstein",
]

Covariance: TypeAlias = Float64[Tensor, " *starts d d"]
"""Covariances, one for each start, in squared data units."""

Factor: TypeAlias = Float64[Tensor, " *starts d r"]
"""Generators ``z -> G z``, one for each start."""

DataPrecisions: TypeAlias = Float64[Tensor, " t d d"]
"""A^-1 of each level."""

Precisions: TypeAlias = Float64[Tensor, " *starts t d d"]
"""B^-1 of each start and level, or a matrix for each of them."""

Pull: TypeAlias = Callable[[DataPrecisions, Precisions], Precisions]
"""Gradient of the expected loss of each level with respect to C, from A^-1 and B^-1."""

_LEARNING_RATE = 0.1
_LAST_LEARNING_RATE = 1e-7
_BETAS = (0.8, 0.9)  # short memories: exact gradients shrink by many powers of ten


@dataclass(frozen=True, eq=False)
class LinearModel:
    """Data, noise and levels of one linear problem."""

    clean: Float64[Tensor, " d d"]
    """Covariance S of the clean data."""

    sigma_y: float
    """Noise level of the observations."""

    sigma_fake: float
    """Noise level that generated images carry when the fake denoiser sees them."""

    levels: Float64[Tensor, " t"]
    """Levels of the noise added on both sides."""

    weights: Float64[Tensor, " t"]
    """Weight of each level, for squared differences of scores."""

    @cached_property
    def data_precisions(self) -> DataPrecisions:
        """A^-1 of each level."""
        return self._under_noise(self.clean, self.sigma_y).inverse()

    def generator_covariances(self, covariance: Covariance) -> Float64[Tensor, " *starts t d d"]:
        """B of each level, for generated images of covariance C."""
        return self._under_noise(covariance, self.sigma_fake)

    def _under_noise(self, covariance: Tensor, sigma: float) -> Tensor:
        noise = (sigma**2 + self.levels**2)[:, None, None] * torch.eye(len(self.clean)).double()
        return covariance.unsqueeze(-3) + noise


def ideal_loss(model: LinearModel, covariance: Covariance) -> Float64[Tensor, " *starts"]:
    """Weighted Fisher divergence of generator and data.

    sum_t w_t E |score_data - score_generator|^2 = sum_t w_t tr(A^-2 B - 2 A^-1 + B^-1), the
    expectation over N(0, B).

    Reference:
        DSD (arXiv:2503.07578), the ideal loss of Theorem 1; written out here.
    """
    a, b = model.data_precisions, model.generator_covariances(covariance)
    divergence = _trace(a @ a @ b) - 2 * _trace(a) + _trace(b.inverse())
    return (model.weights * divergence).sum(-1)


def fisher_pull(a: DataPrecisions, b: Precisions) -> Precisions:
    """Gradient of the ideal loss of one level: A^-2 - B^-2."""
    return a @ a - b @ b


def reverse_kl_pull(a: DataPrecisions, b: Precisions) -> Precisions:
    """Gradient of KL(generator, data) at one level, DMD's: (A^-1 - B^-1) / 2."""
    return (a - b) / 2


def score_identity_pull(alpha: float) -> Pull:
    """SiD's gradient with an exact fake: its loss differentiated while B stays as it is.

    (1 - alpha) A^-2 - (1 - 2 alpha) (A^-1 B^-1 + B^-1 A^-1) / 2 - alpha B^-2, so half the Fisher
    gradient for ``alpha`` 1/2. Where A and B commute it is (A^-1 - B^-1) ((1 - alpha) A^-1 + alpha
    B^-1): with ``alpha > 1`` it points away from the data where the generator's variance exceeds
    ``alpha / (alpha - 1)`` times theirs, 6 times for 1.2.

    Reference:
        Zhou et al. 2024, SiD (arXiv:2404.04057), for the loss; the expectation is ours.
    """

    def pull(a: DataPrecisions, b: Precisions) -> Precisions:
        mixed = (a @ b + b @ a) / 2
        gradient: Tensor = (1 - alpha) * (a @ a) - (1 - 2 * alpha) * mixed - alpha * (b @ b)
        return gradient

    return pull


def generator_gradient(model: LinearModel, factor: Factor, pull: Pull) -> Factor:
    """Gradient with respect to the generator G of the weighted sum over levels."""
    b = model.generator_covariances(learned_covariance(factor)).inverse()
    pulls = (model.weights[:, None, None] * pull(model.data_precisions, b)).sum(-3)
    return 2 * pulls @ factor


def descend(model: LinearModel, starts: Factor, pull: Pull, *, num_steps: int) -> Factor:
    """Follow the exact gradient from all starts with Adam; its rate falls from 0.1 to 1e-7."""
    factor = starts.clone()
    optimizer = optim.Adam([factor], lr=_LEARNING_RATE, betas=_BETAS, eps=1e-30)
    decay = (_LAST_LEARNING_RATE / _LEARNING_RATE) ** (1 / num_steps)
    schedule = optim.lr_scheduler.ExponentialLR(optimizer, decay)
    for _ in range(num_steps):
        factor.grad = generator_gradient(model, factor, pull)
        optimizer.step()
        schedule.step()
    return factor


def learned_covariance(factor: Factor) -> Covariance:
    """C = G G^T."""
    return factor @ factor.mT


def predicted_covariance(model: LinearModel, rank: int) -> Float64[Tensor, " d d"]:
    """The optimum among generators of a rank: leading part of S + (sigma_y^2 - sigma_fake^2) I.

    Directions of negative variance, which only a fake noisier than the data has, get none.
    """
    variances, axes = torch.linalg.eigh(model.clean)
    kept = (variances + model.sigma_y**2 - model.sigma_fake**2).clamp(min=0)
    kept[: len(kept) - rank] = 0
    best: Tensor = axes * kept @ axes.T
    return best


def subspace_error(
    covariance: Covariance, clean: Float64[Tensor, " d d"], dimension: int
) -> Float64[Tensor, " *starts"]:
    """Sine of the largest principal angle between the leading eigenspaces of two covariances."""
    learned = torch.linalg.eigh(covariance).eigenvectors[..., -dimension:]
    true = torch.linalg.eigh(clean).eigenvectors[:, -dimension:]
    # The part of the learned space outside the true one: precise for small angles too.
    outside: Tensor = torch.linalg.matrix_norm(learned - true @ (true.T @ learned), 2)
    return outside


def wasserstein(covariance: Float64[Tensor, " d d"], clean: Float64[Tensor, " d d"]) -> float:
    """Squared 2-Wasserstein distance between centred Gaussians, in squared data units."""
    return frechet_distance(_centred(covariance), _centred(clean))


def _centred(covariance: Float64[Tensor, " d d"]) -> Moments:
    return Moments(torch.zeros_like(covariance[0]), covariance, count=0)


def _trace(matrices: Float[Tensor, " *b d d"]) -> Float[Tensor, " *b"]:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
