"""Both trainings as a textbook would write them: what all that is faster must agree with.

Equations are those of docs/concepts.md, written out. Of ``dsd`` only the raw network and the
configuration are used. Networks have torch's usual layout in memory, the optimiser goes from
weight to weight, every network keeps what its gradients need, images are generated again
for each of their uses, and each loss is read back.
"""

import copy
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn, optim

from dsd.distillation.config import Distill
from dsd.pretraining.config import Pretrain

__all__ = ["PlainDistillation", "PlainTeacher", "clamped_levels"]

_P_MEAN, _P_STD = -1.2, 1.2
_SIGMA_MIN, _SIGMA_MAX, _RHO, _MAX_INDEX = 0.002, 80.0, 7.0, 0.8


def clamped_levels(sigma_y: Tensor, generator: torch.Generator) -> Tensor:
    """Total levels [b] as the reference code of DSD draws them: log-normal, at least ``sigma_y``.

    Those equal to ``sigma_y`` are lost: nothing is added to such an image, and its loss has no
    gradient.
    """
    normal = torch.randn(sigma_y.shape, generator=generator, device=sigma_y.device)
    return torch.maximum((_P_MEAN + _P_STD * normal).exp(), sigma_y)


def _denoise(network: nn.Module, x: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    t = sigma.reshape(-1, 1, 1, 1)
    total = (t**2 + sigma_data**2).sqrt()
    raw: Tensor = network(x / total, sigma.log() / 4)
    return sigma_data**2 / total**2 * x + t * sigma_data / total * raw


def _denoising_loss(
    network: nn.Module, y: Tensor, sigma_y: Tensor, sigma: Tensor, n: Tensor, sigma_data: float
) -> Tensor:
    """EDM's weight times the squared error of the predicted observation, a mean over pixels."""
    t, s = sigma.reshape(-1, 1, 1, 1), sigma_y.reshape(-1, 1, 1, 1)
    x_t = y + (t**2 - s**2).sqrt() * n
    denoised = _denoise(network, x_t, sigma, sigma_data)
    expected = (t**2 - s**2) / t**2 * denoised + s**2 / t**2 * x_t
    weight = (t**2 + sigma_data**2) / (t * sigma_data) ** 2
    return (weight * (expected - y) ** 2).mean(dim=(1, 2, 3))


def _score_identity_loss(x_g: Tensor, teacher: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """SiD's loss, a sum over pixels."""
    omega = (x_g - teacher).abs().mean(dim=(1, 2, 3), keepdim=True).detach().clamp(min=1e-5)
    difference = teacher - fake
    return (difference * ((teacher - x_g) - alpha * difference) / omega).sum(dim=(1, 2, 3))


def _adam(network: nn.Module, learning_rate: float, betas: Sequence[float]) -> optim.Adam:
    first, second = betas
    return optim.Adam(
        network.parameters(), learning_rate, (first, second), foreach=False, fused=False
    )


@torch.no_grad()
def _follow(
    average: nn.Module, network: nn.Module, seen: int, batch: int, halflife: float, rampup: float
) -> None:
    """Move an average of weights, with EDM's half-life in images, one weight after the other."""
    decay = 0.5 ** (batch / max(min(halflife, rampup * seen), 1e-8))
    for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
        mean.copy_(decay * mean + (1 - decay) * weight)


@final
class PlainTeacher:
    """Training of a teacher with the adjusted objective and EDM's weight."""

    def __init__(
        self, network: nn.Module, images: Tensor, sigma_y: Tensor, config: Pretrain, data: float
    ) -> None:
        self.network = network.train()
        self.average = copy.deepcopy(network)
        self.optimizer = _adam(network, config.learning_rate, [0.9, 0.999])
        self._images, self._sigma_y, self._batch = images, sigma_y, config.batch_size
        self._ema = (1000 * config.ema_halflife_kimg, config.ema_rampup_ratio)
        self._sigma_data = data
        self._random = torch.Generator(images.device).manual_seed(0)
        self._seen = 0

    def advance(self) -> float:
        """Draw images, levels and noise, and make a step with them; its loss."""
        device = self._images.device
        count, size = len(self._images), (self._batch,)
        chosen = torch.randint(count, size, generator=self._random, device=device)
        y, sigma_y = self._images[chosen], self._sigma_y[chosen]
        sigma = clamped_levels(sigma_y, self._random)
        n = torch.randn(y.shape, generator=self._random, device=device)
        return self.step(y, sigma_y, sigma, n)

    def step(self, y: Tensor, sigma_y: Tensor, sigma: Tensor, n: Tensor) -> float:
        """Make a step with observations, their levels, total levels and normal noise; its loss."""
        self.optimizer.zero_grad()
        loss = _denoising_loss(self.network, y, sigma_y, sigma, n, self._sigma_data).mean()
        loss.backward()
        self.optimizer.step()
        self._seen += len(y)
        _follow(self.average, self.network, self._seen, len(y), *self._ema)
        return loss.item()


@final
class PlainDistillation:
    """Distillation by SiD's loss, with one step of the fake denoiser for each of the generator."""

    def __init__(
        self, teacher: nn.Module, shape: Sequence[int], level: float, config: Distill, data: float
    ) -> None:
        self.teacher = teacher.eval()
        self.fake = copy.deepcopy(teacher).train()
        self.generator = copy.deepcopy(teacher).train()
        self.average = copy.deepcopy(teacher)
        self.optimizer = _adam(self.generator, config.learning_rate, config.betas)
        self.optimizer_fake = _adam(self.fake, config.learning_rate_fake, config.betas)
        self._shape = (config.batch_size, *shape)
        self._sigma_y, self._alpha, self._sigma_init = level, config.alpha, config.sigma_init
        self._ema = (1000 * config.ema_halflife_kimg, config.ema_rampup_ratio)
        self._sigma_data = data
        self._device = next(teacher.parameters()).device
        self._random = torch.Generator(self._device).manual_seed(0)
        self._seen = 0

    def advance(self) -> tuple[float, float]:
        """Draw all that chance decides, and make both steps; their losses."""
        sigma_y = torch.full((self._shape[0],), self._sigma_y, device=self._device)
        levels = clamped_levels(sigma_y, self._random)
        fake = self.step_fake(self._normal(), sigma_y, self._normal(), levels, self._normal())
        uniform = torch.rand(self._shape[0], generator=self._random, device=self._device)
        top, bottom = _SIGMA_MAX ** (1 / _RHO), _SIGMA_MIN ** (1 / _RHO)
        sigma = (top + (1 - _MAX_INDEX * uniform) * (bottom - top)) ** _RHO
        return fake, self.step_generator(self._normal(), sigma, self._normal())

    def _normal(self) -> Tensor:
        return torch.randn(self._shape, generator=self._random, device=self._device)

    def _generate(self, z: Tensor) -> Tensor:
        level = torch.full((len(z),), self._sigma_init, device=self._device)
        return _denoise(self.generator, self._sigma_init * z, level, self._sigma_data)

    def step_fake(
        self, z: Tensor, sigma_y: Tensor, eps: Tensor, sigma: Tensor, n: Tensor
    ) -> float:
        """Train the fake denoiser on images made from ``z``, with noise ``sigma_y * eps``."""
        y_g = self._generate(z).detach() + sigma_y.reshape(-1, 1, 1, 1) * eps
        self.optimizer_fake.zero_grad()
        loss = _denoising_loss(self.fake, y_g, sigma_y, sigma, n, self._sigma_data).mean()
        loss.backward()
        self.optimizer_fake.step()
        return loss.item()

    def step_generator(self, z: Tensor, sigma: Tensor, n: Tensor) -> float:
        """Move the generator against the difference of teacher and fake at levels ``sigma``."""
        self.teacher.zero_grad()
        self.optimizer.zero_grad()
        x_g = self._generate(z)
        x_t = x_g + sigma.reshape(-1, 1, 1, 1) * n
        both = self.teacher, self.fake
        teacher, fake = (_denoise(network, x_t, sigma, self._sigma_data) for network in both)
        loss = _score_identity_loss(x_g, teacher, fake, self._alpha).mean()
        loss.backward()
        self.optimizer.step()
        self._seen += len(z)
        _follow(self.average, self.generator, self._seen, len(z), *self._ema)
        return loss.item()
