"""What `mlflow models serve` runs of a registered model: images in, class names and probabilities out.

MLflow puts this file into the model, with decode.py and the Keras archive beside it, so it may import those and the
model's requirements, and nothing else of this project. It answers from many threads at once.
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
MOST_IMAGES = 256  # of a request
AT_ONCE = 32  # predicted together: what one request takes of memory
KINDS = "an array of its pixels, 0 to 255, or a JPEG, PNG, BMP or WebP file as base64 text"


class Classifier(PythonModel):
    """Images, as arrays or files, to their classes."""

    def load_context(self, context: PythonModelContext) -> None:
        self._decoding = importlib.import_module("decode")  # MLflow has put its folder on sys.path by now
        model = keras.saving.load_model(context.artifacts["model"], compile=False, safe_mode=True)
        self._classes: list[str] = context.model_config["classes"]
        self._shape: tuple[int, int, int] = tuple(model.input_shape[1:])
        signature = [tf.TensorSpec((None, *self._shape), tf.float32)]
        self._probabilities = tf.function(lambda images: model(images, training=False), input_signature=signature)
        self._probabilities(np.zeros((1, *self._shape), np.float32))  # traced now, not for the first who asks

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """An answer an image: `class`, its `probability`, and the `probabilities` of all classes by name.

        Raises:
            MlflowException: it cannot be answered; MLflow's server makes it an answer of status 400.
        """
        images = _unwrap_inputs(model_input[COLUMN].tolist()) if COLUMN in model_input else []
        if not 1 <= len(images) <= MOST_IMAGES:
            got = f"{len(images):,}"
            raise _error(f"a request must hold 1 to {MOST_IMAGES} images, in a column named {COLUMN}, got {got}")
        starts = range(0, len(images), AT_ONCE)
        return [answer for start in starts for answer in self._answers(images[start : start + AT_ONCE], start + 1)]

    def _answers(self, images: Sequence[Any], first: int) -> Iterator[dict[str, Any]]:
        """Those for some of the images, whose first is the request's `first`th, from 1."""
        pixels = np.stack([self._pixels(number, image) for number, image in enumerate(images, first)])  # (b, h, w, c)
        for row in self._probabilities(pixels).numpy():
            best = int(row.argmax())
            yield {
                "class": self._classes[best],
                "probability": float(row[best]),
                "probabilities": dict(zip(self._classes, row.tolist(), strict=True)),
            }

    def _pixels(self, number: int, image: Any) -> np.ndarray:
        """(h, w, c) float32, 0 to 255, of an image that is the request's `number`th, from 1."""
        if isinstance(image, str):
            return self._decoded(number, image)
        if isinstance(image, list | np.ndarray):
            return self._array(number, image)
        raise _error(f"image {number} must be {KINDS}, got {type(image).__name__}")

    def _decoded(self, number: int, text: str) -> np.ndarray:
        """Pixels of a file, stretched to the size of the training images as those were."""
        try:
            file = base64.b64decode(text.partition("base64,")[2] or text, validate=True)  # without data:image/png;
        except ValueError as error:
            raise _error(f"image {number} must be {KINDS}: its text is no base64: {error}") from None
        try:
            image = self._decoding.read_image(io.BytesIO(file))
        except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file leads them into
            reason = str(self._decoding.describe_error(error))
            raise _error(f"image {number} must be {KINDS}: its file cannot be read: {reason}") from None
        return np.asarray(self._decoding.resize_to(image, self._shape), np.float32)

    def _array(self, number: int, values: Any) -> np.ndarray:
        height, width, channels = self._shape
        rule = f"image {number} must be an array of height {height}, width {width} and {channels} channel(s), 0 to 255"
        try:
            pixels = np.array(values.tolist() if isinstance(values, np.ndarray) else values, np.float32)
        except (TypeError, ValueError, OverflowError):
            raise _error(f"{rule}, got rows of unequal length or what is no number") from None
        if pixels.shape != self._shape:
            raise _error(f"{rule}, got the shape {', '.join(map(str, pixels.shape))}")
        if not ((pixels >= 0) & (pixels <= 255)).all():
            raise _error(f"{rule}, got {pixels.min():g} to {pixels.max():g}")
        return pixels


def _unwrap_inputs(cells: list[Any]) -> list[Any]:
    """The images: MLflow makes one row of `{"inputs": {"image": [text, text]}}`."""
    if len(cells) == 1 and isinstance(cells[0], list) and all(isinstance(part, str) for part in cells[0]):
        return cells[0]
    return cells


def _error(message: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(" ".join(message.split()))


set_model(Classifier())
