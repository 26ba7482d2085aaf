"""What `mlflow models serve` runs of a registered model: images in, class names and probabilities out.

MLflow copies this file into the model, beside decode.py and the Keras archive. So it may import those and the model's
requirements, and nothing else of this project. It answers from many threads at once.
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
BATCH_SIZE = 32  # images predicted at once, which bounds the memory that a request takes


class Classifier(PythonModel):
    """Classifies images that are given as arrays or as files."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network and trace it, so that the first request does not wait for that."""
        # The server's environment may name another backend, or flags on which TensorFlow aborts.
        os.environ["KERAS_BACKEND"] = "tensorflow"
        for name in ("TF_USE_LEGACY_KERAS", "TF_XLA_FLAGS", "XLA_FLAGS"):
            os.environ.pop(name, None)
        import keras
        import tensorflow as tf

        if keras.config.backend() != "tensorflow":
            raise _error(
                f"the model needs Keras on TensorFlow, got {keras.config.backend()}, with which this process has "
                "imported it: start Python with KERAS_BACKEND=tensorflow"
            )
        # MLflow has put the folder of decode.py on sys.path by now
        self._decode = importlib.import_module("decode")
        _accept_json_only()
        model = keras.saving.load_model(context.artifacts["model"], compile=False, safe_mode=True)
        self._classes: list[str] = context.model_config["classes"]
        self._resize: str = context.model_config["resize"]
        self._shape: tuple[int, int, int] = tuple(model.input_shape[1:])
        pixels = tf.TensorSpec((None, *self._shape), tf.float32)
        self._predict = tf.function(lambda images: model(images, training=False), input_signature=[pixels])
        self._predict(np.zeros((1, *self._shape), np.float32))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Classify the images in the column `image`.

        Returns:
            For each image its `class`, the `probability` of that, and the `probabilities` of all classes by name.

        Raises:
            MlflowException: An image cannot be classified; MLflow's server answers with status 400.
        """
        images = _unwrap_inputs(model_input[COLUMN].tolist()) if COLUMN in model_input else []
        if not 1 <= len(images) <= MAX_IMAGES:
            raise _error(
                f"a request must hold 1 to {MAX_IMAGES} images, in a column named {COLUMN}, got {len(images):,}"
            )
        with ExitStack() as opened:
            # Whatever is too large is refused before the first image is decoded.
            sources = [self._open(number, image, opened) for number, image in enumerate(images, 1)]
            self._check_pixels(sources)
            highest: list[int] = []
            answers: list[dict[str, Any]] = []
            for start in range(0, len(sources), BATCH_SIZE):
                batch = enumerate(sources[start : start + BATCH_SIZE], start + 1)
                answers += self._classify([self._to_pixels(number, source, highest) for number, source in batch])
        if problem := self._decode.describe_12_bits(max(highest, default=None)):
            raise _error(str(problem))
        return answers

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
            raise _error(f"image {number} must be {self._image_rule()}: its text is no base64: {error}") from None
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
                "send them in several requests, or smaller"
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
        return self._fit(image)

    def _fit(self, image: Any) -> np.ndarray:
        """Return the pixels (h, w, c) float32 of a decoded image, resized as the training images were."""
        return np.asarray(self._decode.resize_to(image, self._shape, self._resize), np.float32)

    def _classify(self, images: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
        """Yield the answers for one batch."""
        for probabilities in self._predict(np.stack(images)).numpy():
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
            raise _error(f"{rule}, got rows of unequal length or values that are no numbers") from None
        if pixels.ndim != 3 or pixels.shape[2] not in self._decode.MODES or 0 in pixels.shape:
            raise _error(f"{rule}, got the shape {', '.join(map(str, pixels.shape))}")
        if strange := sorted(kind.__name__ for kind in kinds if kind is bool or not issubclass(kind, NUMBERS)):
            raise _error(f"{rule}, got values of the type {strange[0]}")
        # NaN fails both comparisons
        if not ((pixels >= 0) & (pixels <= 255)).all():
            raise _error(f"{rule}, got {pixels.min():g} to {pixels.max():g}")
        # A black image may be meant; no image has 1 of 255 as its brightest pixel.
        if 0 < pixels.max() <= 1:
            raise _error(f"{rule}, got nothing above {pixels.max():g}; multiply fractions by 255")
        if pixels.shape == self._shape:
            return pixels
        # as whole numbers, which a file would hold
        return self._fit(self._decode.from_pixels(np.rint(pixels).astype(np.uint8)))

    def _unreadable(self, number: int, error: Exception) -> MlflowException:
        reason = self._decode.describe_error(error)
        return _error(f"image {number} must be {self._image_rule()}: its file cannot be read: {reason}")

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


def _error(message: str) -> MlflowException:
    """Return the error that MLflow's server answers with status 400, on one line."""
    return MlflowException.invalid_parameter_value(" ".join(message.split()))


set_model(Classifier())
