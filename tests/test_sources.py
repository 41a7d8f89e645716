import gzip
import hashlib
import io
import pickle
import struct
import zlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stage_helpers import ROOT, png, random_images, write_parquet

import dsd.sources
from dsd.decoding import area_average, decode
from dsd.errors import DataError
from dsd.sources import Reader, find_images
from pipeline.embed_fashion_mnist import embed


def saved(image, kind, **options):
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def reader_of(path, kind="parquet", name=None, **options):
    defaults = {"pad": 0, "resolution": None, "on_broken": "refuse", "max_images": None}
    return Reader(find_images(kind, path, name), **{**defaults, **options})


def read(path, kind="parquet", name=None, **options):
    return np.concatenate(list(reader_of(path, kind, name, **options).blocks()))


def parquet_of(tmp_path, images):
    path = tmp_path / "images.parquet"
    write_parquet(path, [png(image) for image in images])
    return path


def folder_of(tmp_path, files):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


# Parquet


def test_grey_and_rgb_come_from_parquet_with_channels_first(tmp_path):
    grey, rgb = random_images(5, 4, 6), random_images(5, 4, 6, 3)
    np.testing.assert_array_equal(read(parquet_of(tmp_path, grey)), grey[:, None])
    np.testing.assert_array_equal(read(parquet_of(tmp_path, rgb)), rgb.transpose(0, 3, 1, 2))


def test_structs_of_bytes_and_path_are_understood(tmp_path):
    images = random_images(3, 4, 4)
    rows = [{"bytes": png(image), "path": "a.png"} for image in images]
    pq.write_table(pa.table({"image": rows, "label": [1, 2, 3]}), tmp_path / "hf.parquet")
    np.testing.assert_array_equal(read(tmp_path / "hf.parquet"), images[:, None])


def test_jpeg_is_decoded(tmp_path):
    content = saved(Image.new("RGB", (8, 8), (200, 100, 50)), "JPEG", quality=95)
    write_parquet(tmp_path / "jpeg.parquet", [content])
    colour = read(tmp_path / "jpeg.parquet").mean(axis=(0, 2, 3))
    np.testing.assert_allclose(colour, [200, 100, 50], atol=3)


def test_empty_cells_are_refused_or_skipped_with_their_row(tmp_path):
    path = tmp_path / "holes.parquet"
    write_parquet(path, [png(image) for image in random_images(2, 4, 4)] + [None])
    with pytest.raises(DataError, match="row 2 has no bytes"):
        read(path)
    assert len(read(path, on_broken="skip")) == 2


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"picture": [b"x"]}, r"no column 'image', only \['picture'\]"),
        ({"image": [1, 2]}, "column 'image' is int64"),
        ({"image": [{"path": "a.png"}]}, "column 'image' is struct"),
    ],
)
def test_a_parquet_file_without_images_is_refused(tmp_path, table, complaint):
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=complaint):
        find_images("parquet", tmp_path / "t.parquet", None)


def test_no_parquet_file_is_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match="no readable Parquet file"):
        find_images("parquet", tmp_path / "t.parquet", None)


def test_a_parquet_file_with_damaged_pages_is_refused(tmp_path):
    path = parquet_of(tmp_path, random_images(50, 16, 16))
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged near row 0|cannot be decoded|is no PNG"):
        read(path)


def test_an_empty_parquet_file_is_refused(tmp_path):
    write_parquet(tmp_path / "e.parquet", [])
    with pytest.raises(DataError, match="none of 0 images is usable"):
        read(tmp_path / "e.parquet")


# Folders


def test_folders_are_read_recursively_in_the_order_of_names(tmp_path):
    images = random_images(4, 5, 5)
    names = ["b/2.PNG", "a.png", "b/10.png", "c.bmp"]
    files = {
        name: saved(Image.fromarray(image), "BMP" if name == "c.bmp" else "PNG")
        for name, image in zip(names, images, strict=True)
    }
    extra = {"notes.txt": b"hello", ".hidden.png": b"junk", "b/._10.png": b"junk"}
    folder = folder_of(tmp_path, files | extra)
    expected = images[[1, 2, 0, 3]][:, None]
    np.testing.assert_array_equal(read(folder, "folder"), expected)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_every_lossless_format_gives_the_same_pixels(tmp_path, kind):
    pixels = random_images(1, 6, 6, 3)[0]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(Image.fromarray(pixels), kind, **options)
    suffix = {"TIFF": "tif"}.get(kind, kind.lower())
    folder = folder_of(tmp_path, {f"image.{suffix}": content})
    np.testing.assert_array_equal(read(folder, "folder")[0], pixels.transpose(2, 0, 1))


