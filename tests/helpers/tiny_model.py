"""A generator on the disk that is small and untrained, for tests of what is done with one."""

from dsd.model.checkpoint import build_denoiser, save_model
from dsd.model.config import UNetConfig
from dsd.operators.config import IdentityOperator

SHAPE = (1, 8, 8)
NETWORK = UNetConfig(
    kind="unet",
    patch_size=1,
    model_channels=8,
    channel_mult=[1],
    num_blocks=1,
    attention_resolutions=[],
    dropout=0.0,
    sigma_data=0.5,
)


def save_tiny_generator(folder, seed=0):
    """Save it as ``distill`` does."""
    save_tiny_model(folder, seed=seed)


def save_tiny_model(folder, *, seed=0, shape=SHAPE, sigma_init=2.5, units=None):
    """Save a generator, or with ``sigma_init`` None a teacher."""
    save_model(
        folder,
        build_denoiser(NETWORK, shape, seed=seed),
        network=NETWORK,
        operator=IdentityOperator(kind="identity"),
        shape=shape,
        sigma_init=sigma_init,
        units=units,
    )
