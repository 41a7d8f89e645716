"""The product: a one-step generator x_g = G(z) = D(tau z; tau).

Reference:
    Zhou et al. 2024, SiD (arXiv:2404.04057), for the form and tau = 2.5.
"""

from typing import Literal, final

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from dsd.model.denoiser import AnyDenoiser
from dsd.model.units import ImageUnits, require_unit
from dsd.operators.gaussian_noise import noise_under
from dsd.utils.images import to_uint8
from dsd.utils.intensity import PIXELS
from dsd.utils.philox import noise_of
from dsd.utils.shapes import State

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
        units: What the numbers of the images mean; None for pictures of 8 bits.
    """

    def __init__(
        self,
        denoiser: AnyDenoiser,
        *,
        sigma_init: float,
        shape: tuple[int, int, int],
        units: ImageUnits | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.sigma_init = sigma_init
        self.shape = shape
        self.units = units

    def forward(self, z: State) -> State:
        """Images in data units, not clamped, for standard normal latents ``z``."""
        level = z.new_full((len(z),), self.sigma_init)
        noise = noise_under(self.denoiser).colour(z)
        out: Tensor = self.denoiser(self.sigma_init * noise, level)
        return out

    @torch.inference_mode()
    def sample(
        self,
        num_images: int,
        seed: int,
        *,
        unit: Literal["raw", "data"] = "raw",
        first: int = 0,
        batch_size: int = 500,
    ) -> Shaped[Tensor, " n c h w"]:
        """Draw images on the CPU.

        Image i depends on (seed, first + i) alone, up to the rounding that a batch of another size
        may bring.

        Args:
            num_images: How many, n.
            seed: Of the latents.
            unit: ``raw``: numbers in the units and the type of the files that were learned from,
                uint8 for pictures of 8 bits; ``data``: float32, not clamped, [-1, 1] for the
                range that was mapped to it.
            first: Number of the first image.
            batch_size: Images that are computed together.

        Raises:
            ValueError: ``num_images``, ``seed`` or ``unit`` is out of range.
        """
        if num_images < 1 or seed < 0:
            msg = f"num_images must be >= 1 and seed >= 0, not {num_images} and {seed}"
            raise ValueError(msg)
        require_unit(unit)
        device = next(self.parameters()).device
        training = self.training
        self.eval()
        parts = []
        for start in range(0, num_images, batch_size):
            count = min(batch_size, num_images - start)
            z = make_latents(count, self.shape, seed=seed, first=first + start).to(device)
            parts.append(self._in_unit(self(z), unit))
        self.train(training)
        return torch.cat(parts)

    def _in_unit(self, x: State, unit: Literal["raw", "data"]) -> Tensor:
        if unit == "data":
            return x.cpu()
        pixels = to_uint8(x).cpu()  # refuses what is not finite
        intensity = PIXELS if self.units is None else self.units.intensity
        return (
            pixels if intensity == PIXELS else torch.from_numpy(intensity.in_raw(x.cpu().numpy()))
        )
