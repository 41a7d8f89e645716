"""Copy the models of a finished run into ``demo/``, for ``make demo``.

It was run once, after ``dvc repro`` with the committed params.yaml, as
``python -m scripts.ship_demo``. Weights are stored as float16, which halves the files and changes
no picture visibly.
"""

from pathlib import Path

import torch
from safetensors.torch import save

from dsd.model.checkpoint import load_denoiser, read_spec, save_model
from dsd.storage.image_store import ImageStore
from dsd.utils.files import published
from dsd.utils.images import to_uint8

__all__ = ["main", "ship"]

NUM_OBSERVATIONS = 12


def ship(root: Path, target: Path) -> None:
    """Write both models of the workspace ``root``, and held-out observations, to ``target``.

    Raises:
        DataError: A model or the images are missing.
    """
    sources = {"teacher": root / "data/pretrain", "generator": root / "data/distill/generator"}
    for name, source in sources.items():
        spec = read_spec(source)
        save_model(
            target / name,
            load_denoiser(source).half(),
            network=spec.network,
            operator=spec.operator,
            shape=spec.shape,
            sigma_init=spec.sigma_init,
        )
    heldout = ImageStore.open(root / "data/corrupt/heldout")
    clean = ImageStore.open(root / "data/prepare")
    first = torch.arange(NUM_OBSERVATIONS)
    kept = {
        "noisy": heldout.take(first).half(),
        "sigma": heldout.sigma[first],
        "clean": to_uint8(clean.take(heldout.index[first])),
        "learned_from": torch.tensor(len(ImageStore.open(root / "data/corrupt/train"))),
    }
    with published(target / "observations.safetensors") as file:
        file.write(save(kept))


def main() -> int:
    """Ship the models of this workspace; the exit code."""
    ship(Path(), Path("demo"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