def test_a_missing_path_is_refused(tmp_path):
    for kind in ("parquet", "folder"):
        with pytest.raises(DataError, match=r"nowhere does not exist: correct data\.path"):
            find_images(kind, tmp_path / "nowhere", None)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no images .*data\.path"):
        find_images("folder", tmp_path, None)


def test_file_and_folder_confused_says_what_to_set(tmp_path):
    path = parquet_of(tmp_path, random_images(1, 2, 2))
    with pytest.raises(DataError, match=r"is a file: .*data\.source to parquet"):
        find_images("folder", path, None)
    with pytest.raises(DataError, match=r"is a folder: .*data\.source to folder"):
        find_images("parquet", tmp_path, None)


def test_an_unreadable_file_is_named(tmp_path):
    folder = folder_of(tmp_path, {"a.png": png(random_images(1, 4, 4)[0])})
    (folder / "b.png").symlink_to(folder / "gone.png")
    with pytest.raises(DataError, match=r"b\.png cannot be read: No such file"):
        read(folder, "folder")


# Broken and odd images


def truncated(tmp_path, count=4):
    files = {f"{i}.png": png(image) for i, image in enumerate(random_images(count, 16, 16))}
    files["2.png"] = files["2.png"][:100]
    return folder_of(tmp_path, files)


def test_a_truncated_image_among_good_ones_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"2\.png cannot be decoded .*data\.on_broken to skip"):
        read(truncated(tmp_path), "folder")


def test_a_truncated_image_is_skipped_and_listed_on_request(tmp_path):
    reader = reader_of(truncated(tmp_path), "folder", on_broken="skip")
    images = np.concatenate(list(reader.blocks()))
    np.testing.assert_array_equal(images, random_images(4, 16, 16)[[0, 1, 3], None])
    assert [Path(refused.name).name for refused in reader.refused] == ["2.png"]
    assert "cannot be decoded" in reader.refused[0].reason


def test_nothing_usable_is_refused_even_when_skipping(tmp_path):
    folder = folder_of(tmp_path, {"a.png": b"junk", "b.png": b""})
    with pytest.raises(DataError, match=r"none of 2 images is usable; the first: .*a\.png is no"):
        read(folder, "folder", on_broken="skip")


@pytest.mark.parametrize("on_broken", ["refuse", "skip"])
@pytest.mark.parametrize(
    ("odd", "found"), [((12, 16), "16 x 12 grey"), ((16, 16, 3), "16 x 16 RGB")]
)
def test_mixed_images_are_refused_with_name_and_size(tmp_path, odd, found, on_broken):
    images = [*random_images(2, 16, 16), *random_images(1, *odd)]
    folder = folder_of(tmp_path, {f"{i}.png": png(image) for i, image in enumerate(images)})
    with pytest.raises(DataError, match=rf"2\.png is {found}.*0\.png, is 16 x 16 grey"):
        read(folder, "folder", on_broken=on_broken)


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def raw_png(width, height, depth, colour, rows):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


