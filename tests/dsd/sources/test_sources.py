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
from stage_helpers import ROOT, decode, png, random_images, tiff, write_parquet

import dsd.sources.reader
from dsd.sources.decoding import area_average
from dsd.sources.reader import Reader, find_images
from dsd.utils.errors import DataError
from scripts.embed_fashion_mnist import embed


def saved(image, kind, **options):
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def reader_of(path, kind="parquet", name=None, **options):
    defaults = {"pad": 0, "resolution": None, "on_error": "raise", "max_images": None}
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


@pytest.mark.parametrize("in_struct", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        pa.large_binary(),
        pa.binary_view(),
        pa.binary(300),
        pa.dictionary(pa.int32(), pa.binary()),
        pa.dictionary(pa.int32(), pa.large_binary()),
    ],
    ids=str,
)
def test_bytes_of_every_type_of_arrow_are_read(tmp_path, kind, in_struct):
    images = random_images(3, 4, 4)
    cells = pa.array([png(image).ljust(300, b"\0") for image in images], pa.binary())
    if pa.types.is_dictionary(kind):
        column = cells.cast(kind.value_type).dictionary_encode()
    else:
        column = cells.cast(kind)
    column = pa.StructArray.from_arrays([column], ["bytes"]) if in_struct else column
    pq.write_table(pa.table({"image": column}), tmp_path / "typed.parquet")
    np.testing.assert_array_equal(read(tmp_path / "typed.parquet"), images[:, None])


def test_a_folder_of_parquet_files_is_read_in_the_order_of_names(tmp_path):
    images = random_images(6, 4, 4)
    for name, part in (("b/0.parquet", [2, 3]), ("a.parquet", [0, 1]), ("c.parquet", [4, 5])):
        write_parquet(tmp_path / name, [png(images[i]) for i in part])
    write_parquet(tmp_path / ".old/d.parquet", [png(images[0])])
    source = find_images("parquet", tmp_path, None)
    assert source.count == 6
    assert source.notes[-1] == "left out: 1 .parquet hidden or in hidden folders (.old)"
    np.testing.assert_array_equal(read(tmp_path), images[:, None])
    (tmp_path / "b/0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"0\.parquet is no readable Parquet file"):
        find_images("parquet", tmp_path, None)


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
    assert len(read(path, on_error="skip")) == 2


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
    with pytest.raises(DataError, match=r"is a file .*data\.source to parquet"):
        find_images("folder", path, None)
    with pytest.raises(DataError, match=r"holds no images .*1 \.parquet .*source to parquet"):
        find_images("folder", tmp_path, None)
    path.unlink()
    picture = folder_of(tmp_path, {"a.png": b""}) / "a.png"
    with pytest.raises(DataError, match=r"no Parquet files .*1 \.png .*data\.source to folder"):
        find_images("parquet", tmp_path, None)
    for kind in ("folder", "parquet"):
        with pytest.raises(DataError, match=r"a\.png is a file \.png: set .*data\.path to "):
            find_images(kind, picture, None)


def test_an_unreadable_file_is_named(tmp_path):
    folder = folder_of(tmp_path, {"a.png": png(random_images(1, 4, 4)[0])})
    (folder / "b.png").symlink_to(folder / "gone.png")
    with pytest.raises(DataError, match=r"b\.png is a link that leads nowhere"):
        read(folder, "folder")


def notes_of(folder):
    return find_images("folder", folder, None).notes


def names_of(folder):
    return [Path(item.name).relative_to(folder).as_posix() for item in _items(folder)]


def _items(folder):
    source = find_images("folder", folder, None)
    assert source.count == len(source.items)
    return source.items


def test_what_is_hidden_or_of_a_system_is_left_out_and_told(tmp_path):
    hidden = [".ipynb_checkpoints/a.png", ".Trash-1000/files/b.png", "@eaDir/a.png/c.jpg"]
    hidden += ["__MACOSX/sub/._a.png", "sub/.git/d.png", "sub/._a.png", "#recycle/e.tif"]
    files = dict.fromkeys([*hidden, "a.png", "sub/a.png", ".DS_Store", ".git/config"], b"")
    folder = folder_of(tmp_path, files)
    assert names_of(folder) == ["a.png", "sub/a.png"]
    assert notes_of(folder)[-1] == (
        "left out: 5 .png, 1 .jpg, 1 .tif hidden or in hidden folders "
        "(#recycle, .Trash-1000, ._a.png, .git, .ipynb_checkpoints and 2 more)"
    )


def test_a_folder_that_lies_below_a_hidden_one_is_read(tmp_path):
    folder = folder_of(tmp_path / ".cache/images", {"a.png": b"", "b.png/c.png": b""})
    assert names_of(folder) == ["a.png", "b.png/c.png"]


def test_what_is_taken_and_what_is_not_is_told_by_folder_and_suffix(tmp_path):
    files = {f"{folder}/{i}.png": b"" for folder in "abcdefgh" for i in range(3)}
    files |= {"a/masks/0.png": b"", "x.PNG": b"", "x.heic": b"", "y.heic": b"", "z": b""}
    notes = notes_of(folder_of(tmp_path / "set", files | {"t.nii.gz": b""}))
    assert notes == (
        *(f"took 3 .png from set/{name}" for name in "abcde"),
        "took 11 more from 5 other folders",
        "left out: 2 .heic, 1 .nii.gz, 1 without suffix (not read)",
    )


def test_linked_folders_are_read_once_and_no_circle_is_gone_through(tmp_path):
    folder = folder_of(tmp_path / "in", {"a.png": b"", "sub/b.png": b""})
    folder_of(tmp_path / "elsewhere", {"c.png": b"", "deep/d.png": b""})
    (tmp_path / "elsewhere/back").symlink_to(folder)
    links = {"more": "../elsewhere", "part": "../elsewhere/deep", "again": "sub", "self": "."}
    for name, target in {**links, "up": "..", "z.png": "a.png", "gone": "nowhere"}.items():
        (folder / name).symlink_to(target)
    assert names_of(folder) == ["a.png", "more/c.png", "more/deep/d.png", "sub/b.png", "z.png"]
    notes = notes_of(folder)
    assert "followed links to folders: more; DVC does not see what changes" in notes[-3]
    assert notes[-2].endswith("read already or hold this one: again, part, self, up, more/back")
    assert notes[-1] == "links to files that are taken by another name, too: 1"


def test_links_that_lead_nowhere_are_told(tmp_path):
    folder = folder_of(tmp_path, {"a.png": png(random_images(1, 4, 4)[0])})
    (folder / "b.png").symlink_to("gone.png")
    (folder / "c.png").symlink_to("c.png")
    assert "links that lead nowhere: 2 (b.png, c.png); remove them" in notes_of(folder)[-1]
    reader = reader_of(folder, "folder", on_error="skip")
    assert len(np.concatenate(list(reader.blocks()))) == 1
    assert len(reader.refused) == 2


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("scan.dcm", "set data.source to dicom"),
        ("stack.npy", "set data.source to array"),
        ("volume.nii.gz", "set data.source to nifti"),
        ("all.h5", "set data.source to hdf5"),
        ("all.zip", "set data.source to zip"),
        ("all.tar.gz", "unpack it"),
        ("a.heic", "save them as PNG"),
    ],
)
def test_files_of_other_kinds_are_named_with_what_to_do(tmp_path, name, remedy):
    folder = folder_of(tmp_path / "in", {name: b"", "a.txt": b"", "b.txt": b""})
    for kind in ("folder", "parquet"):
        with pytest.raises(DataError, match=rf"holds no .*2 \.txt, 1 \..*{remedy}"):
            find_images(kind, folder, None)
        with pytest.raises(DataError, match=rf"{name} is a file \.\w+.*{remedy}"):
            find_images(kind, folder / name, None)


