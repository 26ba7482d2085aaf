"""What `mlflow models serve` runs of a registered model: images in, class names and probabilities out.

MLflow copies this file into the model, beside the files that packaging.py names and the network. So it may import those
and the model's requirements, and nothing else of this project. It answers from many threads at once.
"""

import base64
import importlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.model import PythonModel, PythonModelContext

COLUMN = "image"
MAX_IMAGES = 256  # in a request
MAX_PIXELS = 256_000_000  # of all files in a request, before they are resized
NUMBERS = (int, float, np.integer, np.floating)
BATCH_SIZE = 32  # images predicted at once, of one request or several, which bounds the memory that they take
WINDOW_VARIABLE = "CONVMIXER_SERVING_WINDOW_MS"
# How long a batch waits for requests that are being decoded, in milliseconds
DEFAULT_WINDOW, MAX_WINDOW = 2.0, 1_000.0


class Classifier(PythonModel):
    """Classifies images that are given as arrays or as files."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network, and put requests of several threads into its batches; see docs/serving.md."""
        # MLflow has put the folder of these files on sys.path by now
        self._decode = importlib.import_module("decode")
        network = importlib.import_module("served_network").load_network(context.artifacts)
        metrics = importlib.import_module("serving_metrics").ServingMetrics()
        _accept_json_only()
        self._classes: list[str] = context.model_config["classes"]
        self._resize: str = context.model_config["resize"]
        self._shape: tuple[int, int, int] = network.shape
        self._batcher = importlib.import_module("micro_batching").MicroBatcher(
            network.predict,
            max_images=BATCH_SIZE,
            window_seconds=read_window() / 1_000,
            runners=network.runners,
            on_batch=metrics.count_batch,
        )
        # what a probe of the server's readiness expects of an image
        self._probe = np.linspace(0, 255, np.prod(self._shape), dtype=np.float32).reshape(1, *self._shape)
        self._probe_answer = network.predict(self._probe)
        service = importlib.import_module("scoring_app").Service(
            self.classify, self._check_network, runtime=network.runtime, metrics=metrics
        )
        service.install()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Classify the images in the column `image`.

        Returns:
            For each image its `class`, the `probability` of that, and the `probabilities` of all classes by name.

        Raises:
            MlflowException: An image cannot be classified; MLflow's server answers with status 400.
        """
        return self.classify(_unwrap_inputs(model_input[COLUMN].tolist()) if COLUMN in model_input else [])

    def classify(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the answers for the images of one request; see `predict`."""
        if not 1 <= len(images) <= MAX_IMAGES:
            raise _error(
                f"a request must hold 1 to {MAX_IMAGES} images, in a column named {COLUMN}, got {len(images):,}",
                kind="count",
            )
        with ExitStack() as opened:
            # Whatever is too large is refused before the first image is decoded.
            sources = [self._open(number, image, opened) for number, image in enumerate(images, 1)]
            self._check_pixels(sources)
            highest: list[int] = []
            answers: list[dict[str, Any]] = []
            for start in range(0, len(sources), BATCH_SIZE):
                with self._batcher.announce():
                    batch = enumerate(sources[start : start + BATCH_SIZE], start + 1)
                    pixels = np.stack([self._to_pixels(number, source, highest) for number, source in batch])
                answers += self._name(self._batcher.predict(pixels))
        if problem := self._decode.describe_12_bits(max(highest, default=None)):
            raise _error(str(problem), kind="file")
        return answers

    def _check_network(self) -> None:
        """Raise an error if the network, which other requests use too, no longer answers as it did at the start."""
        answer = self._batcher.predict(self._probe)
        if not np.allclose(answer, self._probe_answer, atol=1e-4):
            raise RuntimeError("the network answers an image otherwise than at the start")

    def _open(self, number: int, image: Any, opened: ExitStack) -> Any:
        """Return a file as an image that is not decoded yet, and an array as its pixels (h, w, c) float32.

        Args:
            number: The position of the image in the request, from 1, for messages.
            image: What the request holds.
            opened: Closes the files.
        """
        if isinstance(image, list | np.ndarray):
            return self._check_array(number, image)
        if not isinstance(image, str):
            raise _error(f"image {number} must be {self._image_rule()}, got {type(image).__name__}")
        try:
            # a data URL begins with data:image/png;base64,
            file = base64.b64decode(image.partition("base64,")[2] or image, validate=True)
        except ValueError as error:
            raise _error(
                f"image {number} must be {self._image_rule()}: its text is no base64: {error}", kind="file"
            ) from None
        try:
            return opened.enter_context(self._decode.open_image(io.BytesIO(file)))
        except Exception as error:  # noqa: BLE001 - a damaged file makes decoders raise anything
            raise self._unreadable(number, error) from None

    def _check_pixels(self, sources: Sequence[Any]) -> None:
        """Raise MlflowException if the files of a request have too many pixels together."""
        pixels = sum(source.width * source.height for source in sources if not isinstance(source, np.ndarray))
        if pixels > MAX_PIXELS:
            raise _error(
                f"the files of a request must have at most {MAX_PIXELS:,} pixels together, got {pixels:,}; "
                "send them in several requests, or smaller",
                kind="pixels",
            )

    def _to_pixels(self, number: int, source: Any, highest: list[int]) -> np.ndarray:
        """Return the pixels (h, w, c) float32, 0 to 255, of what `_open` returned.

        Of a file with more than 8 bits, the highest value is appended to `highest`.
        """
        if isinstance(source, np.ndarray):
            return source
        try:
            is_deep = self._decode.has_16_bits(source)
            image = self._decode.load_pixels(source)
        except Exception as error:  # noqa: BLE001 - as above
            raise self._unreadable(number, error) from None
        if is_deep:
            highest.append(self._decode.highest_value(image))
        pixels = self._fit(image)
        # otherwise all files of the request would stay decoded until it is answered
        source.close()
        return pixels

    def _fit(self, image: Any) -> np.ndarray:
        """Return the pixels (h, w, c) float32 of a decoded image, resized as the training images were."""
        return np.asarray(self._decode.resize_to(image, self._shape, self._resize), np.float32)

    def _name(self, rows: np.ndarray) -> Iterator[dict[str, Any]]:
        """Yield the answers for the probabilities (n, classes) of images."""
        for probabilities in rows:
            best = int(probabilities.argmax())
            yield {
                "class": self._classes[best],
                "probability": float(probabilities[best]),
                "probabilities": dict(zip(self._classes, probabilities.tolist(), strict=True)),
            }

    def _check_array(self, number: int, values: Any) -> np.ndarray:
        """Return the pixels (h, w, c) float32 of an array; one of another shape than the model's is resized to it."""
        rule = f"image {number} must be an array (height, width, channels) of 1, 3 or 4 channels, 0 to 255"
        try:
            # of objects first, because NumPy would read the text "1" and true as 1
            cells = np.array(values.tolist() if isinstance(values, np.ndarray) else values, object)
            kinds = set(map(type, cells.ravel().tolist()))
            pixels = cells.astype(np.float32)
        except (TypeError, ValueError, OverflowError):
            raise _error(f"{rule}, got rows of unequal length or values that are no numbers", kind="array") from None
        if pixels.ndim != 3 or pixels.shape[2] not in self._decode.MODES or 0 in pixels.shape:
            raise _error(f"{rule}, got the shape {', '.join(map(str, pixels.shape))}", kind="array")
        if strange := sorted(kind.__name__ for kind in kinds if kind is bool or not issubclass(kind, NUMBERS)):
            raise _error(f"{rule}, got values of the type {strange[0]}", kind="array")
        # NaN fails both comparisons
        if not ((pixels >= 0) & (pixels <= 255)).all():
            raise _error(f"{rule}, got {pixels.min():g} to {pixels.max():g}", kind="array")
        # A black image may be meant; no image has 1 of 255 as its brightest pixel.
        if 0 < pixels.max() <= 1:
            raise _error(f"{rule}, got nothing above {pixels.max():g}; multiply fractions by 255", kind="array")
        if pixels.shape == self._shape:
            return pixels
        # as whole numbers, which a file would hold
        return self._fit(self._decode.from_pixels(np.rint(pixels).astype(np.uint8)))

    def _unreadable(self, number: int, error: Exception) -> MlflowException:
        reason = self._decode.describe_error(error)
        return _error(f"image {number} must be {self._image_rule()}: its file cannot be read: {reason}", kind="file")

    def _image_rule(self) -> str:
        return f"an array of its pixels, 0 to 255, or a {self._decode.FORMAT_NAMES} file as base64 text"


