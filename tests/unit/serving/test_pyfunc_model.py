"""A registered model served by `mlflow models serve`, asked over HTTP."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline.data import decode
from pipeline.data.decode import read_image, resize_to
from pipeline.serving.pyfunc_model import MAX_IMAGES, Classifier, read_window
from tests.support.registered_model import CLASSES, NAME, RESIZE, SHAPE
from tests.support.servers import serve_model
from tests.support.stores import environment

HEIGHT, WIDTH, CHANNELS = SHAPE
# of the machine that serves, and with no influence
VARIABLES = {
    "KERAS_BACKEND": "torch",
    "TF_USE_LEGACY_KERAS": "1",
    "TF_XLA_FLAGS": "--tf_xla_no_such_flag",
    "XLA_FLAGS": "--xla_no_such_flag",
}
COLOURS = np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(float)


@pytest.fixture(scope="module")
def address(registered_once, tmp_path_factory):
    """The URL of a server of the champion, started by the command of the README in another folder."""
    env = environment(registered_once.uri, "registering") | VARIABLES
    with serve_model(f"models:/{NAME}@champion", env, tmp_path_factory.mktemp("elsewhere")) as url:
        yield url


@pytest.fixture(scope="module")
def plain_address(registered_once, tmp_path_factory):
    """The URL of a server of the same model that answers each request by itself, by Keras and MLflow's own handler."""
    plain = {"CONVMIXER_SERVING_RUNTIME": "keras", "CONVMIXER_SERVING_WINDOW_MS": "0", "CONVMIXER_SERVING_DIRECT": "0"}
    env = environment(registered_once.uri, "registering") | VARIABLES | plain
    with serve_model(f"models:/{NAME}@champion", env, tmp_path_factory.mktemp("plain")) as url:
        yield url


def get(address, path):
    return requests.get(address.replace("/invocations", path), timeout=60)


def ask(address, body):
    content = body if isinstance(body, str) else json.dumps(body)
    return requests.post(address, data=content, headers={"content-type": "application/json"}, timeout=60)


