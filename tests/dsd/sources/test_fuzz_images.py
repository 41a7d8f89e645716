"""Images and stored arrays, odd or damaged in any way: what they hold, or a refusal by name."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hostile import chunk, model, raw_png
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stage_helpers import Recorder, decode, params_with, png, random_images, tiff

from dsd.metrics.statistics_file import load_statistics
from dsd.model.checkpoint import load_generator
from dsd.sources.reader import Reader, find_images
from dsd.training.state import TrainingState
from dsd.utils.errors import DataError
from pipeline.execution.run import run_stage
from pipeline.stage_io.paths import Paths
from pipeline.stages import prepare

PIXELS = random_images(1, 5, 4, 3)[0]


def saved(image, kind, **options):
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def transparent(colour, rows, marker):
    return raw_png(2, 1, zlib.compress(rows), colour=colour, more=chunk(b"tRNS", marker))


ANIMATED = {"save_all": True, "append_images": [Image.new("L", (4, 4), 9)]}
REFUSED = {
    "16-bit planes": (tiff(16, samples=3, planes=True), "16 bits a channel, which need"),
    "16-bit TIFF": (tiff(16), "16 bits a channel, which need"),
    "signed bytes": (tiff(8, sample_format=2), "signed whole numbers of 8 bits, which"),
    "four channels": (tiff(8, samples=4, extra=[0]), "has 4 channels, declared as RGB"),
    "transparent grey": (transparent(0, b"\0\1\2", b"\0\1"), "partly transparent"),
    "transparent colour": (transparent(2, b"\0" + bytes(range(6)), b"\0\0\0\1\0\2"), "partly"),
    "animated PNG": (saved(Image.new("L", (4, 4)), "PNG", **ANIMATED), "animation of 2 frames"),
    "animated WebP": (saved(Image.new("L", (4, 4)), "WEBP", **ANIMATED), "animation of 2 frames"),
    "stereo JPEG": (saved(Image.new("L", (4, 4)), "MPO", **ANIMATED), "2 pictures (MPO"),
    "LAB": (saved(Image.new("LAB", (4, 4)), "TIFF"), "colour mode LAB"),
    "no width": (raw_png(0, 5, b""), "is no PNG"),
    "too few rows": (raw_png(64, 64, zlib.compress(bytes(99))), "cannot be decoded"),
}  # fmt: skip


def test_odd_images_among_good_ones_are_skipped_and_listed_or_refused_by_name(tmp_path):
    """The whole stage, for every way in which an image can be odd."""
    folder = tmp_path / "in"
    folder.mkdir()
    good = png(random_images(1, 4, 4)[0])
    for number, (content, _) in enumerate(REFUSED.values()):
        (folder / f"{number:02d}.png").write_bytes(content)
    (folder / "99.png").write_bytes(good)
    source = {"source": "folder", "path": str(folder), "pad": 0, "resolution": None}
    params = params_with(data={**source, "on_error": "skip"})
    run_stage(prepare, params, Paths(tmp_path), Recorder())
    summary = json.loads((tmp_path / "reports/prepare/summary.json").read_text())
    assert summary["count"] == 1
    listed = {Path(one["name"]).stem: one["reason"] for one in summary["refused"]}
    for number, (name, (_, reason)) in enumerate(REFUSED.items()):
        assert reason in listed[f"{number:02d}"], name
    with pytest.raises(DataError, match=r"00\.png has 16 bits a channel.*more of 1\d cannot"):
        run_stage(prepare, params_with(data=source), Paths(tmp_path / "other"), Recorder())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_lies_on_its_side_is_turned_whatever_its_format(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1],
        5: PIXELS.swapaxes(0, 1), 6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(PIXELS),
    }[orientation]  # fmt: skip
    for kind, options in {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.items():
        content = saved(Image.fromarray(PIXELS), kind, exif=exif, **options)
        np.testing.assert_array_equal(decode(content), upright.transpose(2, 0, 1), err_msg=kind)
    jpeg = saved(Image.fromarray(PIXELS), "JPEG", exif=exif)
    assert decode(jpeg).shape[1:] == upright.shape[:2]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_of_which_nothing_can_be_made_is_as_none(kind):
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff and nothing more"
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(Image.fromarray(PIXELS), kind, exif=exif, **options)
    np.testing.assert_array_equal(decode(content), PIXELS.transpose(2, 0, 1))


def test_a_transparent_colour_that_no_pixel_has_changes_nothing():
    np.testing.assert_array_equal(decode(transparent(0, b"\0\1\2", b"\0\7")), [[[1, 2]]])
    three = transparent(2, b"\0" + bytes(range(6)), b"\0\7\0\7\0\7")
    np.testing.assert_array_equal(decode(three), [[[0, 3]], [[1, 4]], [[2, 5]]])


def damaged(data, whole):
    """Bytes cut off, or some bits flipped, or both."""
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
    return bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])


def outcome(read):
    """What was read and None, or None and the refusal."""
    try:
        return read(), None
    except DataError as error:
        return None, str(error)


def as_parquet(struct_column):
    cells = [png(image) for image in random_images(6, 9, 9)]
    column = [{"bytes": cell, "path": "a"} for cell in cells] if struct_column else cells
    target = io.BytesIO()
    pq.write_table(pa.table({"image": column}), target, compression="zstd")
    return target.getvalue()


PARQUET = [as_parquet(struct_column) for struct_column in (False, True)]


@settings(max_examples=400)
@given(data=st.data())
def test_a_damaged_parquet_file_gives_images_or_a_refusal_that_names_it(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    path.write_bytes(damaged(data, data.draw(st.sampled_from(PARQUET))))

    def read():
        source = find_images("parquet", path, None)
        reader = Reader(source, pad=0, resolution=None, on_error="skip", max_images=None)
        return [*reader.blocks()]

    blocks, refusal = outcome(read)
    if refusal is None:
        assert all(block.dtype == np.uint8 for block in blocks)
    else:
        assert str(path) in refusal
        assert refusal.isprintable()


def test_column_names_that_are_no_text_or_there_twice_are_refused(tmp_path):
    path = tmp_path / "names.parquet"
    pq.write_table(pa.table({"zzzz": [b"x"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"zzzz", b"\xffzzz"))
    with pytest.raises(DataError, match=r"names\.parquet is no readable Parquet file"):
        find_images("parquet", path, None)
    pq.write_table(pa.table([[b"x"], [b"y"]], names=["image", "image"]), path)
    with pytest.raises(DataError, match=r"names\.parquet has several columns 'image'"):
        find_images("parquet", path, None)


def as_statistics(**options):
    target = io.BytesIO()
    (np.savez_compressed if options else np.savez)(target, mu=np.ones(4), sigma=np.eye(4))
    return target.getvalue()


STATISTICS = [as_statistics(), as_statistics(compressed=True)]


@settings(max_examples=400)
@given(data=st.data())
def test_damaged_statistics_are_what_they_were_or_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(damaged(data, data.draw(st.sampled_from(STATISTICS))))
    found, refusal = outcome(lambda: load_statistics(path, unlabelled="any"))
    if refusal is None:
        assert torch.equal(found.mean, torch.ones(4, dtype=torch.float64))
        assert torch.equal(found.cov, torch.eye(4, dtype=torch.float64))
    else:
        assert str(path) in refusal


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A model folder and a training state, whole."""
    folder = tmp_path_factory.mktemp("stored")
    model(folder)
    state_of(torch.nn.Linear(3, 3)).save(folder / "state", {"step": 1})
    return folder


def state_of(network):
    return TrainingState({"net": network}, {"adam": torch.optim.Adam(network.parameters())})


@settings(max_examples=150)
@given(data=st.data())
def test_every_damage_to_a_model_or_a_state_is_refused_by_name(stored, data):
    """A changed digit of a description may mean another model; then it is at least a whole one."""
    path = stored / data.draw(st.sampled_from(["weights.safetensors", "model.json", "state"]))
    whole = path.read_bytes()
    content = damaged(data, whole)
    path.write_bytes(content)
    readers = {"state": lambda: state_of(torch.nn.Linear(3, 3)).load(path)}
    read = readers.get(path.name, lambda: load_generator(stored).shape)
    try:
        found, refusal = outcome(read)
    finally:
        path.write_bytes(whole)
    if refusal is not None:
        assert content != whole
        assert str(stored) in refusal
    else:
        assert path.name == "model.json" or content == whole
        assert found is not None