def _accept_json_only() -> None:
    """Make MLflow's server refuse CSV and Parquet before it parses them.

    A few kB of Parquet can unpack to gigabytes, whatever number of rows its footer states; JSON cannot.
    """
    for parser in ("parse_csv_input", "parse_parquet_input"):
        setattr(scoring_server, parser, _refuse_body)


def _refuse_body(*_: object, **__: object) -> NoReturn:
    raise _error("a request must be JSON, with the content type application/json")


def _unwrap_inputs(cells: list[Any]) -> list[Any]:
    """Return the images of a column: MLflow makes one row of `{"inputs": {"image": [text, text]}}`."""
    if len(cells) == 1 and isinstance(cells[0], list) and all(isinstance(part, str) for part in cells[0]):
        return cells[0]
    return cells


def read_window() -> float:
    """Return the window of micro-batches in milliseconds."""
    text = os.environ.get(WINDOW_VARIABLE) or f"{DEFAULT_WINDOW:g}"
    try:
        window = float(text)
    except ValueError:
        window = -1.0
    if not 0 <= window <= MAX_WINDOW:
        raise _error(f"{WINDOW_VARIABLE} must be 0 to {MAX_WINDOW:,g} milliseconds, got {text}; try {DEFAULT_WINDOW:g}")
    return window


def _error(message: str, *, kind: str = "image") -> MlflowException:
    """Return the error that MLflow's server answers with status 400, on one line; metrics count it by its kind."""
    error = MlflowException.invalid_parameter_value(" ".join(message.split()))
    error.kind = kind
    return error


set_model(Classifier())
