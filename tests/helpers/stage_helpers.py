"""What tests of stages share: parameters with changes, small images, a log that remembers."""

import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from ruamel.yaml import YAML

from dsd.sources.formats.pictures import open_file
from pipeline.params.model import Params
from sandbox import ROOT


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
        self.trained, self.struck, self.works = [], [], []

    def metrics(self, images: int, values: Mapping[str, float]) -> None:
        self.values.append((images, dict(values)))

    def trains(self, name: str) -> None:
        self.trained.append(name)

    def nonfinite_failures(self, count: int) -> None:
        self.struck.append(count)

    def reads(self, name: str, *, digest: str, count: int, shape: Sequence[int]) -> None:
        self.datasets.append((name, digest, count, tuple(shape)))

    def progress(self, total_images: int) -> Bar:
        self.bars.append(Bar())
        return self.bars[-1]

    def say(self, text: str) -> None:
        self.lines.append(text)

    def doing(self, text: str) -> None:
        self.works.append(text)

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


def decode(content: bytes) -> np.ndarray:
    """The pixels of a file that holds one picture."""
    file = open_file(content)
    assert file.count == 1
    return file.read(0)[0]


def tiff(
    bits=8,
    *,
    samples=1,
    planes=False,
    sample_format=1,
    sides=(4, 4),
    pixels=None,
    photometric=None,
    extra=(),
    text="",
    more=None,
    tail=b"",
    order="<",
    large=False,
):
    """An uncompressed TIFF of one directory, with any claim about it.

    Args:
        pixels: Bytes; counting up if there are none.
        extra: What the channels beyond the usual ones are.
        text: The description.
        more: Other tags of long numbers.
        tail: Bytes behind all that the directory points at.
    """  # fmt: skip
    width, height = sides
    parts = samples if planes else 1
    length = width * height * samples * bits // 8 // parts
    pixels = bytes(k % 256 for k in range(length * parts)) if pixels is None else pixels
    colour = (2 if samples > 2 else 1) if photometric is None else photometric
    shorts = {
        256: [width], 257: [height], 258: [bits] * samples, 259: [1], 262: [colour],
        277: [samples], 278: [height], 284: [2 if planes else 1], 338: [*extra],
        339: [sample_format] * samples,
    }  # fmt: skip
    values = {tag: (3, struct.pack(f"{order}{len(v)}H", *v)) for tag, v in shorts.items() if v}
    if text:
        values[270] = 2, text.encode() + b"\0"
    longs = {273: [0] * parts, 279: [length] * parts, **(more or {})}
    for tag, numbers in longs.items():
        values[tag] = 4, struct.pack(f"{order}{len(numbers)}I", *numbers)
    inline = 8 if large else 4
    header = (16 if large else 8) + len(values) * (20 if large else 12) + (16 if large else 6)
    start = header + sum(len(raw) for _, raw in values.values() if len(raw) > inline)
    if 273 not in (more or {}):
        places = [start + n * length for n in range(parts)]
        values[273] = 4, struct.pack(f"{order}{parts}I", *places)
    entries, outside = b"", b""
    for tag, (kind, raw) in sorted(values.items()):
        count = len(raw) // {2: 1, 3: 2, 4: 4}[kind]
        if len(raw) > inline:
            place = struct.pack(f"{order}{'Q' if large else 'I'}", header + len(outside))
            raw, outside = place, outside + raw
        entries += struct.pack(f"{order}HH{'Q' if large else 'I'}", tag, kind, count)
        entries += raw.ljust(inline, b"\0")
    mark = b"II" if order == "<" else b"MM"
    if large:
        head = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, 16)
        entries = struct.pack(f"{order}Q", len(values)) + entries + bytes(8)
    else:
        head = mark + struct.pack(f"{order}HI", 42, 8)
        entries = struct.pack(f"{order}H", len(values)) + entries + bytes(4)
    return head + entries + outside + pixels + tail


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
