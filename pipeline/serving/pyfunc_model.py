"""What `mlflow models serve` runs of a registered model: images in, class names and probabilities out.

MLflow copies this file into the model, beside decode.py and the Keras archive. So it may import those and the model's
requirements, and nothing else of this project. It answers from many threads at once.
"""

import base64
import importlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

COLUMN = "image"
MAX_IMAGES = 256  # in a request
BATCH_SIZE = 32  # images predicted at once, which bounds the memory that a request takes
IMAGE_RULE = "an array of its pixels, 0 to 255, or a JPEG, PNG, BMP or WebP file as base64 text"


class Classifier(PythonModel):
    """Classifies images that are given as arrays or as files."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network and trace it, so that the first request does not wait for that."""
        # MLflow has put the folder of decode.py on sys.path by now
        self._decode = importlib.import_module("decode")
        model = keras.saving.load_model(context.artifacts["model"], compile=False, safe_mode=True)
        self._classes: list[str] = context.model_config["classes"]
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
        answers: list[dict[str, Any]] = []
        for start in range(0, len(images), BATCH_SIZE):
            answers += self._classify(images[start : start + BATCH_SIZE], first_number=start + 1)
        return answers

    def _classify(self, images: Sequence[Any], *, first_number: int) -> Iterator[dict[str, Any]]:
        """Yield the answers for one batch; `first_number` is the position of its first image in the request, from 1."""
        pixels = np.stack([self._to_pixels(number, image) for number, image in enumerate(images, first_number)])
        for probabilities in self._predict(pixels).numpy():
            best = int(probabilities.argmax())
            yield {
                "class": self._classes[best],
                "probability": float(probabilities[best]),
                "probabilities": dict(zip(self._classes, probabilities.tolist(), strict=True)),
            }

    def _to_pixels(self, number: int, image: Any) -> np.ndarray:
        """Return an image as pixels (h, w, c) float32, 0 to 255; errors name it by its number in the request."""
        if isinstance(image, str):
            return self._decode_file(number, image)
        if isinstance(image, list | np.ndarray):
            return self._check_array(number, image)
        raise _error(f"image {number} must be {IMAGE_RULE}, got {type(image).__name__}")

    def _decode_file(self, number: int, text: str) -> np.ndarray:
        """Return the pixels of a file in base64, resized as the training images were."""
        try:
            # a data URL begins with data:image/png;base64,
            file = base64.b64decode(text.partition("base64,")[2] or text, validate=True)
        except ValueError as error:
            raise _error(f"image {number} must be {IMAGE_RULE}: its text is no base64: {error}") from None
        try:
            image = self._decode.read_image(io.BytesIO(file))
        except Exception as error:  # noqa: BLE001 - a damaged file makes decoders raise anything
            reason = str(self._decode.describe_error(error))
            raise _error(f"image {number} must be {IMAGE_RULE}: its file cannot be read: {reason}") from None
        return np.asarray(self._decode.resize_to(image, self._shape), np.float32)

    def _check_array(self, number: int, values: Any) -> np.ndarray:
        """Return the pixels of an array that has the model's shape."""
        height, width, channels = self._shape
        rule = f"image {number} must be an array of height {height}, width {width} and {channels} channel(s), 0 to 255"
        try:
            pixels = np.array(values.tolist() if isinstance(values, np.ndarray) else values, np.float32)
        except (TypeError, ValueError, OverflowError):
            raise _error(f"{rule}, got rows of unequal length or values that are no numbers") from None
        if pixels.shape != self._shape:
            raise _error(f"{rule}, got the shape {', '.join(map(str, pixels.shape))}")
        # NaN fails both comparisons
        if not ((pixels >= 0) & (pixels <= 255)).all():
            raise _error(f"{rule}, got {pixels.min():g} to {pixels.max():g}")
        return pixels


def _unwrap_inputs(cells: list[Any]) -> list[Any]:
    """Return the images of a column: MLflow makes one row of `{"inputs": {"image": [text, text]}}`."""
    if len(cells) == 1 and isinstance(cells[0], list) and all(isinstance(part, str) for part in cells[0]):
        return cells[0]
    return cells


def _error(message: str) -> MlflowException:
    """Return the error that MLflow's server answers with status 400, on one line."""
    return MlflowException.invalid_parameter_value(" ".join(message.split()))


set_model(Classifier())
