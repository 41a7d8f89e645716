"""TIFF files: all that they say they hold is read, or the file is refused and why."""

import io
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stage_helpers import random_images, tiff

from dsd.sources.formats.pictures import open_file
from dsd.sources.formats.tiff import MAX_FRAMES, read_pages

STACK = random_images(5, 6, 4)
COLOURS = random_images(5, 6, 4, 3)
IMAGEJ = "ImageJ=1.54f\nimages=5\nframes=5\n"


def stack(pixels=STACK, **options):
    """Frames one behind the other after one directory."""
    options = {"samples": 1 if pixels.ndim == 3 else 3, "text": IMAGEJ, **options}
    return tiff(sides=(4, 6), pixels=pixels.tobytes(), **options)


def frames(content):
    file = open_file(content)
    return np.stack([file.read(number)[0] for number in range(file.count)])


def paged(pictures, **options):
    target = io.BytesIO()
    first, *others = map(Image.fromarray, pictures)
    first.save(target, "TIFF", save_all=True, append_images=others, **options)
    return target.getvalue()


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_all_pages_are_read_in_order(compression):
    np.testing.assert_array_equal(frames(paged(STACK, compression=compression)), STACK[:, None])
    colours = frames(paged(COLOURS, compression=compression))
    np.testing.assert_array_equal(colours, COLOURS.transpose(0, 3, 1, 2))


# Pillow reads no BigTIFF of the other order of bytes.
@pytest.mark.parametrize(("order", "large"), [("<", False), (">", False), ("<", True)])
@pytest.mark.parametrize(
    "text",
    [
        IMAGEJ,
        '{"shape": [5, 6, 4], "truncated": true}',
        '{"shape": [5, 6, 4], "axes": "TYX"}',
        "shape=(5, 6, 4)",
    ],
    ids=["ImageJ", "truncated", "shaped", "old"],
)
def test_frames_behind_one_directory_are_read(text, order, large):
    content = stack(text=text, order=order, large=large)
    np.testing.assert_array_equal(frames(content), STACK[:, None])


