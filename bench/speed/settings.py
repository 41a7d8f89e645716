"""The sizes at which trainings and samplers are compared."""

from typing import Literal, final

from dsd.model.config import Network
from dsd.utils.config import Count, Section
from pipeline.params.model import Params

__all__ = ["Setting", "settings"]


@final
class Setting(Section):
    """A network, its images and a batch."""

    name: str
    shape: tuple[int, int, int]
    """Channels, height and width of an image."""

    network: Network
    batch_size: Count
    """Images of a step of the teacher's training, or generated together in one step."""

    batch_size_distill: Count
    sample: Count
    """Images that the teacher samples together, with 35 evaluations for each."""


def settings(params: Params, device: Literal["cpu", "cuda"]) -> list[Setting]:
    """Two small networks in EDM's manner, the paper's DDPM++, and that of ``params``.

    Batches are as large as a step of at most some seconds allows on two cores of a CPU, on a GPU
    as large as fills it.
    """
    small = _edm_network(model_channels=32, channel_mult=[1, 2], num_blocks=1)
    middle = _edm_network(model_channels=64, channel_mult=[1, 2, 2], num_blocks=2)
    paper = _edm_network(model_channels=128, channel_mult=[2, 2, 2], num_blocks=4)
    batches = {
        "default": {"cpu": (128, 128, 100), "cuda": (8192, 8192, 8192)},
        "small": {"cpu": (128, 64, 20), "cuda": (4096, 4096, 4096)},
        "middle": {"cpu": (16, 8, 2), "cuda": (1024, 512, 512)},
        "paper": {"cpu": (2, 1, 1), "cuda": (512, 256, 256)},
    }
    sizes = [
        ("default", (1, 16, 16), params.network),
        ("small", (1, 16, 16), small),
        ("middle", (3, 32, 32), middle),
        ("paper", (3, 32, 32), paper),
    ]
    found = []
    for name, shape, network in sizes:
        train, distill, sample = batches[name][device]
        found.append(
            Setting(
                name=name,
                shape=shape,
                network=network,
                batch_size=train,
                batch_size_distill=distill,
                sample=sample,
            )
        )
    return found


def _edm_network(*, model_channels: int, channel_mult: list[int], num_blocks: int) -> Network:
    """What EDM's training command gives for its architecture ``ddpmpp``, at this size."""
    return Network(
        patch_size=1,
        model_channels=model_channels,
        channel_mult=channel_mult,
        num_blocks=num_blocks,
        attention_resolutions=[16],
        dropout=0.13,
        sigma_data=0.5,
    )
