r"""Exact denoisers and scores: mixtures of Gaussians at every noise level.

A mixture sum_k w_k N(m_k, C_k) with noise of level sigma on top is the mixture of
N(m_k, C_k + sigma^2 I). Its denoiser is the mean of the components' denoisers

    D_k(x) = m_k + C_k (C_k + sigma^2 I)^-1 (x - m_k),

weighted by how likely each component made x: the answer of a perfect network, for tests,
two-dimensional toys and notebooks. Noise L n of covariance K = L L^T is white in the coordinates
u = L^-1 x, where all of this holds; back in x, D = x + sigma^2 K score.

Reference:
    Karras et al. 2022 (arXiv:2206.00364), Eq. 3, for D = x + sigma^2 score.
"""

import math
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dsd.utils.shapes import AnyLevel, Level, PerSample, State, as_levels

__all__ = ["GaussianMixture"]

_MASS_TOLERANCE = 1e-6  # float32's rounding of a sum


@final
class GaussianMixture:
    """A mixture of Gaussians, singular ones included; a single Gaussian has one component.

    States may have any shape with ``d`` numbers behind the batch. Results, computed in float64,
    have the state's type, so that :meth:`denoiser` goes wherever a network goes.

    Args:
        weights: Mass of each component, sum 1.
        means: In data units.
        covariances: Symmetric, without negative eigenvalues; 0 makes a component a point.
        noise_root: L, invertible, where noise is L n with n white; None for white noise.

    Raises:
        ValueError: The weights are no probabilities, or a covariance is not symmetric or has a
            negative eigenvalue.
    """

    def __init__(
        self,
        weights: Float[Tensor, " k"],
        means: Float[Tensor, " k d"],
        covariances: Float[Tensor, " k d d"],
        noise_root: Float[Tensor, " d d"] | None = None,
    ) -> None:
        self.weights: Float64[Tensor, " k"] = _probabilities(weights.double())
        self.means: Float64[Tensor, " k d"] = means.double()
        self.covariances: Float64[Tensor, " k d d"] = covariances.double()
        self.noise_root = noise_root
        # Of the coordinates in which noise is white.
        self._centres, whitened = self.means, self.covariances
        if noise_root is not None:
            self._to_white: Float64[Tensor, " d d"] = noise_root.double().inverse()
            self._centres = self.means @ self._to_white.T
            whitened = self._to_white @ self.covariances @ self._to_white.T
        self._variances, self._axes = _eigensystem(whitened)

    def sample(self, count: int, *, generator: torch.Generator) -> Float64[Tensor, " b d"]:
        """Draw ``count`` points."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        shape = (count, self.means.shape[1])
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        scaled = normal * self._variances.sqrt()[component]
        around = torch.einsum("bij,bj->bi", self._axes[component], scaled)
        return self._coloured(self._centres[component] + around)

    def noisy(self, sigma_y: float) -> "GaussianMixture":
        """The distribution of observations ``y = x0 + sigma_y * eps``."""
        noise = sigma_y**2 * self._coloured(torch.eye(self.means.shape[1], dtype=torch.float64))
        noise = self._coloured(noise.T)
        covariances = self.covariances + noise
        return GaussianMixture(self.weights, self.means, covariances, self.noise_root)

    def log_prob(self, x: State, sigma: AnyLevel) -> PerSample:
        """Log density of diffused states.

        ``sigma`` is the noise level of each state, ``> 0``, or one for all; 0 only where no
        covariance is singular.
        """
        local = self._local(x)
        density = self._log_joint(local, as_levels(sigma, local)).logsumexp(1)
        if self.noise_root is not None:
            density = density + torch.linalg.slogdet(self._to_white).logabsdet
        return density.to(x.dtype)

    def score(self, x: State, sigma: AnyLevel) -> State:
        """Gradient of :meth:`log_prob` with respect to ``x``, in inverse data units."""
        local = self._local(x)
        sigma = as_levels(sigma, local)
        slopes = -local / self._total(sigma)
        score = self._average(slopes, self._responsibilities(local, sigma))
        if self.noise_root is not None:
            score = score @ self._to_white
        return score.to(x.dtype).view_as(x)

    def denoiser(self, x: State, sigma: AnyLevel) -> State:
        """E[x0 | x] of diffused states, differentiable in ``x``; ``sigma`` is ``> 0``."""
        local = self._local(x)
        sigma = as_levels(sigma, local)
        responsibilities = self._responsibilities(local, sigma)
        shrunk = local * self._variances / self._total(sigma)
        denoised = responsibilities @ self._centres + self._average(shrunk, responsibilities)
        return self._coloured(denoised).to(x.dtype).view_as(x)

    def _local(self, x: State) -> Float64[Tensor, " b k d"]:
        """Coordinates of each state on the axes of each component."""
        x = x.double().flatten(1)
        if self.noise_root is not None:
            x = x @ self._to_white.T
        offset = x[:, None] - self._centres
        return torch.einsum("bki,kij->bkj", offset, self._axes)

    def _coloured(self, u: Float64[Tensor, " b d"]) -> Float64[Tensor, " b d"]:
        """L u."""
        return u if self.noise_root is None else u @ self.noise_root.double().T

    def _total(self, sigma: Level) -> Float64[Tensor, " b k d"]:
        """Variance of a diffused state along each axis of each component."""
        return self._variances + sigma.double()[:, None, None] ** 2

    def _log_joint(
        self, local: Float64[Tensor, " b k d"], sigma: Level
    ) -> Float64[Tensor, " b k"]:
        """Log of weight times density, for each component."""
        total = self._total(sigma)
        densities = -0.5 * (local**2 / total + (2 * math.pi * total).log()).sum(2)
        return self.weights.log() + densities

    def _responsibilities(
        self, local: Float64[Tensor, " b k d"], sigma: Level
    ) -> Float64[Tensor, " b k"]:
        """Probability that each component made the state."""
        return self._log_joint(local, sigma).softmax(1)

    def _average(
        self, local: Float64[Tensor, " b k d"], responsibilities: Float64[Tensor, " b k"]
    ) -> Float64[Tensor, " b d"]:
        """Mean over components of vectors on their axes."""
        return torch.einsum("bk,bkj,kij->bi", responsibilities, local, self._axes)


def _probabilities(weights: Float64[Tensor, " k"]) -> Float64[Tensor, " k"]:
    if bool((weights < 0).any()) or abs(float(weights.sum()) - 1) > _MASS_TOLERANCE:
        msg = f"weights {weights.tolist()} are no probabilities: make them >= 0 with sum 1"
        raise ValueError(msg)
    return weights


def _eigensystem(
    covariances: Float64[Tensor, " k d d"],
) -> tuple[Float64[Tensor, " k d"], Float64[Tensor, " k d d"]]:
    """Variances and axes; rounding errors of a variance 0 are set to 0."""
    if not torch.allclose(covariances, covariances.mT):
        msg = "a covariance is not symmetric: give C with C = C^T for each component"
        raise ValueError(msg)
    variances, axes = torch.linalg.eigh(covariances)
    rounding = covariances.shape[-1] * torch.finfo(torch.float64).eps * variances.abs().amax()
    if bool((variances < -rounding).any()):
        msg = f"a covariance has the eigenvalue {float(variances.min()):g}: variances are >= 0"
        raise ValueError(msg)
    return variances.clamp(min=0), axes
