"""Decoding one image file."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import read_image, resize_to
from pipeline.data.read_images import read_batch
from tests.support.image_files import COLOR, GRAY, save_image


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
def test_read_image_has_the_channels_that_its_pixels_need(tmp_path, image, mode):
    assert read_image(save_image(tmp_path, image)).mode == mode


def test_read_image_scales_sixteen_bits_to_eight(tmp_path):
    wide = GRAY.astype(np.uint16) * 257 + 100
    np.testing.assert_array_equal(np.asarray(read_image(save_image(tmp_path, Image.fromarray(wide)))), GRAY)


def test_read_image_of_a_palette_with_a_transparent_color_is_rgba(tmp_path):
    palette = Image.fromarray(GRAY // 20).convert("P")
    assert read_image(save_image(tmp_path, palette, transparency=3)).mode == "RGBA"


def test_read_image_of_inverted_cmyk_keeps_its_colors(tmp_path):
    red = Image.new("RGB", (8, 8), (255, 0, 0)).convert("CMYK")
    pixels = np.asarray(read_image(save_image(tmp_path, red, "a.jpg", quality=100))).reshape(-1, 3).mean(0)
    assert pixels[0] > 245 and pixels[1] < 10 and pixels[2] < 10


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_read_image_applies_the_exif_orientation(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image = Image.fromarray(np.kron(GRAY, np.ones((8, 8), np.uint8)))  # 24 x 32
    assert read_image(save_image(tmp_path, image, name, exif=exif)).size == (24, 32)


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_read_image_of_an_animation_returns_the_first_frame(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    file = save_image(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], lossless=True)
    assert np.asarray(read_image(file))[0, 0].tolist() == [255, 0, 0]


def test_read_image_goes_by_content_and_accepts_four_formats_only(tmp_path):
    png_in_disguise = save_image(tmp_path, Image.fromarray(COLOR), "a.jpg", format="PNG")
    np.testing.assert_array_equal(np.asarray(read_image(png_in_disguise)), COLOR)
    gif = save_image(tmp_path, Image.fromarray(GRAY), "b.jpg", format="GIF")
    assert read_batch([gif], (3, 4, 1), False).errors == [(gif, "not a JPEG, PNG, BMP or WebP image")]


def test_resize_to_a_smaller_shape_antialiases():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))  # columns
    small = resize_to(Image.fromarray(stripes), (4, 8, 1))
    assert small.shape == (4, 8, 1) and abs(small.astype(int) - 127).max() <= 5  # a pixel in eight would be all 0
