"""Images in the form that MLflow's chart view reads."""

import re

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from pipeline.tracking.images import image_name, save_image

RUN = "0" * 32
# what MLflow's page takes apart: key, step, timestamp, a part of its own
NAME = re.compile(r"([a-zA-Z0-9_\-. ~]+)\+step\+(\d+)\+timestamp\+(\d+)\+([0-9a-f-]{36})")


def test_image_name_has_the_parts_that_mlflow_reads():
    name = NAME.fullmatch(image_name(RUN, "depthwise_kernels/block_1", 7))
    assert name and name.group(1, 2) == ("depthwise_kernels~block_1", "7")


def test_image_name_is_the_same_for_the_same_run_key_and_step_only():
    names = [image_name(run, key, step) for run in (RUN, "1" * 32) for key in ("a", "b") for step in (0, 1)]
    assert len(set(names)) == len(names)
    assert image_name(RUN, "a", 0) == names[0]


def test_save_image_writes_the_picture_its_preview_and_copies_in_other_formats(tmp_path):
    copies = ["plots/deep/a.png", "plots/deep/a.svg"]
    save_image("a+step+0", Figure(figsize=(10, 5), dpi=100), copies=copies)(tmp_path)
    files = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    full, preview, copy = "images/a+step+0.png", "images/a+step+0+compressed.webp", "plots/deep/a.png"
    assert set(files) == {full, preview, *copies}
    assert b"<svg" in files[copies[1]].read_bytes()
    for name, size in ((full, (1000, 500)), (preview, (640, 320))):
        with Image.open(files[name]) as picture:
            assert picture.size == size
    assert files[copy].read_bytes() == files[full].read_bytes()


def test_save_image_without_a_copy_writes_images_only(tmp_path):
    save_image("a+step+0", Figure(figsize=(1, 1)))(tmp_path)
    assert {path.parent.name for path in tmp_path.rglob("*") if path.is_file()} == {"images"}


def test_save_image_draws_png_whatever_format_a_user_has_configured(tmp_path):
    with rc_context({"savefig.format": "svg"}):
        save_image("a+step+0", Figure(figsize=(1, 1)))(tmp_path)
    with Image.open(tmp_path / "images" / "a+step+0.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
