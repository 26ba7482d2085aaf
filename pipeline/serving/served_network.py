"""Run the network of a served model: by ONNX Runtime where that is installed and proven equal, else by Keras.

Served models contain a copy of this file, so it imports only their requirements.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException

RUNTIME_VARIABLE = "CONVMIXER_SERVING_RUNTIME"
RUNTIMES = ("auto", "onnx", "keras")
# below MLflow's logger, which writes to the server's terminal
LOGGER = logging.getLogger("mlflow.served_model")
ERRORS = 3  # onnxruntime's level of messages


@dataclass(frozen=True)
class Network:
    """A network in memory."""

    runtime: str  # what runs it, for people
    shape: tuple[int, int, int]  # of an image: height, width, channels
    runners: int  # how many batches it computes at a time
    predict: Callable[[np.ndarray], np.ndarray]  # images (n, h, w, c) float32, 0 to 255 -> probabilities (n, classes)


def load_network(artifacts: Mapping[str, str]) -> Network:
    """Load the network that CONVMIXER_SERVING_RUNTIME names, and run it once, so that no request waits for that.

    Args:
        artifacts: The files of the model: `model`, the Keras archive, and `onnx` if its answers were proven equal.

    Raises:
        MlflowException: The variable names no runtime, or one that cannot be had.
    """
    wanted = os.environ.get(RUNTIME_VARIABLE) or "auto"
    if wanted not in RUNTIMES:
        raise _error(f"{RUNTIME_VARIABLE} must be {', '.join(RUNTIMES)}, got {wanted}")
    missing = _missing_for_onnx(artifacts)
    if wanted == "onnx" and missing:
        raise _error(f"{RUNTIME_VARIABLE}=onnx needs an ONNX model and onnxruntime: {missing}")
    if wanted == "keras" or missing:
        network, reason = _load_keras(artifacts["model"]), missing or f"{RUNTIME_VARIABLE}=keras"
    else:
        network, reason = _load_onnx(artifacts["onnx"]), "proven equal to Keras when the model was saved"
    network.predict(np.zeros((1, *network.shape), np.float32))
    LOGGER.info("The network runs on %s (%s)", network.runtime, reason)
    return network


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _missing_for_onnx(artifacts: Mapping[str, str]) -> str:
    """Return why the network cannot be run by ONNX Runtime; empty if it can."""
    if "onnx" not in artifacts:
        return "the model was saved without ONNX"
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed"
    return ""


def _load_onnx(file: str) -> Network:
    import onnxruntime

    cores = available_cores()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS
    options.intra_op_num_threads, options.inter_op_num_threads = cores, 1
    # Threads that wait would otherwise take the time of those that decode: 23 ms of a core for an image instead of 13.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    given, [output] = session.get_inputs()[0], [each.name for each in session.get_outputs()]

    def predict(images: np.ndarray) -> np.ndarray:
        [probabilities] = session.run([output], {given.name: images})
        return np.asarray(probabilities)

    runtime = f"ONNX Runtime {onnxruntime.__version__}, {cores} cores"
    return Network(runtime, tuple(given.shape[1:]), cores, predict)


def _load_keras(archive: str) -> Network:
    # The server's environment may name another backend, or flags on which TensorFlow aborts.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    for name in ("TF_USE_LEGACY_KERAS", "TF_XLA_FLAGS", "XLA_FLAGS"):
        os.environ.pop(name, None)
    # a GPU that there may be is not this process' alone
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    import keras
    import tensorflow as tf

    if keras.config.backend() != "tensorflow":
        raise _error(
            f"the model needs Keras on TensorFlow, got {keras.config.backend()}, with which this process has "
            "imported it: start Python with KERAS_BACKEND=tensorflow"
        )
    model: Any = keras.saving.load_model(archive, compile=False, safe_mode=True)
    shape: tuple[int, int, int] = tuple(model.input_shape[1:])
    pixels = tf.TensorSpec((None, *shape), tf.float32)
    traced = tf.function(lambda images: model(images, training=False), input_signature=[pixels], autograph=False)
    # TensorFlow divides each batch among the cores, and is faster with fewer, larger batches.
    return Network(f"Keras {keras.__version__}", shape, 1, lambda images: traced(images).numpy())


def _error(message: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(message)
