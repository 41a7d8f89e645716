"""Make ``data/embedded/fashion-mnist.parquet`` from the set's original files.

It was run once and is kept as provenance: ``python -m scripts.embed_fashion_mnist FOLDER``, where
FOLDER holds ``train-images-idx3-ubyte.gz`` and ``train-labels-idx1-ubyte.gz``; data/README.md says
where they come from.
"""

import argparse
import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dsd.utils.errors import DataError

__all__ = ["embed", "main"]

NUM_IMAGES = 20_000
"""Number of training images, the first ones; with all 60,000 the file would have 23 MB."""


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in a gzipped IDX file.

    Raises:
        DataError: The file is missing or is no IDX file of unsigned bytes.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        msg = f"{path}: cannot be read ({error}); give the folder with the set's .gz files"
        raise DataError(msg) from error
    num_axes = raw[3] if raw[:3] == b"\x00\x00\x08" and len(raw) > 3 else 0
    start = 4 + 4 * num_axes
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    values = np.frombuffer(raw[start:], np.uint8)
    if num_axes == 0 or values.size != np.prod(shape):
        msg = f"{path}: is no complete IDX file of unsigned bytes; take the original file"
        raise DataError(msg)
    return values.reshape(shape)


def stored_png(pixels: np.ndarray) -> bytes:
    """A PNG without compression: Parquet's zstd packs many of them together."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG", compress_level=0)
    return target.getvalue()


def embed(folder: Path, target: Path, num_images: int = NUM_IMAGES) -> None:
    """Write the first ``num_images`` training images and labels of the IDX files in ``folder``.

    The bytes are the same each time (for one version of pyarrow and Pillow).
    """
    images = read_idx(folder / "train-images-idx3-ubyte.gz")[:num_images]
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz")[:num_images]
    table = pa.table(
        {
            "image": pa.array([stored_png(pixels) for pixels in images], pa.binary()),
            "label": pa.array(labels, pa.int8()),
        }
    )
    part = target.with_name(target.name + ".part")
    pq.write_table(
        table,
        part,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
        write_statistics=False,
        row_group_size=5_000,
        data_page_size=2**24,
    )
    part.replace(target)


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description="make the embedded Fashion-MNIST file")
    parser.add_argument("folder", type=Path, help="folder with the original .gz files")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data/embedded/fashion-mnist.parquet"),
        help="file to write",
    )
    args = parser.parse_args()
    embed(args.folder, args.out)


if __name__ == "__main__":
    main()
