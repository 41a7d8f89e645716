"""Import published EDM weights into a folder that ``dsd.load_denoiser`` reads.

``python -m scripts.import_edm CHECKOUT PICKLE FOLDER`` loads the pickle with the code of a
checkout of EDM. A pickle is a program: load only files that you trust. The network must be an
unconditional DDPM++ with EDM's preconditioning. Both denoisers must agree on random images.
"""

import argparse
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dsd.model.checkpoint import build_denoiser, save_model
from dsd.model.config import UNetConfig
from dsd.model.denoiser import AnyDenoiser
from dsd.model.networks.edm_weights import from_song_unet
from dsd.operators.config import IdentityOperator

__all__ = ["convert", "main"]

_TOLERANCE = 1e-4
"""For pixels of order 1; float32 sums in another order give 1e-6 to 1e-5."""


def convert(theirs: Any) -> tuple[AnyDenoiser, UNetConfig]:  # noqa: ANN401 - a class of the checkout
    """Our denoiser with the weights of EDM's ``EDMPrecond``.

    Raises:
        ValueError: It is no unconditional DDPM++.
    """
    song = theirs.model
    options = song.init_kwargs
    network = UNetConfig(
        kind="unet",
        patch_size=1,
        model_channels=options["model_channels"],
        channel_mult=[*options["channel_mult"]],
        num_blocks=options.get("num_blocks", 4),
        attention_resolutions=[*options.get("attn_resolutions", [16])],
        dropout=float(options.get("dropout", 0.10)),
        sigma_data=float(theirs.sigma_data),
    )
    channels, resolution = theirs.img_channels, theirs.img_resolution
    denoiser = build_denoiser(network, (channels, resolution, resolution), seed=0)
    denoiser.network.load_state_dict(from_song_unet(song.state_dict(), network, resolution))
    return denoiser.eval(), network


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert one file."""
    parser = argparse.ArgumentParser(prog="python -m scripts.import_edm", description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of EDM's code")
    parser.add_argument("pickle", type=Path, help="network-snapshot or published weights, *.pkl")
    parser.add_argument("folder", type=Path, help="of the model to write")
    parsed = parser.parse_args(arguments)
    sys.path.insert(0, str(parsed.checkout.resolve()))
    try:
        with parsed.pickle.open("rb") as file:
            # Executes code of the file, as the module's docstring warns.
            theirs = pickle.load(file)["ema"].eval().requires_grad_(False)
        ours, network = convert(theirs)
    except ImportError as error:
        parser.error(f"{parsed.checkout} is not a checkout of EDM: {error}")
    except (OSError, pickle.UnpicklingError, LookupError, AttributeError, ValueError) as error:
        parser.error(f"{parsed.pickle} holds no unconditional DDPM++ of EDM: {error}")
    shape = (theirs.img_channels, theirs.img_resolution, theirs.img_resolution)
    random = torch.Generator().manual_seed(0)
    sigma = torch.tensor([0.01, 0.5, 5.0, 50.0])
    x = torch.randn(4, *shape, generator=random) * (1 + sigma.view(-1, 1, 1, 1))
    with torch.inference_mode():
        difference = float((ours(x, sigma) - theirs(x, sigma)).abs().max())
    if not difference < _TOLERANCE:
        parser.error(f"{parsed.pickle}: the denoisers differ by {difference:.2g}")
    identity = IdentityOperator(kind="identity")
    save_model(
        parsed.folder, ours, network=network, operator=identity, shape=shape, sigma_init=None
    )
    print(f"{parsed.folder}: largest difference of both denoisers {difference:.2g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
