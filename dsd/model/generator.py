"""The product: a one-step generator x_g = G(z) = D(tau z; tau).

Reference:
    Zhou et al. 2024, SiD (arXiv:2404.04057), for the form and tau = 2.5.
"""

from typing import final

import torch
from torch import Tensor, nn

from dsd.model.denoiser import AnyDenoiser
from dsd.operators.gaussian_noise import noise_under
from dsd.utils.images import to_uint8
from dsd.utils.philox import noise_of
from dsd.utils.shapes import Pixels, State

__all__ = ["OneStepGenerator", "make_latents"]


def make_latents(count: int, shape: tuple[int, int, int], *, seed: int, first: int = 0) -> Tensor:
    """Standard normal latents [count, *shape]; number i depends on (seed, first + i) alone."""
    indices = torch.arange(first, first + count).numpy()
    return torch.from_numpy(noise_of(seed, indices, shape))


@final
class OneStepGenerator(nn.Module):
    """G(z): one evaluation of a denoiser at a fixed level.

    Where the denoiser removes correlated noise, the latents get its spectrum first.

    Args:
        denoiser: The denoiser that generates; its weights are the generator's.
        sigma_init: Level tau, in data units.
        shape: Channels, height and width of the images.
    """

    def __init__(
        self, denoiser: AnyDenoiser, *, sigma_init: float, shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.sigma_init = sigma_init
        self.shape = shape

    def forward(self, z: State) -> State:
        """Images in data units, not clamped, for standard normal latents ``z``."""
        level = z.new_full((len(z),), self.sigma_init)
        noise = noise_under(self.denoiser).colour(z)
        out: Tensor = self.denoiser(self.sigma_init * noise, level)
        return out

    @torch.inference_mode()
    def sample(self, num_images: int, *, seed: int, batch_size: int = 500) -> Pixels:
        """Draw images as they are saved, uint8 [num_images, C, H, W] on the CPU.

        Image i depends on (seed, i) alone, up to the rounding that a batch of another size may
        bring.

        Raises:
            ValueError: ``num_images`` or ``seed`` is out of range.
        """
        if num_images < 1 or seed < 0:
            msg = f"num_images must be >= 1 and seed >= 0, not {num_images} and {seed}"
            raise ValueError(msg)
        device = next(self.parameters()).device
        training = self.training
        self.eval()
        parts = []
        for first in range(0, num_images, batch_size):
            count = min(batch_size, num_images - first)
            z = make_latents(count, self.shape, seed=seed, first=first).to(device)
            parts.append(to_uint8(self(z)).cpu())
        self.train(training)
        return torch.cat(parts)
