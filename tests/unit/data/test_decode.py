"""Facts about how one image file becomes pixels."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import read_image, resize_to
from pipeline.data.read_images import read_batch
from tests.support.image_files import COLOR, GRAY, saved


def with_alpha(alpha):
    return Image.fromarray(np.dstack([COLOR, np.full((3, 4), alpha, np.uint8)]))


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (Image.fromarray(GRAY), "L"),
        (Image.fromarray(GRAY > 100), "L"),  # one bit
        (Image.fromarray(GRAY).convert("LA"), "L"),
        (Image.fromarray(GRAY.astype(np.uint16) * 257), "L"),  # 16 bits
        (Image.fromarray(COLOR), "RGB"),
        (Image.fromarray(COLOR).quantize(8), "RGB"),  # a palette
        (with_alpha(255), "RGB"),
        (with_alpha(254), "RGBA"),
    ],
)
def test_channels_are_those_that_the_pixels_need(tmp_path, image, mode):
    assert read_image(saved(tmp_path, image)).mode == mode


def test_sixteen_bits_are_scaled_to_eight_not_cut_off(tmp_path):
    wide = GRAY.astype(np.uint16) * 257 + 100
    np.testing.assert_array_equal(np.asarray(read_image(saved(tmp_path, Image.fromarray(wide)))), GRAY)


def test_palette_with_a_transparent_colour_is_see_through(tmp_path):
    palette = Image.fromarray(GRAY // 20).convert("P")
    assert read_image(saved(tmp_path, palette, transparency=3)).mode == "RGBA"


def test_inverted_cmyk_of_photo_tools_keeps_its_colours(tmp_path):
    red = Image.new("RGB", (8, 8), (255, 0, 0)).convert("CMYK")
    pixels = np.asarray(read_image(saved(tmp_path, red, "a.jpg", quality=100))).reshape(-1, 3).mean(0)
    assert pixels[0] > 245 and pixels[1] < 10 and pixels[2] < 10


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_image_stands_as_its_exif_orientation_says(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image = Image.fromarray(np.kron(GRAY, np.ones((8, 8), np.uint8)))  # 24 x 32
    assert read_image(saved(tmp_path, image, name, exif=exif)).size == (24, 32)


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_of_an_animation_the_first_frame_counts(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    file = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], lossless=True)
    assert np.asarray(read_image(file))[0, 0].tolist() == [255, 0, 0]


def test_content_counts_not_the_suffix_but_only_the_four_formats(tmp_path):
    png_in_disguise = saved(tmp_path, Image.fromarray(COLOR), "a.jpg", format="PNG")
    np.testing.assert_array_equal(np.asarray(read_image(png_in_disguise)), COLOR)
    gif = saved(tmp_path, Image.fromarray(GRAY), "b.jpg", format="GIF")
    assert read_batch([gif], (3, 4, 1), False).errors == [(gif, "not a JPEG, PNG, BMP or WebP image")]


def test_stretching_averages_over_all_pixels_where_it_shrinks():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))  # columns
    small = resize_to(Image.fromarray(stripes), (4, 8, 1))
    assert small.shape == (4, 8, 1) and abs(small.astype(int) - 127).max() <= 5  # a pixel in eight would be all 0