FRAMES = [Image.new("L", (4, 4), level) for level in (0, 255)]
HALF_SEEN = Image.new("RGBA", (4, 4), (9, 9, 9, 128))
REFUSED = {
    "16-bit grey": (saved(Image.new("I;16", (4, 4)), "PNG"), "more than 8 bits"),
    "16-bit RGB": (raw_png(2, 1, 16, 2, b"\0" + bytes(12)), "more than 8 bits"),
    "float": (saved(Image.new("F", (4, 4)), "TIFF"), "more than 8 bits"),
    "CMYK": (saved(Image.new("CMYK", (4, 4)), "JPEG"), "colour mode CMYK"),
    "transparent": (saved(HALF_SEEN, "PNG"), "partly transparent"),
    "stack": (saved(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), "2 frames"),
    "bomb": (raw_png(30_000, 30_000, 8, 0, b""), r"900000000|bomb"),
    "large": (raw_png(9_000, 9_000, 8, 0, b""), "9000 x 9000 pixels, more than"),
    "GIF": (saved(FRAMES[0], "GIF"), "is no PNG"),
    "empty": (b"", "is no PNG"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_an_8_bit_grey_or_rgb_picture_is_refused(name):
    content, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason):
        decode(content)


def test_palettes_single_bits_and_opaque_alpha_are_converted():
    rgb = Image.new("RGB", (2, 1))
    rgb.putdata([(255, 0, 0), (0, 0, 255)])
    bits = Image.new("1", (2, 1))
    bits.putdata([0, 1])
    expected = np.array([[[255, 0]], [[0, 0]], [[0, 255]]])
    for image in (rgb, rgb.convert("P"), rgb.convert("RGBA")):
        np.testing.assert_array_equal(decode(saved(image, "PNG")), expected)
    np.testing.assert_array_equal(decode(saved(bits, "PNG")), [[[0, 255]]])
    np.testing.assert_array_equal(decode(saved(bits.convert("LA"), "PNG")), [[[0, 255]]])


SEEDS = [
    png(random_images(1, 9, 9)[0]),
    png(random_images(1, 9, 9, 3)[0]),
    saved(Image.fromarray(random_images(1, 9, 9, 3)[0]), "JPEG"),
    saved(Image.fromarray(random_images(1, 9, 9)[0]), "TIFF"),
    saved(Image.fromarray(random_images(1, 9, 9, 3)[0]), "BMP"),
    saved(Image.fromarray(random_images(1, 9, 9, 3)[0]), "WEBP"),
]


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_bytes_decode_or_are_refused_and_nothing_else(data):
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        pixels = decode(bytes(content))
    except ValueError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3


# Size


def averaged_slowly(pixels, resolution):
    """The same by making every pixel ``resolution`` times larger and averaging whole blocks."""
    size = pixels.shape[-1]
    large = pixels.astype(np.int64).repeat(resolution, axis=2).repeat(resolution, axis=3)
    blocks = large.reshape(*pixels.shape[:2], resolution, size, resolution, size)
    return np.floor(blocks.sum(axis=(3, 5)) / size**2 + 0.5).astype(np.uint8)


@given(size=st.integers(1, 24), data=st.data())
def test_area_average_is_the_exact_mean_over_each_area(size, data):
    resolution = data.draw(st.integers(1, size))
    pixels = random_images(2, 3, size, size)
    np.testing.assert_array_equal(
        area_average(pixels, resolution), averaged_slowly(pixels, resolution)
    )


def test_padding_is_black_and_halving_averages_two_by_two(tmp_path):
    image = np.array([[100, 101, 0, 0], [100, 101, 0, 0], [0, 0, 255, 255], [0, 0, 255, 254]])
    path = parquet_of(tmp_path, image[None].astype(np.uint8))
    expected = np.zeros((1, 1, 4, 4), np.uint8)
    expected[0, 0, 1:3, 1:3] = [[101, 0], [0, 255]]
    np.testing.assert_array_equal(read(path, pad=2, resolution=4), expected)


def test_without_a_resolution_any_shape_is_kept(tmp_path):
    assert read(parquet_of(tmp_path, random_images(2, 5, 9)), pad=1).shape == (2, 1, 7, 11)


def test_images_that_are_not_square_need_cropping_for_a_resolution(tmp_path):
    path = parquet_of(tmp_path, random_images(2, 5, 9))
    with pytest.raises(DataError, match=r"9 x 5 grey, not square.*crop.*data\.resolution to null"):
        read(path, resolution=4)


def test_a_resolution_above_the_padded_size_is_refused(tmp_path):
    path = parquet_of(tmp_path, random_images(2, 8, 8))
    assert read(path, pad=1, resolution=10).shape == (2, 1, 10, 10)
    with pytest.raises(DataError, match=r"data\.resolution is 11.*only 10: lower it"):
        read(path, pad=1, resolution=11)


# Streaming, order, identity


def test_blocks_bound_the_memory_and_change_nothing(tmp_path, monkeypatch):
    path = parquet_of(tmp_path, random_images(10, 4, 4))
    whole = read(path)
    monkeypatch.setattr(dsd.sources, "BLOCK_BYTES", 3 * 16)
    blocks = list(reader_of(path).blocks())
    assert [len(block) for block in blocks] == [3, 3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_max_images_counts_usable_ones(tmp_path):
    reader = reader_of(truncated(tmp_path), "folder", on_broken="skip", max_images=3)
    assert reader.total == 3
    assert sum(map(len, reader.blocks())) == reader.count == 3
    assert reader_of(tmp_path, "folder", max_images=100).total == 4


def test_the_fingerprint_is_that_of_the_bytes_in_order(tmp_path):
    def fingerprint(images):
        reader = reader_of(parquet_of(tmp_path, images))
        list(reader.blocks())
        return reader.fingerprint

    images = random_images(3, 4, 4)
    assert fingerprint(images) == fingerprint(images)
    assert fingerprint(images) != fingerprint(images[::-1])
    folder = folder_of(tmp_path / "f", {f"{i}.png": png(x) for i, x in enumerate(images)})
    reader = reader_of(folder, "folder")
    list(reader.blocks())
    assert reader.fingerprint == fingerprint(images)


# torchvision


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


def test_fashion_mnist_comes_through_torchvision(tmp_path):
    images, labels = random_images(6, 28, 28), np.zeros(6, np.uint8)
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    found = read(tmp_path, "torchvision", "fashion-mnist")
    np.testing.assert_array_equal(found, images[:, None])


def test_cifar10_comes_through_torchvision(tmp_path, monkeypatch):
    images = random_images(5, 3, 32, 32)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    files = {
        "batch": {"data": images.reshape(5, -1), "labels": [0] * 5},
        "meta": {"label_names": ["x"]},
    }
    sums = {}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [["batch", sums["batch"]]])
    monkeypatch.setattr(cifar, "test_list", [])
    meta = {"filename": "meta", "key": "label_names", "md5": sums["meta"]}
    monkeypatch.setattr(cifar, "meta", meta)
    np.testing.assert_array_equal(read(tmp_path, "torchvision", "cifar10"), images)


def test_celeba_is_cut_to_its_central_square(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CelebA, "file_list", [])
    images = random_images(3, 218, 178, 3)
    names = [f"{i:06d}.png" for i in range(3)]
    lists = {"list_eval_partition.txt": 0, "identity_CelebA.txt": 0}
    lists |= dict.fromkeys(
        ["list_bbox_celeba.txt", "list_landmarks_align_celeba.txt", "list_attr_celeba.txt"], 2
    )
    files = {f"img_align_celeba/{n}": png(x) for n, x in zip(names, images, strict=True)}
    for name, header in lists.items():
        rows = ["3", "value"][:header] + [f"{n} {int(i == 1)}" for i, n in enumerate(names)]
        files[name] = "\n".join(rows).encode()
    folder_of(tmp_path / "celeba", files)
    found = read(tmp_path, "torchvision", "celeba")
    expected = images[[0, 2], 20:198].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found, expected)
    assert read(tmp_path, "torchvision", "celeba", resolution=32).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist", "celeba"])
