"""Reading many image files."""

import io
import os
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from pipeline.data.read_images import read_batch, read_images
from pipeline.runtime.errors import UsageError
from tests.support.image_files import COLOR, GRAY, save_image


def allocate(shape):
    return np.empty(shape, np.uint8)


def make_files(folder, count, shape=(4, 6, 3)):
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image.squeeze()).save(folder / f"{number:04}.png")
    return [str(file) for file in sorted(folder.glob("*.png"))], pixels


def test_read_images_in_workers_equals_reading_in_this_process(tmp_path, monkeypatch):
    files, pixels = make_files(tmp_path, 60)
    in_process = read_images(files, 0, None, allocate, resize="stretch")
    monkeypatch.setattr("pipeline.data.read_images.WORKER_FILES", 20)
    monkeypatch.setattr("pipeline.data.read_images.BATCH_FILES", 7)
    in_workers = read_images(files, 0, None, allocate, resize="stretch")
    np.testing.assert_array_equal(in_workers.images, pixels)
    np.testing.assert_array_equal(in_workers.images, in_process.images)
    assert in_workers.digests.tolist() == in_process.digests.tolist() and len(set(in_workers.digests.tolist())) == 60


def test_read_images_gives_all_images_the_most_channels_that_one_needs(tmp_path):
    files, gray = make_files(tmp_path, 40, (4, 6, 1))
    assert read_images(files, 0, None, allocate, resize="stretch").images.shape == (40, 4, 6, 1)
    Image.new("RGB", (6, 4), (1, 2, 3)).save(files[1])  # not among the files looked at first
    rgb = read_images(files, 0, None, allocate, resize="stretch").images
    np.testing.assert_array_equal(rgb[0], np.repeat(gray[0], 3, axis=2))
    assert rgb[1, 0, 0].tolist() == [1, 2, 3]
    Image.new("RGBA", (6, 4), (1, 2, 3, 4)).save(files[1])
    assert read_images(files, 0, None, allocate, resize="stretch").images[:2, 0, 0, 3].tolist() == [255, 4]


def test_read_images_of_different_sizes_needs_image_size(tmp_path):
    files, pixels = make_files(tmp_path, 40)
    Image.new("RGB", (9, 7)).save(files[33])
    with pytest.raises(
        UsageError, match=r"some are 4 x 6 pixels \(height x width\), .*0033.png is 7 x 9; give image_size"
    ):
        read_images(files, 0, None, allocate, resize="stretch")
    np.testing.assert_array_equal(read_images(files, 0, (4, 6), allocate, resize="stretch").images[0], pixels[0])
    assert read_images(files, 0, (3, 5), allocate, resize="stretch").images.shape == (40, 3, 5, 3)


@pytest.mark.parametrize(
    ("sides", "proposal"),
    [
        ([9, 10, 12], "image_size=32 patch_size=2"),
        ([100, 120, 500], "image_size=96 patch_size=6"),
        ([480, 640, 640], "image_size=224 patch_size=14"),
    ],
)
def test_read_images_of_different_sizes_proposes_what_suits_most(tmp_path, sides, proposal):
    for number, side in enumerate(sides):
        Image.new("L", (2 * side, side)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"damaged")
    files = [str(file) for file in sorted(tmp_path.iterdir())]
    with pytest.raises(UsageError, match=f"for these {proposal}, for example"):
        read_images(files, 0, None, allocate, resize="stretch")


def test_read_images_lists_unreadable_files_on_one_line(tmp_path):
    files, _ = make_files(tmp_path, 20)
    odd_name = str(tmp_path / 'it\'s\n\udce9 "x".png')
    os.rename(files[0], odd_name)
    for file in [odd_name, *files[1:8]]:
        with open(file, "r+b") as opened:
            opened.truncate(50)
    with pytest.raises(UsageError) as error:
        read_images([odd_name, *files[1:]], 0, None, allocate, resize="stretch")
    message = str(error.value)
    assert message.isprintable() and "8 of 20 cannot be read" in message and "and 3 more" in message
    assert rf"{tmp_path}/it's\n\udce9" in message and files[4] in message and files[5] not in message


@pytest.mark.parametrize(("factors", "refused"), [((16, 16), True), ((16, 257), False), ((0, 0), False)])
def test_read_images_of_sixteen_bits_that_use_twelve_are_refused(tmp_path, factors, refused):
    files = [
        save_image(tmp_path, Image.fromarray(GRAY.astype(np.uint16) * factor), f"{number}.png")
        for number, factor in enumerate(factors)
    ]
    with pytest.raises(UsageError, match="16 bits must use them: .* multiply") if refused else nullcontext():
        assert read_images(files, 0, None, allocate, resize="stretch").images.shape == (2, 3, 4, 1)


def read_or_die(*arguments):
    """Read in this process, end at once in a worker."""
    if os.environ["ASKING"] != str(os.getpid()):
        os._exit(9)
    return read_batch(*arguments)


def test_read_images_after_a_worker_died_raises_with_its_files(tmp_path, monkeypatch):
    files, _ = make_files(tmp_path, 4)
    monkeypatch.setattr("pipeline.data.read_images.WORKER_FILES", 2)
    monkeypatch.setattr("pipeline.data.read_images.read_batch", read_or_die)
    monkeypatch.setenv("ASKING", str(os.getpid()))
    with pytest.raises(UsageError, match=r"a worker process ended early .* on one of .*0000.png to .*0003.png"):
        read_images(files, 0, None, allocate, resize="stretch")


def test_read_batch_returns_errors_by_file_and_reads_the_others(tmp_path):
    good = save_image(tmp_path, Image.fromarray(COLOR), "good.png")
    whole = io.BytesIO()
    Image.fromarray(np.kron(COLOR, np.ones((30, 30, 1), np.uint8))).save(whole, "JPEG")
    files = {"cut.jpg": whole.getvalue()[:600], "empty.png": b"", "text.bmp": b"BMnope", "word.webp": b"hello"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    bad = [*(str(tmp_path / name) for name in files), str(tmp_path / "absent.png")]
    batch = read_batch([*bad, good], (3, 4, 3), None)
    reasons = dict(batch.errors)
    assert reasons[bad[1]] == "the file is empty"
    assert list(reasons) == bad and "truncated" in reasons[bad[0]].lower()
    assert reasons[bad[-1]] == "No such file or directory"
    np.testing.assert_array_equal(batch.images[-1], COLOR)


def test_read_batch_returns_an_error_above_pillows_pixel_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    file = save_image(tmp_path, Image.fromarray(GRAY))  # 12 pixels: Pillow itself would only warn
    assert "decompression bomb" in read_batch([file], (3, 4, 1), None).errors[0][1]