def test_a_folder_with_hidden_images_only_says_so(tmp_path):
    folder = folder_of(tmp_path, {".thumbs/a.png": b""})
    with pytest.raises(DataError, match=r"no images .*1 \.png hidden .*\(\.thumbs\)"):
        find_images("folder", folder, None)


def test_each_page_of_a_tiff_file_is_an_image(tmp_path):
    images = random_images(5, 4, 4)
    pages = [Image.fromarray(image) for image in images[:3]]
    stack = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    folder = folder_of(tmp_path, {"a.tif": stack, "b.png": png(images[3])})
    behind = "ImageJ=1.54f\nimages=5\n"
    (folder / "c.tif").write_bytes(tiff(text=behind, pixels=images.tobytes()))
    source = find_images("folder", folder, None)
    assert source.count == 9
    assert source.notes[-1] == "2 TIFF files hold 8 images"
    expected = np.concatenate([images[:4], images])[:, None]
    np.testing.assert_array_equal(read(folder, "folder"), expected)
    reader = reader_of(folder, "folder", max_images=2)
    np.testing.assert_array_equal(np.concatenate(list(reader.blocks())), expected[:2])
    (folder / "a.tif").write_bytes(stack[:8] + stack[8:].replace(images[1].tobytes(), b""))
    with pytest.raises(DataError, match=r"a\.tif"):
        read(folder, "folder")


# Broken and odd images


def truncated(tmp_path, count=4):
    files = {f"{i}.png": png(image) for i, image in enumerate(random_images(count, 16, 16))}
    files["2.png"] = files["2.png"][:100]
    return folder_of(tmp_path, files)


