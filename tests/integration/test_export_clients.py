"""The clients of docs/export.md, as they stand there, with an exported network and compared with Keras."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import keras
import numpy as np
import pytest
from PIL import Image

from pipeline.model.conv_mixer import conv_mixer
from pipeline.serving.export.comparison import predict_on_cpu
from pipeline.serving.export.onnx_model import write_onnx
from tests.support.browser import MISSING, browser, wait_until
from tests.support.paths import ROOT

CLASSES = ["airplane", "car", "bird", "cat", "deer"]
SHAPE = (32, 24, 3)  # height, width, channels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an exported network, its metadata and a picture of its size."""
    folder = tmp_path_factory.mktemp("client")
    keras.utils.set_random_seed(0)
    model = conv_mixer(SHAPE, len(CLASSES), filters=16, depth=2, kernel_size=5, patch_size=2)
    # so that no class is certain, and none as probable as another
    model.layers[-1].bias.assign([0.5, -1.0, 0.2, 1.0, -0.3])
    metadata = {"classes": CLASSES, "resize": "stretch", "image_size": SHAPE[:2], "channels": SHAPE[2]}
    write_onnx(model, folder / "model.onnx", metadata=metadata)
    (folder / "model.json").write_text(json.dumps(metadata))
    pixels = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    [probabilities] = predict_on_cpu(model, pixels[None])
    (folder / "expected.json").write_text(json.dumps(dict(zip(CLASSES, probabilities.tolist(), strict=True))))
    return folder


def block(language):
    """Return the only block of code in a language of the page."""
    [code] = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs/export.md").read_text(), re.DOTALL | re.MULTILINE)
    return code


def most_probable(folder, number):
    expected = json.loads((folder / "expected.json").read_text())
    return sorted(expected.items(), key=lambda item: -item[1])[:number]


def test_python_client_prints_the_probabilities_of_keras(folder):
    (folder / "classify.py").write_text(block("python"))
    command = [sys.executable, "classify.py", "model.onnx", "picture.png"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    for (probability, name), (expected_name, expected) in zip(rows, most_probable(folder, 3), strict=True):
        assert name == expected_name and float(probability) == pytest.approx(expected, abs=1e-4)


def test_python_client_turns_a_picture_as_its_camera_was_held(folder):
    (folder / "classify.py").write_text(block("python"))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    with Image.open(folder / "picture.png") as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    printed = [
        subprocess.run(
            [sys.executable, "classify.py", "model.onnx", name],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        for name in ("picture.png", "turned.png")
    ]
    assert printed[0] == printed[1]


@pytest.mark.slow
@pytest.mark.skipif(MISSING is not None, reason=f"no {MISSING}")
@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm")
def test_browser_client_shows_the_probabilities_of_keras(folder):
    (folder / "index.html").write_text(block("html"))
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web"]
    installed = subprocess.run(install, cwd=folder, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm cannot install onnxruntime-web: {installed.stderr.strip().splitlines()[-1]}")
    with served(folder) as url, browser(width=640, height=700) as page:
        page.open(url)
        page.shows("choose a picture")
        page.run(
            "fetch('picture.png').then(answer => answer.blob()).then(blob => {"
            "  const files = new DataTransfer(), input = document.querySelector('input');"
            "  files.items.add(new File([blob], 'picture.png', {type: 'image/png'}));"
            "  input.files = files.files;"
            "})"
        )
        page.run("setTimeout(() => document.querySelector('input').dispatchEvent(new Event('change')), 500)")
        rows = wait_until(
            lambda: page.run("return [...document.querySelectorAll('tr')].map(row => row.innerText.split('\\t'))"),
            seconds=60,
            message=page.text,
        )
        page.screenshot(folder / "page.png")
    for (name, probability, *_), (expected_name, expected) in zip(rows, most_probable(folder, 5), strict=True):
        assert name == expected_name and float(probability) == pytest.approx(expected, abs=1e-4)


@contextmanager
def served(folder):
    """Serve a folder, and yield the URL."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
