"""A trained network as a SavedModel, which TensorFlow runs, and as a LiteRT model, which phones and boards run."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from pipeline.runtime.streams import quiet_stderr
from pipeline.serving.export.comparison import Predict

INPUT, OUTPUT = "images", "probabilities"
SIGNATURE = "serving_default"
# What is known of a model, as JSON, beside its classes
METADATA_FILE, LABELS_FILE = "model.json", "labels.txt"


def write_saved_model(model: keras.Model, folder: Path, *, metadata: dict[str, Any]) -> None:
    """Write a SavedModel with one signature, from `images` to `probabilities`, and its metadata as an asset.

    Args:
        model: Raw pixels (b, h, w, c), 0 to 255 -> probabilities (b, classes).
        folder: What to write.
        metadata: What else is to be known of the model, such as the names of its classes.
    """
    with TemporaryDirectory() as temporary:
        module = _with_signature(model)
        texts = {METADATA_FILE: json.dumps(metadata, indent=2), LABELS_FILE: _labels(metadata)}
        for name, text in texts.items():
            file = Path(temporary) / name
            file.write_text(text, encoding="utf-8")
            setattr(module, name.partition(".")[0], tf.saved_model.Asset(str(file)))
        tf.saved_model.save(module, str(folder), signatures={SIGNATURE: module.predict})


def load_saved_model(folder: Path) -> Predict:
    """Return a function from images (n, h, w, c) to probabilities (n, classes), run by TensorFlow on the CPU."""
    with tf.device("CPU:0"):
        signature = tf.saved_model.load(str(folder)).signatures[SIGNATURE]

    def predict(images: npt.NDArray) -> npt.NDArray[np.float32]:
        with tf.device("CPU:0"):
            return signature(**{INPUT: tf.constant(images, tf.float32)})[OUTPUT].numpy()

    return predict


def write_litert(
    model: keras.Model,
    file: Path,
    *,
    metadata: dict[str, Any],
    quantize: bool = False,
    representative: npt.NDArray | None = None,
) -> None:
    """Write a LiteRT model (.tflite), at whose end a ZIP archive holds its classes and metadata.

    That is where LiteRT's own tools keep such files, and runtimes skip it.

    Args:
        model: Raw pixels (b, h, w, c), 0 to 255 -> probabilities (b, classes).
        file: What to write.
        metadata: What else is to be known of the model, such as the names of its classes.
        quantize: Round weights to 8 bits; input and output stay float32.
        representative: Images (n, h, w, c) by which activations are rounded to 8 bits too. None leaves them float32.
    """
    module = _with_signature(model, frozen=True)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.predict.get_concrete_function()], module)
    if quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if representative is not None:
        images = representative.astype(np.float32)

        def batches() -> Iterator[dict[str, npt.NDArray]]:
            for image in images:
                yield {INPUT: image[None]}

        converter.representative_dataset = batches
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    with quiet_stderr(), warnings.catch_warnings():
        # of TensorFlow's own interpreter, with which it observes the activations
        warnings.simplefilter("ignore")
        file.write_bytes(converter.convert())
    with ZipFile(file, "a") as archive:
        archive.writestr(LABELS_FILE, _labels(metadata))
        archive.writestr(METADATA_FILE, json.dumps(metadata, indent=2))


def load_litert(file: Path) -> Predict:
    """Return a function from images (n, h, w, c) to probabilities (n, classes), run by LiteRT on the CPU."""
    # not above: an extra, which a SavedModel does not need
    from ai_edge_litert.interpreter import Interpreter

    # the first call says on standard error what it is accelerated by
    with quiet_stderr():
        runner = Interpreter(model_path=str(file)).get_signature_runner(SIGNATURE)
        runner(**{INPUT: np.zeros(runner.get_input_details()[INPUT]["shape"], np.float32)})
    return lambda images: runner(**{INPUT: images.astype(np.float32)})[OUTPUT]


def _with_signature(model: keras.Model, *, frozen: bool = False) -> Any:
    """Return a module whose `predict` is the network as one graph with named input and output.

    Args:
        model: The network.
        frozen: Make its weights constants of the graph. LiteRT would leave variables without their values.
    """
    pixels = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name=INPUT)
    call = tf.function(lambda images: model(images, training=False), input_signature=[pixels], autograph=False)
    module = tf.Module()
    if frozen:
        constant = convert_variables_to_constants_v2(call.get_concrete_function())
        call = lambda images: constant(images)[0]  # noqa: E731 - it replaces the function above
    else:
        module.network = model
    module.predict = tf.function(lambda images: {OUTPUT: call(images)}, input_signature=[pixels], autograph=False)
    return module


def _labels(metadata: dict[str, Any]) -> str:
    """Return the names of the classes, one a line; a name that has several lines becomes one."""
    return "".join(f"{' '.join(str(name).split())}\n" for name in metadata["classes"])
