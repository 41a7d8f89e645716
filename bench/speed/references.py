"""Steps of the reference implementations, by their own networks and losses from a checkout.

EDM is github.com/NVlabs/edm, SiD is github.com/mingyuanzhou/SiD. None of their code is here. What
their training loops do in one step is done in the same order, for one process without
DistributedDataParallel. Images come from memory, are not augmented, and float32 stays without
TF32, as in their loops.
"""

import copy
import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, final

import torch
from torch import Tensor, nn, optim

if TYPE_CHECKING:
    from bench.speed.trainings import Setting

__all__ = ["EdmTeacher", "RawNetwork", "SidDistillation", "reference_module", "reference_network"]

_Shape: TypeAlias = tuple[int, int, int]
_PACKAGES = ("training", "torch_utils", "dnnlib", "generate")
_FEW_IMAGES = 2048
_EMA_HALFLIFE, _EMA_RAMPUP, _RAMPUP_IMAGES, _SCALE_G = 500_000, 0.05, 10_000_000, 100
_like_their_loops = partial(
    torch.backends.cudnn.flags, True, benchmark=True, deterministic=False, allow_tf32=False
)


def reference_module(checkout: Path, name: str) -> Any:  # noqa: ANN401 - their code is untyped
    """A module of a checkout; both references give their packages the same names."""
    if sys.path[0] != str(checkout):
        sys.path.insert(0, str(checkout))
        for other in [*sys.modules]:
            if other.partition(".")[0] in _PACKAGES:
                del sys.modules[other]
    return importlib.import_module(name)


def reference_network(checkout: Path, setting: "Setting", device: torch.device) -> nn.Module:
    """The reference's preconditioned DDPM++ of this size: what its command ``ddpmpp`` builds."""
    network = setting.network
    kind: dict[str, object] = {"model_type": "SongUNet", "embedding_type": "positional"}
    kind |= {"resample_filter": [1, 1], "encoder_type": "standard", "decoder_type": "standard"}
    names = ("model_channels", "channel_mult", "num_blocks", "dropout")
    size = {name: getattr(network, name) for name in names}
    size |= {"attn_resolutions": network.attention_resolutions, "channel_mult_noise": 1}
    size |= {"img_resolution": setting.shape[1], "img_channels": setting.shape[0]}
    made: nn.Module = reference_module(checkout, "training.networks").EDMPrecond(**kind, **size)
    return made.to(device)


@final
class RawNetwork(nn.Module):
    """The raw network of :func:`reference_network`, called as ours are: ``F(x, c_noise)``."""

    def __init__(self, preconditioned: nn.Module) -> None:
        super().__init__()
        self.model = preconditioned.get_submodule("model")

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Raw output [b, C, H, W] for scaled images and noise conditioning [b]."""
        out: Tensor = self.model(x, c_noise, None)
        return out


def _step(optimizer: optim.Optimizer, network: nn.Module) -> None:
    for weight in network.parameters():
        if weight.grad is not None:
            torch.nan_to_num(weight.grad, nan=0, posinf=1e5, neginf=-1e5, out=weight.grad)
    optimizer.step()


def _follow(average: nn.Module, network: nn.Module, seen: int, batch: int) -> None:
    halflife = min(_EMA_HALFLIFE, seen * _EMA_RAMPUP)
    decay = 0.5 ** (batch / max(halflife, 1e-8))
    for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
        mean.copy_(weight.detach().lerp(mean, decay))


def _images(shape: _Shape, batch: int, device: torch.device) -> Callable[[], Tensor]:
    """Draws batches of 8-bit images from memory."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (_FEW_IMAGES, *shape), dtype=torch.uint8, generator=random)

    def draw() -> Tensor:
        chosen = images[torch.randint(len(images), (batch,))]
        return chosen.to(device).to(torch.float32) / 127.5 - 1

    return draw


@final
class EdmTeacher:
    """EDM's training step, with a checkout of its repository."""

    def __init__(
        self, checkout: Path, network: nn.Module, batch: int, shape: _Shape, device: torch.device
    ) -> None:
        self._loss = reference_module(checkout, "training.loss").EDMLoss()
        self._network = network.train().requires_grad_(True)
        self._average = copy.deepcopy(self._network).eval().requires_grad_(False)
        self._optimizer = optim.Adam(
            self._network.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8
        )
        self._batch, self._seen = batch, 0
        self._draw = _images(shape, batch, device)

    def advance(self) -> None:
        """Make a step."""
        self._optimizer.zero_grad(set_to_none=True)
        with _like_their_loops():
            loss = self._loss(net=self._network, images=self._draw(), labels=None)
            loss.sum().mul(1 / self._batch).backward()
        for group in self._optimizer.param_groups:
            group["lr"] = 1e-3 * min(self._seen / _RAMPUP_IMAGES, 1)
        _step(self._optimizer, self._network)
        _follow(self._average, self._network, self._seen, self._batch)
        self._seen += self._batch


@final
class SidDistillation:
    """SiD's training step: the fake score network, then the generator, with its own defaults."""

    def __init__(
        self, checkout: Path, network: nn.Module, batch: int, shape: _Shape, device: torch.device
    ) -> None:
        self._loss = reference_module(checkout, "training.sid_loss").SID_EDMLoss()
        self._teacher = network.eval().requires_grad_(False)
        self._fake = copy.deepcopy(self._teacher).eval()
        self._generator = copy.deepcopy(self._teacher).eval()
        self._average = copy.deepcopy(self._teacher)
        adam = partial(optim.Adam, lr=1e-5, betas=(0.0, 0.999), eps=1e-8)
        self._optimizer_fake = adam(self._fake.parameters())
        self._optimizer = adam(self._generator.parameters())
        self._batch, self._seen, self._device = batch, 0, device
        self._draw = _images(shape, batch, device)

    def advance(self) -> None:
        """Make both halves of a step."""
        with _like_their_loops():
            self._train_fake()
            self._train_generator()
        _follow(self._average, self._generator, self._seen, self._batch)
        self._seen += self._batch

    def _generate(self) -> Tensor:
        z = 2.5 * torch.randn_like(self._draw())
        level = 2.5 * torch.ones(len(z), 1, 1, 1).to(self._device)
        labels = torch.zeros(len(z), 9).to(self._device)
        images: Tensor = self._generator(z, level, None, augment_labels=labels)
        return images

    def _train_fake(self) -> None:
        loss_of = partial(self._loss, fake_score=self._fake)
        self._improve(self._fake, self._optimizer_fake, loss_of, 1)

    def _train_generator(self) -> None:
        networks = {"true_score": self._teacher, "fake_score": self._fake}
        loss_of = partial(self._loss.generator_loss, **networks, alpha=1.2, tmax=800)
        self._improve(self._generator, self._optimizer, loss_of, _SCALE_G)

    def _improve(
        self, network: nn.Module, optimizer: optim.Adam, loss_of: Callable[..., Tensor], scale: int
    ) -> None:
        network.train().requires_grad_(True)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(images=self._generate()).sum().mul(scale / self._batch)
        loss.backward()
        loss.item()  # which their loop reports
        network.eval().requires_grad_(False)
        _step(optimizer, network)