def test_a_truncated_image_among_good_ones_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"2\.png cannot be decoded .*data\.on_error to skip"):
        read(truncated(tmp_path), "folder")


def test_a_truncated_image_is_skipped_and_listed_on_request(tmp_path):
    reader = reader_of(truncated(tmp_path), "folder", on_error="skip")
    images = np.concatenate(list(reader.blocks()))
    np.testing.assert_array_equal(images, random_images(4, 16, 16)[[0, 1, 3], None])
    assert [Path(refused.name).name for refused in reader.refused] == ["2.png"]
    assert "cannot be decoded" in reader.refused[0].reason


def test_nothing_usable_is_refused_even_when_skipping(tmp_path):
    folder = folder_of(tmp_path, {"a.png": b"junk", "b.png": b""})
    with pytest.raises(DataError, match=r"none of 2 images is usable; the first: .*a\.png is no"):
        read(folder, "folder", on_error="skip")


ODD = pytest.mark.parametrize(
    ("odd", "found"), [((12, 16), "16 x 12 grey"), ((16, 16, 3), "16 x 16 RGB")]
)


def mixed(tmp_path, odd):
    """Images of two kinds, an odd one among them the first."""
    images = [*random_images(1, *odd), *random_images(4, 16, 16), *random_images(1, *odd)]
    return folder_of(tmp_path, {f"{i}.png": png(image) for i, image in enumerate(images)})


@ODD
def test_mixed_images_are_refused_with_counts_by_kind(tmp_path, odd, found):
    message = rf"of 6, 4 are 16 x 16 grey, 2 are {found} \(the first: .*0\.png\); bring all"
    with pytest.raises(DataError, match=message):
        read(mixed(tmp_path, odd), "folder")


@ODD
def test_of_mixed_images_the_most_common_kind_is_kept_if_others_are_skipped(tmp_path, odd, found):
    reader = reader_of(mixed(tmp_path, odd), "folder", on_error="skip")
    images = np.concatenate(list(reader.blocks()))
    np.testing.assert_array_equal(images, random_images(4, 16, 16)[:, None])
    assert [Path(refused.name).name for refused in reader.refused] == ["0.png", "5.png"]
    assert reader.refused[0].reason == f"is {found}, and 16 x 16 grey are kept"
    (note,) = reader.notes
    assert note.startswith("kept images of 16 x 16 grey, the most common kind (of up to ")
    assert note.endswith(f"skipped 2 of {found}")


def test_an_odd_image_behind_those_that_are_counted_is_named_too(tmp_path, monkeypatch):
    monkeypatch.setattr(dsd.sources.reader, "COUNTED", 4)
    message = r"of 5, 4 are 16 x 16 grey, 1 are 8 x 8 grey \(the first: .*9\.png\)"
    folder = mixed(tmp_path / "in", (8, 8))
    (folder / "0.png").rename(folder / "9.png")
    (folder / "5.png").unlink()
    with pytest.raises(DataError, match=message):
        read(folder, "folder")


def test_several_broken_images_are_counted(tmp_path):
    files = {f"{i}.png": png(image) for i, image in enumerate(random_images(4, 4, 4))}
    folder = folder_of(tmp_path, files | {"1.png": b"", "3.png": b"junk"})
    with pytest.raises(DataError, match=r"1\.png is no .*; 1 more of 4 cannot be used; repair"):
        read(folder, "folder")
    folder_of(tmp_path, dict.fromkeys(files, b""))
    with pytest.raises(DataError, match=r"none of 4 images is usable; the first: .*0\.png is no"):
        read(folder, "folder")


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def raw_png(width, height, depth, colour, rows):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


