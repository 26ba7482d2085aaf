"""Decoding one image file."""

import struct
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.data.decode import (
    describe_12_bits,
    has_16_bits,
    highest_value,
    load_pixels,
    open_image,
    read_image,
    resize_to,
)
from pipeline.data.read_images import read_batch
from tests.support.image_files import COLOR, GRAY, random_image, save_image


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


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif", "a.tif"])
def test_read_image_of_several_pictures_returns_the_first(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if name == "a.webp" else {}
    file = save_image(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
    assert np.asarray(read_image(file))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PPM", "BMP", "WEBP", "PNG"])
def test_read_image_goes_by_content(tmp_path, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    file = save_image(tmp_path, Image.fromarray(np.kron(COLOR // 128 * 255, np.ones((4, 4, 1), np.uint8))), "a.jpg",
                      format=kind, **options)  # fmt: skip
    np.testing.assert_array_equal(np.asarray(read_image(file))[::4, ::4], COLOR // 128 * 255)


@pytest.mark.parametrize(("kind", "name"), [("TGA", "a.png"), ("PCX", "a.jpg"), ("EPS", "a.jpg"), ("AVIF", "a.jpg")])
def test_read_image_opens_no_other_format(tmp_path, kind, name):
    file = save_image(tmp_path, Image.fromarray(COLOR), name, format=kind)
    reason = "not a JPEG, PNG, TIFF, GIF, WebP, BMP or PNM image"
    assert read_batch([file], (3, 4, 3), None).errors == [(file, reason)]


@pytest.mark.parametrize("content", [b"P3 1 1 255 1 2 3", b"P1 1 1 0", b"P5 1 1 100\n\x09"])
def test_read_image_refuses_pnm_that_would_be_decoded_in_python(tmp_path, content):
    (tmp_path / "a.ppm").write_bytes(content)
    with pytest.raises(ValueError, match="PNM files must be binary"):
        read_image(str(tmp_path / "a.ppm"))


def test_describe_12_bits_speaks_of_nearly_black_pixels_alone():
    highest_of_12_bits = round(255 * 4095 / 65_535)
    assert "as if of 12 bits" in describe_12_bits(highest_of_12_bits)
    assert not any(map(describe_12_bits, (None, 0, highest_of_12_bits + 1)))


def test_read_image_of_twelve_bits_in_a_tiff_scales_them(tmp_path):
    packed = bytes([0xFF, 0xF0, 0x00, 0x80, 0x0F, 0xFF])  # 4095, 0, 2048, 4095
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 134, 277: 1, 278: 1, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in tags.items())
    header = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(header.ljust(134, b"\0") + packed)
    assert np.asarray(read_image(str(tmp_path / "a.tif"))).tolist() == [[255, 0, 128, 255]]


def test_read_image_inverts_a_tiff_of_sixteen_bits_whose_white_is_zero(tmp_path):
    wide = Image.fromarray(GRAY.astype(np.uint16) * 257)
    file = save_image(tmp_path, wide, "a.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(np.asarray(read_image(file)), 255 - GRAY)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (GRAY.astype(np.float32) / 255, "its pixels are floating-point numbers"),
        (GRAY.astype(np.int32) - 1, "its pixels must be from 0 to 65,535, got -1 to 219"),
        (GRAY.astype(np.int32) * 1000, "its pixels must be from 0 to 65,535, got 0 to 220,000"),
    ],
)
def test_read_image_refuses_pixels_that_it_would_have_to_guess_at(tmp_path, pixels, reason):
    with pytest.raises(ValueError, match=reason):
        read_image(save_image(tmp_path, Image.fromarray(pixels), "a.tif"))


@pytest.mark.parametrize(("size", "accepted"), [((65_535, 1), True), ((65_536, 1), False), ((1, 65_536), False)])
def test_open_image_limits_each_side_before_decoding(tmp_path, size, accepted):
    file = save_image(tmp_path, Image.new("1", size))
    outcome = nullcontext() if accepted else pytest.raises(ValueError, match="each side must have at most 65,535")
    with outcome, open_image(file) as image:
        assert image.size == size


@pytest.mark.parametrize(
    ("image", "name", "deep"),
    [
        (Image.fromarray(GRAY), "a.png", False),
        (Image.fromarray(GRAY.astype(np.uint16)), "a.png", True),
        (Image.fromarray(GRAY.astype(np.uint16)), "a.tif", True),
        (Image.fromarray(COLOR), "a.tif", False),
        (Image.fromarray(COLOR), "a.webp", False),
    ],
)
def test_has_16_bits_is_known_before_decoding(tmp_path, image, name, deep):
    with open_image(save_image(tmp_path, image, name)) as opened:
        assert has_16_bits(opened) is deep


def test_highest_value_leaves_transparency_aside():
    dark = np.minimum(COLOR, 200)
    assert highest_value(Image.fromarray(dark)) == dark.max()
    assert highest_value(Image.fromarray(np.dstack([dark, np.full((3, 4), 255, np.uint8)]))) == dark.max()
    assert highest_value(Image.fromarray(GRAY)) == GRAY.max()


def test_has_16_bits_of_colour(tmp_path):
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in COLOR.reshape(3, -1))
    header = struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0)  # 16 bits, RGB
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with open_image(str(tmp_path / "a.png")) as opened:
        assert has_16_bits(opened)
        assert highest_value(load_pixels(opened)) == 0  # values up to 255 of 65,535


def test_resize_to_a_smaller_shape_antialiases():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))  # columns
    small = resize_to(Image.fromarray(stripes), (4, 8, 1), "stretch")
    assert small.shape == (4, 8, 1) and abs(small.astype(int) - 127).max() <= 5  # a pixel in eight would be all 0