def split(*images):
    return {"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}}


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def plain(colour, *, size=(WIDTH, HEIGHT), mode="RGB"):
    return Image.new("RGB", size, colour).convert(mode)


def expected(registered_once, pixels):
    return registered_once.model.predict_on_batch(np.asarray(pixels, np.float32))


def probabilities(answer):
    assert answer.status_code == 200, answer.text
    rows = answer.json()["predictions"]
    assert all(row["class"] == max(row["probabilities"], key=row["probabilities"].get) for row in rows)
    assert all(row["probability"] == max(row["probabilities"].values()) for row in rows)
    return [[row["probabilities"][name] for name in CLASSES] for row in rows]


ARRAYS = [image.tolist() for image in COLOURS]
BODIES = [
    split(*ARRAYS),
    {"dataframe_records": [{"image": image} for image in ARRAYS]},
    {"inputs": {"image": ARRAYS}},
    {"inputs": ARRAYS},
    {"instances": [{"image": image} for image in ARRAYS]},
]


@pytest.mark.parametrize("body", BODIES, ids=["split", "records", "inputs by name", "inputs", "instances"])
def test_predict_of_arrays_equals_the_network_in_each_request_format_of_mlflow(
    address, plain_address, registered_once, body
):
    for url in (address, plain_address):
        np.testing.assert_allclose(probabilities(ask(url, body)), expected(registered_once, COLOURS), atol=1e-6)


FILES = [encoded(plain("red")), encoded(plain("lime"), "JPEG"), encoded(plain("blue"), "WEBP")]
OTHER_FILES = [encoded(plain("red"), "TIFF"), encoded(plain("lime"), "GIF"), encoded(plain("blue"), "PPM")]


@pytest.mark.parametrize(
    "body",
    [
        split(*FILES),
        split(*OTHER_FILES),
        {"dataframe_records": [{"image": file} for file in FILES]},
        {"inputs": {"image": FILES}},
    ],
    ids=["split", "other formats", "records", "inputs by name"],
)
def test_predict_of_files_returns_class_names(address, plain_address, body):
    answers = [ask(url, body) for url in (address, plain_address)]
    for answer in answers:
        assert [row["class"] for row in answer.json()["predictions"]] == list(CLASSES)
    np.testing.assert_allclose(*map(probabilities, answers), atol=1e-6)
    assert answers[0].headers["content-type"] == answers[1].headers["content-type"]


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_predict_of_a_file_of_any_size_and_mode_resizes_it_as_in_training(address, registered_once, mode):
    noise = np.random.default_rng(1).integers(0, 256, (37, 53, 3), np.uint8)
    image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(noise)
    image = image if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG" if mode == "CMYK" else "PNG")
    pixels = resize_to(read_image(io.BytesIO(file.getvalue())), SHAPE, RESIZE)
    answer = ask(address, split(base64.b64encode(file.getvalue()).decode()))
    np.testing.assert_allclose(probabilities(answer), expected(registered_once, [pixels]), atol=1e-6)


@pytest.mark.parametrize("shape", [(37, 53, 3), (37, 53, 1), (37, 53, 4), (3, 2, 3), (8, 6, 1)], ids=str)
def test_predict_of_an_array_of_another_shape_equals_that_of_a_file(address, registered_once, shape):
    noise = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    image = Image.fromarray(noise[..., 0] if shape[2] == 1 else noise)
    answers = probabilities(ask(address, split((noise + 0.3 * (noise < 255)).tolist(), encoded(image))))
    assert answers[0] == answers[1]
    pixels = resize_to(image, SHAPE, RESIZE)
    np.testing.assert_allclose(answers[:1], expected(registered_once, [pixels]), atol=1e-6)


def test_predict_accepts_arrays_files_and_data_urls_in_one_request(address):
    answer = ask(address, split(ARRAYS[0], FILES[1], f"data:image/webp;base64,{FILES[2]}"))
    assert [row["class"] for row in answer.json()["predictions"]][1:] == ["green", "blue"]


def test_predict_accepts_max_images_in_one_request(address):
    assert len(probabilities(ask(address, split(*(FILES * 86)[:MAX_IMAGES])))) == MAX_IMAGES


BOMB = encoded(Image.new("1", (10_000, 9_000)))  # 12 kB
NO_IMAGE = "not a JPEG, PNG, TIFF, GIF, WebP, BMP or PNM image"
TALL = encoded(Image.new("1", (1, 89_000_000)))
LARGE = encoded(Image.new("1", (10_000, 8_000)))
REFUSED = [
    (split(), "a request must hold 1 to 256 images, in a column named image, got 0"),
    ({"dataframe_records": []}, "a request must hold 1 to 256 images, in a column named image, got 0"),
    ({"inputs": {"image": []}}, "a request must hold 1 to 256 images, in a column named image, got 0"),
    (split(*FILES * 86), "a request must hold 1 to 256 images, in a column named image, got 258"),
    ({"dataframe_records": [{"img": FILES[0]}]}, "in a column named image, got 0"),
    (
        split(np.zeros((8, 6)).tolist()),
        "an array (height, width, channels) of 1, 3 or 4 channels, 0 to 255, got the shape 8, 6",
    ),
    ({"inputs": np.zeros((2, 3, 8, 6)).tolist()}, "of 1, 3 or 4 channels, 0 to 255, got the shape 3, 8, 6"),
    (split(FILES[0], []), "of 1, 3 or 4 channels, 0 to 255, got the shape 0"),
    (
        split(ARRAYS[0], [[1], [1, 2]]),
        "image 2 must be an array (height, width, channels) of 1, 3 or 4 channels, 0 to 255, "
        "got rows of unequal length or values that are no numbers",
    ),
    (split([["a"]]), "got rows of unequal length or values that are no numbers"),
    (split(np.full(SHAPE, 256).tolist()), "0 to 255, got 256 to 256"),
    (split(np.full(SHAPE, 0.98).tolist()), "0 to 255, got nothing above 0.98; multiply fractions by 255"),
    ({"inputs": np.full((2, *SHAPE), 0.5).tolist()}, "0 to 255, got nothing above 0.5; multiply fractions by 255"),
    (split(ARRAYS[0], np.ones(SHAPE, int).tolist()), "0 to 255, got nothing above 1; multiply fractions by 255"),
    (split(np.full(SHAPE, "7").tolist()), "0 to 255, got values of the type str"),
    ({"inputs": {"image": [np.full(SHAPE, True).tolist()]}}, "0 to 255, got values of the type bool"),
    (split([[[7, 7, True], *[[7, 7, 7]] * 5], *[[[7, 7, 7]] * 6] * 7]), "0 to 255, got values of the type bool"),
    (split([[[7, 7, None], *[[7, 7, 7]] * 5], *[[[7, 7, 7]] * 6] * 7]), "0 to 255, got values of the type NoneType"),
    (json.dumps(split(np.full(SHAPE, np.nan).tolist())), "0 to 255, got nan to nan"),
    (split(7), "or a JPEG, PNG, TIFF, GIF, WebP, BMP or PNM file as base64 text, got int"),
    (split(None), "or a JPEG, PNG, TIFF, GIF, WebP, BMP or PNM file as base64 text, got NoneType"),
    (split("hello!"), "its text is no base64: Only base64 data is allowed"),
    (
        "[" * 100_000,
        "the lists and objects of a request must be nested at most a few hundred deep, got more; "
        "an image is an array (height, width, channels) or a file as base64 text",
    ),
    (
        split(base64.b64encode(b"hello").decode()),
        f"its file cannot be read: {NO_IMAGE}",
    ),
    (
        split(encoded(plain("red"), "TGA")),
        f"its file cannot be read: {NO_IMAGE}",
    ),
    (
        split(FILES[0], FILES[1][:200]),
        "image 2 must be an array of its pixels, 0 to 255, or a JPEG, PNG, TIFF, GIF, WebP, BMP or PNM "
        "file as base64 text: its file cannot be read: Truncated File Read",
    ),
    (split(TALL), "its file cannot be read: each side must have at most 65,535 pixels, got 1 x 89,000,000"),
    (
        split(*[LARGE] * 4),
        "the files of a request must have at most 256,000,000 pixels together, got 320,000,000; "
        "send them in several requests, or smaller",
    ),
    (
        split(encoded(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 16))),
        "no value above a fifteenth of 65,535; multiply their pixels by 16, or save them with 8 bits",
    ),
    (
        split(BOMB),
        "Image size (90000000 pixels) exceeds limit of 89478485 pixels, could be decompression bomb DOS attack.",
    ),
]