HALF_SEEN = Image.new("RGBA", (4, 4), (9, 9, 9, 128))
REFUSED = {
    "16-bit grey": (
        saved(Image.new("I;16", (4, 4)), "PNG"),
        "more than 8 bits a channel, which need one linear map",
    ),
    "16-bit RGB": (raw_png(2, 1, 16, 2, b"\0" + bytes(12)), "more than 8 bits"),
    "float": (saved(Image.new("F", (4, 4)), "TIFF"), "floating-point numbers of 32 bits"),
    "CMYK": (saved(Image.new("CMYK", (4, 4)), "JPEG"), "colour mode CMYK"),
    "transparent": (saved(HALF_SEEN, "PNG"), "partly transparent"),
    "bomb": (raw_png(30_000, 30_000, 8, 0, b""), r"900000000|bomb"),
    "large": (raw_png(9_000, 9_000, 8, 0, b""), "9000 x 9000 pixels, more than"),
    "GIF": (saved(Image.new("L", (4, 4)), "GIF"), "is no PNG"),
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


# Noise that is there already


def kept_as():
    """Files of one noisy picture each, whose names say how it is encoded."""
    grey = Image.fromarray(random_images(1, 32, 32)[0])
    rgb = Image.fromarray(random_images(1, 32, 32, 3)[0])
    return {
        "PNG": saved(grey, "PNG"),
        "palette PNG": saved(rgb.quantize(64), "PNG"),
        "1-bit PNG": saved(grey.convert("1"), "PNG"),
        "4-bit PNG": raw_png(32, 32, 4, 0, b"".join(b"\0" + bytes(16) for _ in range(32))),
        "JPEG": saved(grey, "JPEG"),
        "lossy WebP": saved(rgb, "WEBP"),
        "lossless WebP": saved(rgb, "WEBP", lossless=True),
        "TIFF": saved(grey, "TIFF", compression="tiff_lzw"),
        "JPEG in TIFF": saved(grey, "TIFF", compression="jpeg"),
        "BMP": saved(rgb, "BMP"),
    }


@pytest.mark.parametrize("name", kept_as())
def test_how_pixels_were_kept_is_known_and_noise_that_was_rounded_is_refused(tmp_path, name):
    folder = folder_of(tmp_path, {"a.png": kept_as()[name]})
    reader = reader_of(folder, "folder", on_error="skip")
    assert len(np.concatenate(list(reader.blocks()))) == 1
    assert [encoding.name for encoding in reader.encodings] == [name]
    assert reader.notes == ()
    noisy = reader_of(folder, "folder", noisy=True)
    if "palette" in name or "-bit" in name:
        with pytest.raises(DataError, match=rf"a\.png is {name}, to whose few levels its noise"):
            list(noisy.blocks())
        return
    list(noisy.blocks())
    lossy = "JPEG" in name or "lossy" in name
    assert [note.startswith(f"1 of 1 noisy images are {name}:") for note in noisy.notes] == (
        [True] if lossy else []
    )


def test_a_palette_of_greys_is_grey_and_a_reduced_one_is_none(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    ramp = Image.fromarray(pixels).convert("P")
    for kind in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode(saved(ramp, kind)), pixels[None], err_msg=kind)
    folder = folder_of(tmp_path, {"a.png": saved(ramp, "PNG")})
    assert len(next(reader_of(folder, "folder", noisy=True).blocks())) == 1
    few = Image.fromarray(pixels).quantize(40)
    assert decode(saved(few, "PNG")).shape == (3, 16, 16)


def test_a_fourth_channel_of_a_bmp_is_not_lost_in_silence():
    header = saved(Image.new("RGB", (2, 1)), "BMP")[:54]
    header = bytearray(header)
    header[28] = 32
    grey = bytes([1, 2, 3, 0, 4, 5, 6, 0])
    np.testing.assert_array_equal(decode(bytes(header) + grey), [[[3, 6]], [[2, 5]], [[1, 4]]])
    with pytest.raises(ValueError, match="a fourth channel that varies"):
        decode(bytes(header) + grey[:-1] + b"\7")


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
    with pytest.raises(DataError, match=r"9 x 5 grey, not square as data.resolution needs: crop"):
        read(path, resolution=4)


def test_a_resolution_above_the_padded_size_is_refused(tmp_path):
    path = parquet_of(tmp_path, random_images(2, 8, 8))
    assert read(path, pad=1, resolution=10).shape == (2, 1, 10, 10)
    with pytest.raises(DataError, match=r"data\.resolution is 11.*only 10: lower it"):
        read(path, pad=1, resolution=11)


# Streaming, order, identity


def test_noisy_images_are_averaged_over_whole_pixels_only(tmp_path):
    path = parquet_of(tmp_path, random_images(2, 12, 12))
    with pytest.raises(DataError, match=r"8, no divisor of the 12 .* one of 12, 6, 4, or to null"):
        read(path, resolution=8, noisy=True)
    factors = {4: 3, 6: 2, 12: None, None: None}
    for resolution, factor in factors.items():
        reader = reader_of(path, resolution=resolution, noisy=True)
        list(reader.blocks())
        assert reader.averaged == factor
    clean = reader_of(path, resolution=4)
    list(clean.blocks())
    assert clean.averaged is None
    with pytest.raises(DataError, match=r"have only 12: lower it$"):
        read(path, resolution=13, noisy=True)


def test_blocks_bound_the_memory_and_change_nothing(tmp_path, monkeypatch):
    path = parquet_of(tmp_path, random_images(10, 4, 4))
    whole = read(path)
    monkeypatch.setattr(dsd.sources.reader, "BLOCK_BYTES", 3 * 16)
    blocks = list(reader_of(path).blocks())
    assert [len(block) for block in blocks] == [3, 3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_max_images_counts_usable_ones(tmp_path):
    reader = reader_of(truncated(tmp_path), "folder", on_error="skip", max_images=3)
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
