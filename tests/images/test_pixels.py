"""Facts about how image files become one array, and what is said of those that cannot."""

import io

import numpy as np
from image_files import COLOR, GRAY, saved
from PIL import Image

from pipeline.images.pixels import read_batch


def test_faults_are_told_file_by_file_and_do_not_stop_the_others(tmp_path):
    good = saved(tmp_path, Image.fromarray(COLOR), "good.png")
    whole = io.BytesIO()
    Image.fromarray(np.kron(COLOR, np.ones((30, 30, 1), np.uint8))).save(whole, "JPEG")
    files = {"cut.jpg": whole.getvalue()[:600], "empty.png": b"", "text.bmp": b"BMnope", "word.webp": b"hello"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    bad = [*(str(tmp_path / name) for name in files), str(tmp_path / "absent.png")]
    batch = read_batch([*bad, good], (3, 4, 3), False)
    reasons = dict(batch.faults)
    assert list(reasons) == bad and "truncated" in reasons[bad[0]].lower()
    assert reasons[bad[-1]] == "No such file or directory"
    np.testing.assert_array_equal(batch.images[-1], COLOR)


def test_decompression_bomb_is_a_fault_from_pillows_limit_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    file = saved(tmp_path, Image.fromarray(GRAY))  # 12 pixels: Pillow itself would only warn
    assert "decompression bomb" in read_batch([file], (3, 4, 1), False).faults[0][1]