@pytest.mark.parametrize(("body", "message"), REFUSED)
def test_predict_of_an_invalid_request_is_refused_in_one_line_and_the_server_goes_on(
    address, plain_address, body, message
):
    answer = ask(address, body)
    # MLflow's own handler says the same
    assert answer.text == ask(plain_address, body).text
    assert answer.status_code == 400
    assert "Traceback" not in answer.text and "stack_trace" not in answer.json()
    last = answer.json()["message"].rpartition("\nError: ")[2]
    assert last.endswith(message) and "\n" not in last, last
    assert ask(address, split(FILES[0])).status_code == 200


def test_predict_of_a_black_array_is_answered(address, registered_once):
    black = np.zeros(SHAPE)
    np.testing.assert_allclose(probabilities(ask(address, split(black.tolist()))), expected(registered_once, [black]))


def test_classify_keeps_the_pixels_of_one_file_at_a_time(monkeypatch):
    """All files of a request are open until it is answered; decoded together, they could take a gigabyte."""
    decoded, held = [], []
    load_pixels = decode.load_pixels

    def load(image):
        held.append(sum(map(has_pixels, decoded)))
        decoded.append(image)
        return load_pixels(image)

    monkeypatch.setattr(decode, "load_pixels", load)
    classifier = Classifier()
    classifier._decode, classifier._classes = decode, list(CLASSES)
    classifier._shape, classifier._resize = SHAPE, RESIZE
    classifier._batcher = SimpleNamespace(announce=nullcontext, predict=lambda pixels: pixels[:, 0, 0] / 255)
    answers = classifier.classify([*FILES, *OTHER_FILES])
    assert held == [0] * 6
    assert [answer["class"] for answer in answers] == list(CLASSES) * 2


def has_pixels(image):
    try:
        image.getpixel((0, 0))
    except ValueError:
        return False
    return True