WIDE = random_image(0, size=(37, 90))
RESIZED = ("stretch", "crop", "pad")


@pytest.mark.parametrize("resize", RESIZED)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_resize_to_the_size_of_the_image_leaves_its_pixels(resize, mode):
    image = WIDE.convert(mode)
    pixels = np.asarray(image)
    np.testing.assert_array_equal(resize_to(image, (37, 90, len(mode)), resize), pixels.reshape(37, 90, -1))


def test_resize_to_by_stretching_equals_pillows_antialiased_filter():
    expected = np.asarray(WIDE.resize((20, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_to(WIDE, (16, 20, 3), "stretch"), expected)


@pytest.mark.parametrize("shape", [(16, 16, 3), (8, 20, 3), (60, 60, 3), (20, 8, 3)], ids=str)
def test_resize_to_by_cropping_equals_pillows_filter_on_the_largest_part_in_the_center(shape):
    height, width, _ = shape
    scale = max(height / 37, width / 90)
    left, top = (90 - width / scale) / 2, (37 - height / scale) / 2
    expected = WIDE.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, 90 - left, 37 - top))
    difference = resize_to(WIDE, shape, "crop").astype(int) - np.asarray(expected)
    assert abs(difference).max() <= 1  # the boxes differ in their last digits


@pytest.mark.parametrize("shape", [(16, 16, 3), (60, 60, 3), (20, 8, 3), (4, 20, 3)], ids=str)
def test_resize_to_by_padding_equals_pillows_filter_with_black_on_both_sides(shape):
    expected = ImageOps.pad(WIDE, (shape[1], shape[0]), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_to(WIDE, shape, "pad"), expected)


def test_resize_to_by_padding_leaves_transparent_black_beside_an_image_with_alpha():
    padded = resize_to(Image.new("RGBA", (4, 2), (90, 80, 70, 51)), (8, 8, 4), "pad")
    assert padded[[0, 1, -2, -1]].tolist() == np.zeros((4, 8, 4)).tolist()
    np.testing.assert_array_equal(padded[2:6], np.broadcast_to([90, 80, 70, 51], (4, 8, 4)))


@pytest.mark.parametrize("resize", RESIZED)
@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1), (1, 1)], ids=str)
def test_resize_to_takes_images_of_any_shape(resize, size):
    resized = resize_to(Image.new("L", size, 200), (8, 12, 1), resize)
    assert resized.shape == (8, 12, 1) and resized.max() == 200
