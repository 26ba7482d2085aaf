"""Facts about reading many image files."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from pipeline.data.read_images import read_batch, read_images
from pipeline.runtime.errors import UsageError
from tests.support.image_files import COLOR, GRAY, saved


def memory(shape):
    return np.empty(shape, np.uint8)


def make_files(folder, count, shape=(4, 6, 3)):
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image.squeeze()).save(folder / f"{number:04}.png")
    return [str(file) for file in sorted(folder.glob("*.png"))], pixels


def test_processes_give_the_same_rows_as_reading_here(tmp_path, monkeypatch):
    files, pixels = make_files(tmp_path, 60)
    here = read_images(files, 0, None, memory)
    monkeypatch.setattr("pipeline.data.read_images.WORKER_FILES", 20)
    monkeypatch.setattr("pipeline.data.read_images.BATCH_FILES", 7)
    there = read_images(files, 0, None, memory)
    np.testing.assert_array_equal(there.images, pixels)
    np.testing.assert_array_equal(there.images, here.images)
    assert there.digests.tolist() == here.digests.tolist() and len(set(there.digests.tolist())) == 60


def test_one_colour_image_makes_all_rgb_and_one_see_through_all_rgba(tmp_path):
    files, gray = make_files(tmp_path, 40, (4, 6, 1))
    assert read_images(files, 0, None, memory).images.shape == (40, 4, 6, 1)
    Image.new("RGB", (6, 4), (1, 2, 3)).save(files[1])  # not among the files looked at first
    coloured = read_images(files, 0, None, memory).images
    np.testing.assert_array_equal(coloured[0], np.repeat(gray[0], 3, axis=2))
    assert coloured[1, 0, 0].tolist() == [1, 2, 3]
    Image.new("RGBA", (6, 4), (1, 2, 3, 4)).save(files[1])
    assert read_images(files, 0, None, memory).images[:2, 0, 0, 3].tolist() == [255, 4]


def test_images_of_other_sizes_need_image_size(tmp_path):
    files, pixels = make_files(tmp_path, 40)
    Image.new("RGB", (9, 7)).save(files[33])
    with pytest.raises(
        UsageError, match=r"some are 4 x 6 pixels \(height x width\), .*0033.png is 7 x 9; give image_size"
    ):
        read_images(files, 0, None, memory)
    np.testing.assert_array_equal(read_images(files, 0, (4, 6), memory).images[0], pixels[0])
    assert read_images(files, 0, (3, 5), memory).images.shape == (40, 3, 5, 3)


def test_unreadable_files_are_listed_together_on_one_line(tmp_path):
    files, _ = make_files(tmp_path, 20)
    odd_name = str(tmp_path / 'it\'s\n\udce9 "x".png')
    os.rename(files[0], odd_name)
    for file in [odd_name, *files[1:8]]:
        with open(file, "r+b") as opened:
            opened.truncate(50)
    with pytest.raises(UsageError) as caught:
        read_images([odd_name, *files[1:]], 0, None, memory)
    message = str(caught.value)
    assert message.isprintable() and "8 of 20 cannot be read" in message and "and 3 more" in message
    assert rf"{tmp_path}/it's\n\udce9" in message and files[4] in message and files[5] not in message


def read_or_die(*arguments):
    """Read here, end at once in a worker."""
    if os.environ["ASKING"] != str(os.getpid()):
        os._exit(9)
    return read_batch(*arguments)


def test_process_killed_for_memory_is_told_with_the_files_it_was_at(tmp_path, monkeypatch):
    files, _ = make_files(tmp_path, 4)
    monkeypatch.setattr("pipeline.data.read_images.WORKER_FILES", 2)
    monkeypatch.setattr("pipeline.data.read_images.read_batch", read_or_die)
    monkeypatch.setenv("ASKING", str(os.getpid()))
    with pytest.raises(UsageError, match=r"a worker process ended early .* on one of .*0000.png to .*0003.png"):
        read_images(files, 0, None, memory)


def test_faults_are_told_file_by_file_and_do_not_stop_the_others(tmp_path):
    good = saved(tmp_path, Image.fromarray(COLOR), "good.png")
    whole = io.BytesIO()
    Image.fromarray(np.kron(COLOR, np.ones((30, 30, 1), np.uint8))).save(whole, "JPEG")
    files = {"cut.jpg": whole.getvalue()[:600], "empty.png": b"", "text.bmp": b"BMnope", "word.webp": b"hello"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    bad = [*(str(tmp_path / name) for name in files), str(tmp_path / "absent.png")]
    batch = read_batch([*bad, good], (3, 4, 3), False)
    reasons = dict(batch.errors)
    assert list(reasons) == bad and "truncated" in reasons[bad[0]].lower()
    assert reasons[bad[-1]] == "No such file or directory"
    np.testing.assert_array_equal(batch.images[-1], COLOR)


def test_decompression_bomb_is_a_fault_from_pillows_limit_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    file = saved(tmp_path, Image.fromarray(GRAY))  # 12 pixels: Pillow itself would only warn
    assert "decompression bomb" in read_batch([file], (3, 4, 1), False).errors[0][1]