def test_a_set_that_cannot_be_downloaded_says_what_to_do(tmp_path, monkeypatch, name):
    def no_network(*args, **options):
        raise URLError("Name or service not known")

    for module, tool in (
        (torchvision.datasets.cifar, "download_and_extract_archive"),
        (torchvision.datasets.mnist, "download_and_extract_archive"),
        (torchvision.datasets.celeba, "download_file_from_google_drive"),
    ):
        monkeypatch.setattr(module, tool, no_network)
    with pytest.raises(DataError, match=f"torchvision's {name} .*connect to the network once"):
        find_images("torchvision", tmp_path / "downloads", name)


# The embedded set


def test_the_embedded_set_is_20000_small_grey_images_within_10_megabytes():
    path = ROOT / "data/embedded/fashion-mnist.parquet"
    assert path.stat().st_size <= 10_000_000
    assert hashlib.sha256(path.read_bytes()).hexdigest() in (ROOT / "data/README.md").read_text()
    reader = reader_of(path, pad=2, resolution=16, max_images=64)
    images = np.concatenate(list(reader.blocks()))
    labels = pq.read_table(path, columns=["label"])["label"].to_numpy()
    assert pq.ParquetFile(path).metadata.num_rows == len(labels) == 20_000
    assert images.shape == (64, 1, 16, 16)
    assert set(labels) == set(range(10))
    assert images[:, :, 0].max() == 0
    assert 40 < images.mean() < 90


def test_embedding_writes_images_and_labels_and_the_same_bytes_again(tmp_path):
    images, labels = random_images(5, 28, 28), np.arange(5, dtype=np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    target = tmp_path / "out.parquet"
    embed(tmp_path, target, num_images=4)
    first = target.read_bytes()
    embed(tmp_path, target, num_images=4)
    assert target.read_bytes() == first
    np.testing.assert_array_equal(read(target), images[:4, None])
    assert pq.read_table(target)["label"].to_pylist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "content",
    [b"junk", gzip.compress(b"\0\0\x08"), gzip.compress(b"\0\0\x08\x01\0\0\0\x09abc")],
    ids=["junk", "half a header", "fewer bytes than said"],  # gzip writes the time of day
)
def test_embedding_refuses_what_is_no_idx_file(tmp_path, content):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        embed(tmp_path, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
