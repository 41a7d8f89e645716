"""Between saved images and data units."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid, save_image

from dsd.utils.errors import NonFiniteError
from dsd.utils.images import enlarged, from_uint8, magnitude, save_grid, save_rows, to_uint8


def test_every_grey_level_survives_the_way_there_and_back():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)


def test_saving_clamps_and_rounds_to_the_nearest_level():
    x = torch.tensor([-3.0, -1.0, 0.0, 0.6 / 127.5 - 1, 0.4 / 127.5 - 1, 1.0, 3.0])
    assert to_uint8(x.reshape(1, 1, 1, 7)).flatten().tolist() == [0, 0, 128, 1, 0, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_pixels_that_are_not_finite_are_never_saved_as_if_they_were(value, dtype):
    x = torch.zeros(5, 1, 4, 4, dtype=dtype)
    x[3, 0, 2, 1] = value
    x[4, 0, 0, 0] = -value  # their sum may be anything
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), pytest.raises(NonFiniteError, match=r"2 of 5 images hold NaN .* number 3"):
            to_uint8(x)


def test_large_pixels_that_are_finite_are_clamped_though_their_sum_is_not():
    assert (to_uint8(torch.full((2, 1, 4, 4), 3e38)) == 255).all()
    assert (to_uint8(torch.full((2, 1, 40, 40), 6e4, dtype=torch.float16)) == 255).all()
    assert to_uint8(torch.zeros(0, 1, 4, 4)).shape == (0, 1, 4, 4)


def test_a_row_of_fewer_images_leaves_the_others_beside_their_labels(tmp_path):
    white = torch.full((5, 1, 16, 16), 255, dtype=torch.uint8)
    rows = {"few": white[:2] // 2, "many": white, "black": white[:3] * 0}
    for order in (["few", "many", "black"], ["many", "black", "few"]):
        save_rows({name: rows[name] for name in order}, tmp_path / "rows.png")
        with Image.open(tmp_path / "rows.png") as picture:
            assert picture.size == (150 + 5 * 66 + 2, 3 * 66 + 2)
            for row, name in enumerate(order):
                for column in range(5):
                    there = column < len(rows[name])
                    expected = int(rows[name][0, 0, 0, 0]) if there else 255
                    found = picture.getpixel((150 + 34 + column * 66, 34 + row * 66))
                    assert found == (expected,) * 3


def numbers(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "columns"), [(1, 4), (3, 4), (8, 4), (10, 3)])
def test_a_grid_has_the_pixels_of_torchvisions(tmp_path, channels, count, columns):
    pixels = numbers(count, channels, 6, 6)
    save_grid(pixels, tmp_path / "ours.png", columns=columns)
    grid = make_grid(pixels.float() / 255, nrow=columns, padding=2, pad_value=0.5)
    save_image(grid, tmp_path / "theirs.png")
    with Image.open(tmp_path / "ours.png") as ours, Image.open(tmp_path / "theirs.png") as theirs:
        assert ours.mode == theirs.mode == "RGB"
        assert ours.size == theirs.size
        assert ours.tobytes() == theirs.tobytes()


def test_rows_have_the_pixels_of_torchvisions_grid(tmp_path):
    rows = {"one": numbers(4, 3, 32, 32), "two": numbers(4, 3, 32, 32).flip(0)}
    save_rows(rows, tmp_path / "rows.png")
    large = enlarged(torch.cat([*rows.values()]), 2).float() / 255
    theirs = to_pil_image(make_grid(large, nrow=4, padding=2, pad_value=1.0))
    with Image.open(tmp_path / "rows.png") as picture:
        right = picture.crop((150, 0, *picture.size))
        assert right.tobytes() == theirs.tobytes()


def test_the_brightness_of_complex_images_does_not_depend_on_their_phase():
    phase = torch.linspace(0, 6, 50)
    x = 0.6 * torch.stack([phase.cos(), phase.sin()])[None, :, None]
    assert ((magnitude(to_uint8(x)) - 0.6 * 255).abs() < 1.5).all()
    assert (magnitude(to_uint8(2 * x)) == 255).all()
    assert (magnitude(to_uint8(0 * x)) < 1.5).all()


def test_pictures_show_smaller_and_complex_images_as_large_as_the_others(tmp_path):
    rows = {"clean": torch.zeros(2, 1, 16, 16, dtype=torch.uint8)}
    rows["observed"] = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    save_rows(rows, tmp_path / "rows.png")
    with Image.open(tmp_path / "rows.png") as picture:
        assert picture.size == (150 + 2 * 66 + 2, 2 * 66 + 2)
        assert picture.getpixel((200, 100)) == (255, 255, 255)
    one = to_uint8(torch.tensor([0.6, -0.8]).reshape(1, 2, 1, 1))
    save_grid(one.expand(2, -1, -1, -1), tmp_path / "grid.png", columns=2, is_complex=True)
    with Image.open(tmp_path / "grid.png") as picture:
        assert min(picture.getpixel((2, 2))) > 250


def test_two_dyes_are_green_and_magenta_and_bands_stand_side_by_side(tmp_path):
    bands = numbers(1, 5, 4, 4)
    save_grid(bands, tmp_path / "bands.png", columns=1)
    side_by_side = torch.cat([*bands[0]], dim=1)[..., None].expand(-1, -1, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "bands.png")), side_by_side)
    save_grid(bands[:, :2], tmp_path / "dyes.png", columns=1)
    green, magenta = bands[0, 0], bands[0, 1]
    expected = torch.stack([magenta, green, magenta], dim=-1)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "dyes.png")), expected)
    save_rows({"bands": bands, "smaller": bands[..., :2, :2]}, tmp_path / "rows.png")
    with Image.open(tmp_path / "rows.png") as picture:
        assert picture.size == (150 + 5 * 64 + 4, 2 * 66 + 2)