def test_colour_frames_and_inverted_ones_are_read_as_they_are_meant():
    content = stack(COLOURS, text=IMAGEJ)
    np.testing.assert_array_equal(frames(content), COLOURS.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(frames(stack(photometric=0)), 255 - STACK[:, None])


def test_frames_in_several_strips_are_read_if_these_follow_each_other():
    start = len(stack()) - STACK.size
    strips = {278: [2], 279: [8, 8, 8]}
    size = len(stack(more={**strips, 273: [0, 0, 0]})) - STACK.size
    assert size > start
    content = stack(more={**strips, 273: [size, size + 8, size + 16]})
    np.testing.assert_array_equal(frames(content), STACK[:, None])
    with pytest.raises(ValueError, match="holds 5 frames, but has one page"):
        read_pages(stack(more={**strips, 273: [size, size + 16, size + 8]}))


REFUSED = {
    "fewer bytes than promised": (stack()[:-30], "holds 5 frames, but its bytes are those of 3"),
    "fewer pages than promised": (
        paged(STACK[:3], description=IMAGEJ), "says that it holds 5 frames, but has 3"),
    "bytes of which nothing is said": (
        stack(text=""), "has 96 bytes that belong to none of its 1 pages"),
    "bytes behind pages": (
        paged(STACK) + bytes(24), r"has \d\d bytes that belong to none of its 5"),
    "one strip for each frame": (
        stack(more={273: [8] * 5, 279: [24] * 5}), "has 5 strips or tiles for a page of which"),
    "compressed frames": (stack(more={259: [5]}), "holds 5 frames, but has one page"),
    "channels of ImageJ": (
        stack(text=f"{IMAGEJ}channels=2\n"), "holds 2 channels as separate pages"),
    "channels of OME": (
        paged(STACK[:2], description='<OME><Pixels SizeC="2" SizeT="1"/></OME>'), "2 channels"),
    "channels of tifffile": (
        paged(STACK, description='{"shape": [5, 6, 4], "axes": "CYX"}'), "holds 5 channels"),
    "five channels": (tiff(samples=5, photometric=1), "has 5 channels, declared as grey"),
    "RGB and one more": (tiff(samples=4, extra=[0]), "has 4 channels, declared as RGB"),
    "RGB and two more": (tiff(samples=5, extra=[0, 0]), "has 5 channels, declared as RGB"),
    "RGB, alpha and one more": (tiff(samples=5, extra=[2, 0]), "has 5 channels, declared as RGB"),
    "grey and one more": (tiff(samples=2, extra=[0]), "has 2 channels, declared as grey"),
    "planes, one more": (tiff(samples=4, planes=True, extra=[0]), "has 4 channels"),
    "grey and alpha that varies": (tiff(samples=2, extra=[2]), "its alpha channel is not 255"),
    "RGB and alpha that varies": (tiff(samples=4, extra=[2]), "its alpha channel is not 255"),
    "sub-directories": (tiff(more={330: [8]}), "further pictures inside a page"),
    "a thumbnail": (tiff(more={254: [1]}), "a reduced copy or a mask"),
    "a volume": (tiff(more={32997: [4]}), "a volume of 4 planes"),
    "signed": (tiff(sample_format=2), "signed whole numbers of 8 bits, which need one linear map"),
    "float": (tiff(32, sample_format=3), "floating-point numbers of 32 bits, which need one"),
    "complex": (tiff(64, sample_format=6), "complex or unknown numbers of 64 bits"),
    "16 bits": (tiff(16), "16 bits a channel, which need one linear map for all"),
    "no rows": (tiff(sides=(4, 0)), "0 pixels or 0 channels"),
    "no channels": (tiff(more={277: [0], 262: [6]}), "0 pixels or 0 channels"),
    "an unknown compression": (
        tiff(more={259: [34712]}), "of a compression or colours that are not read"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_or_changed_is_refused_and_said(name):
    content, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason):
        frames(content)


def test_a_description_that_promises_nothing_changes_nothing():
    for text in ("ImageJ=1.54f\nimages=0\n", '{"shape": [0, 6, 4]}', "shape=(1 2)", "ImageJ="):
        assert [page.frames for page in read_pages(tiff(text=text))] == [1], text


def test_what_belongs_to_a_picture_raises_no_alarm():
    exif = Image.Exif()
    exif[0x010E], exif[0x8298] = "a description " * 40, "an owner " * 40
    end = len(tiff(more={34665: [0]}))
    camera = struct.pack("<HHHIII", 1, 37510, 7, 2000, end + 18, 0) + bytes(2000)
    assert len(read_pages(tiff(more={34665: [end]}, tail=camera))) == 1
    for mode, options in [("L", {"exif": exif}), ("RGB", {"icc_profile": bytes(3000)}), ("P", {})]:
        target = io.BytesIO()
        Image.new(mode, (4, 4)).save(target, "TIFF", **options)
        assert [page.frames for page in read_pages(target.getvalue())] == [1], mode
    opaque = np.full((4, 4, 4), 255, np.uint8)
    assert frames(tiff(samples=4, extra=[2], pixels=opaque.tobytes())).shape == (1, 3, 4, 4)


def test_small_files_that_promise_much_are_refused_at_once():
    start = time.process_time()
    for count in (10**6, 10**9):
        with pytest.raises(ValueError, match="holds"):
            read_pages(stack(text=f"ImageJ=1\nimages={count}\n"))
    with pytest.raises(ValueError, match=f"more than {MAX_FRAMES}"):
        read_pages(tiff(text="ImageJ=1\nimages=70000\n", sides=(1, 1), pixels=bytes(70_000)))
    circle = bytearray(tiff())
    place = 10 + 12 * circle[8]
    circle[place : place + 4] = b"\x08\0\0\0"
    lost = bytearray(tiff())
    lost[10 + 12 * lost[8] : 14 + 12 * lost[8]] = struct.pack("<I", 10**6)
    with pytest.raises(ValueError, match="a TIFF directory points outside of the file"):
        read_pages(bytes(lost))
    with pytest.raises(ValueError, match="the same page twice"):
        read_pages(bytes(circle))
    chain = bytearray(b"II*\0\x08\0\0\0")
    for place in range(8, 8 + 6 * 10_000, 6):
        chain += struct.pack("<HI", 0, place + 6)
    crowded = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**40) + bytes(99)
    for content in (bytes(chain), crowded):
        with pytest.raises(ValueError, match="cannot be decoded"):
            read_pages(content)
    wide = tiff(more={256: [2**15], 257: [2**12], 278: [2**12], 259: [8]})
    with pytest.raises(ValueError, match="has 32768 x 4096 pixels, more than"):
        frames(wide)
    assert time.process_time() - start < 4


SEEDS = [stack(), stack(COLOURS), paged(STACK), tiff(large=True)]


@settings(max_examples=400)
@given(data=st.data())
def test_damaged_files_give_pictures_or_a_refusal(data):
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    try:
        found = frames(bytes(content))
    except ValueError:
        return
    assert found.dtype == np.uint8