def parquet(table):
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/csv", b"image\n" + FILES[0].encode()),
        ("application/vnd.apache.parquet", parquet(pa.table({"image": FILES[:1]}))),
        ("application/vnd.apache.parquet", parquet(pa.table({"image": np.zeros(30_000_000, np.int64)}))),
        ("application/vnd.apache.parquet", b"PAR1"),
    ],
    ids=["CSV", "Parquet", "Parquet of 30 million rows", "damaged Parquet"],
)
def test_body_that_is_not_json_is_refused_before_it_is_parsed(address, kind, body):
    """30 million rows are 137 kB here, and unpack to gigabytes."""
    answer = requests.post(address, data=body, headers={"content-type": kind}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["message"] == "a request must be JSON, with the content type application/json"


def test_ready_says_what_runs_the_network(address, plain_address):
    for url, runtime in ((address, "ONNX Runtime"), (plain_address, "Keras")):
        answer = get(url, "/ready")
        assert answer.status_code == 200
        assert answer.json()["ready"] is True and answer.json()["runtime"].startswith(runtime)
        # MLflow's own are there as well
        assert get(url, "/ping").status_code == get(url, "/version").status_code == 200


def counts(address):
    answer = get(address, "/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    }


def test_metrics_count_requests_errors_by_kind_latencies_and_batches(address):
    before = counts(address)
    bodies = [split(FILES[0], FILES[1]), split("hello!"), split(np.zeros((8, 6)).tolist()), "no JSON", split()]
    # MLflow's parser gives up on it
    bodies.append('{"inputs": {"image": [' + "[" * 600 + "]" * 600 + "]}}")
    for body in bodies:
        ask(address, body)
    requests.post(address, data=b"x", headers={"content-type": "text/xml"}, timeout=60)
    after = counts(address)
    grown = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    prefix = "convmixer_serving_"
    assert {
        name: grown[name] for name in grown if name.startswith((f"{prefix}requests_total", f"{prefix}errors_total"))
    } == {
        f'{prefix}requests_total{{status="200"}}': 1,
        f'{prefix}requests_total{{status="400"}}': 5,
        f'{prefix}requests_total{{status="415"}}': 1,
        f'{prefix}errors_total{{kind="file"}}': 1,
        f'{prefix}errors_total{{kind="array"}}': 1,
        f'{prefix}errors_total{{kind="request"}}': 3,
        f'{prefix}errors_total{{kind="content_type"}}': 1,
    }
    assert grown[f"{prefix}request_seconds_count"] == 7
    assert (grown[f"{prefix}batch_images_count"], grown[f"{prefix}batch_images_sum"]) == (1, 2)


def test_requests_of_many_clients_are_answered_as_those_of_one(address):
    """Bit by bit, and those that are refused among them do not disturb the others."""
    noise = np.random.default_rng(3).integers(0, 256, (40, *SHAPE), np.uint8)
    files = [encoded(Image.fromarray(image)) for image in noise]
    bodies = [split(*files[start : start + 1 + start % 3]) for start in range(30)]
    bodies += [body for body, _ in REFUSED[5:25]]
    alone = [ask(address, body) for body in bodies]
    before = counts(address)
    order = np.random.default_rng(4).permutation(np.repeat(np.arange(len(bodies)), 6))
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda number: ask(address, bodies[number]), order))
    for number, answer in zip(order, answers, strict=True):
        assert (answer.status_code, answer.text) == (alone[number].status_code, alone[number].text)
    after = counts(address)
    batches, images = (
        after[name] - before[name]
        for name in ("convmixer_serving_batch_images_count", "convmixer_serving_batch_images_sum")
    )
    assert 0 < batches < images


@pytest.mark.parametrize(("text", "milliseconds"), [("", 2.0), ("0", 0.0), ("0.5", 0.5), ("1000", 1000.0)])
def test_read_window_returns_milliseconds(monkeypatch, text, milliseconds):
    monkeypatch.setenv("CONVMIXER_SERVING_WINDOW_MS", text)
    assert read_window() == milliseconds


@pytest.mark.parametrize("text", ["-1", "1001", "nan", "two"])
def test_read_window_refuses_anything_else(monkeypatch, text):
    monkeypatch.setenv("CONVMIXER_SERVING_WINDOW_MS", text)
    with pytest.raises(MlflowException, match=f"must be 0 to 1,000 milliseconds, got {text}; try 2"):
        read_window()
