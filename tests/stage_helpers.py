"""What tests of stages share: parameters with changes, small images, a log that remembers."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from ruamel.yaml import YAML

from dsd.config import Params

ROOT = Path(__file__).parents[1]


class Bar:
    def __init__(self):
        self.seen = []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.seen.append("closed")

    def update(self, images, **shown):
        self.seen.append(images)


class Recorder:
    """A StageLog that keeps everything."""

    def __init__(self):
        self.bars, self.lines, self.values, self.datasets = [], [], [], []
        self.trained, self.struck = [], []

    def metrics(self, images: int, values: Mapping[str, float]) -> None:
        self.values.append((images, dict(values)))

    def trains(self, name: str) -> None:
        self.trained.append(name)

    def strikes(self, count: int) -> None:
        self.struck.append(count)

    def reads(self, name: str, *, digest: str, count: int, shape: Sequence[int]) -> None:
        self.datasets.append((name, digest, count, tuple(shape)))

    def progress(self, total_images: int) -> Bar:
        self.bars.append(Bar())
        return self.bars[-1]

    def say(self, text: str) -> None:
        self.lines.append(text)

    def stop_signal(self) -> int | None:
        return None


def params_with(**changes: dict[str, object]) -> Params:
    """The committed parameters, with some keys of some sections replaced."""
    values = YAML(typ="safe").load(ROOT / "params.yaml")
    for section, keys in changes.items():
        values[section] = {**values[section], **keys} if isinstance(keys, dict) else keys
    return Params.model_validate(values)


def png(pixels: np.ndarray) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def random_images(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_parquet(path: Path, encoded: list[bytes | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(encoded, pa.binary())}), path)


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder with their bytes."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
