"""Frechet distance between the images of two folders.

python -m dsd.frechet GENERATED REFERENCE --features inception-edm
"""

import argparse
import sys
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch

from dsd.features.config import FEATURE_SPACES, FeatureSpace
from dsd.features.extractor import Extractor, extract, load_extractor
from dsd.metrics.frechet import Moments, frechet_distance, moments_of_batches
from dsd.sources.reader import Reader, find_images
from dsd.utils.errors import DataError, DsdError

__all__ = ["frechet_distance_of_folders", "main"]


class _Measured(NamedTuple):
    """Images of a folder in a feature space."""

    moments: Moments
    shape: tuple[int, ...]
    """Channels, height and width of an image."""


def frechet_distance_of_folders(
    a: Path | str,
    b: Path | str,
    *,
    features: FeatureSpace = "inception-edm",
    device: torch.device | str = "cpu",
    inception_weights: Path | str | None = None,
) -> float:
    """The Frechet distance between the pictures in two folders and their subfolders.

    Args:
        a: One folder, of PNG, JPEG, BMP, WebP or TIFF files of one size.
        b: The other one, with images of the same size and colours.
        features: See :func:`dsd.load_extractor`; ``inception-edm`` makes it the FID of EDM's
            paper.
        device: Where features are computed.
        inception_weights: File of Inception's weights; None lets it be downloaded once.

    Raises:
        DataError: A folder has no pictures, or one is broken; sizes or colours differ.
        ParamsError: There is no extractor of that name.
    """
    extractor = load_extractor(features, device=device, inception_weights=inception_weights)
    return frechet_distance(*_moments_of_both(Path(a), Path(b), extractor))


def _moments_of_both(a: Path, b: Path, extractor: Extractor) -> tuple[Moments, Moments]:
    first, second = _measure(a, extractor), _measure(b, extractor)
    if first.shape != second.shape:
        sizes = " and ".join(" x ".join(map(str, one.shape)) for one in (first, second))
        msg = (
            f"{a}, {b}: their images are {sizes} (channels x height x width). Bring both to one "
            "size and one kind of colour, or the resizing counts as a difference"
        )
        raise DataError(msg)
    return first.moments, second.moments


def _measure(folder: Path, extractor: Extractor) -> _Measured:
    source = find_images("folder", folder, None)
    reader = Reader(source, pad=0, resolution=None, on_error="raise", max_images=None)
    blocks = reader.blocks()
    first = next(blocks)
    features = (
        extract(extractor, torch.from_numpy(block), batch_size=len(block))
        for block in chain([first], blocks)
    )
    moments = moments_of_batches(features, protocol=extractor.protocol)
    return _Measured(moments, first.shape[1:])


def main() -> int:
    """Print the distance, and how many images it is of; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dsd.frechet", description="Frechet distance between two folders of images"
    )
    parser.add_argument("a", type=Path, metavar="A", help="a folder of pictures")
    parser.add_argument("b", type=Path, metavar="B", help="another one")
    parser.add_argument(
        "--features",
        default="inception-edm",
        metavar="NAME",
        help=f"{', '.join(FEATURE_SPACES[1:])}, package.module:function, or a TorchScript file",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--inception-weights", type=Path, metavar="FILE", help="instead of a download"
    )
    options = parser.parse_args()
    try:
        extractor = load_extractor(
            options.features, device=options.device, inception_weights=options.inception_weights
        )
        a, b = _moments_of_both(options.a, options.b, extractor)
        print(f"{frechet_distance(a, b):.6g} ({options.features}, {a.count} and {b.count} images)")
    except DsdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for note in dict.fromkeys((*a.notes, *b.notes)):
        print(f"note: {note}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
