"""A worker of step.py that trains with Keras.

Usage: python step_keras.py example|onednn|float32|auto MODEL

- example: the layers of the Keras example, as TensorFlow runs them by default
- onednn: the same layers, with oneDNN's kernels and with freed memory kept
- float32, auto: this project's layers, in that precision
"""

import json
import os
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
from step_worker import MATRIX_SIDE, answer_requests

from pipeline.runtime import device
from pipeline.runtime.environment import set_environment


def main(variant: str, shape: dict[str, Any]) -> None:
    """Build the model of a variant and train it a step at a time.

    Args:
        variant: One of those above.
        shape: Batch size, filters, depth, kernel_size and patch_size.
    """
    # The libraries read it when they are imported.
    set_environment(os.environ)
    if variant == "example":
        del os.environ["TF_ENABLE_ONEDNN_OPTS"]
    import keras
    import tensorflow as tf

    from pipeline.model.conv_mixer import conv_mixer

    if variant == "example":
        device.tune_malloc = lambda: False  # type: ignore[attr-defined] # what select_device calls
    selected = device.select_device("one")
    auto_precision = device.precision_for(selected)
    is_project = variant in {"float32", "auto"}
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(auto_precision if variant == "auto" else "float32")
    batch = shape.pop("batch")
    fast_layers = is_project and device.fast_layers_for(selected)
    model = conv_mixer((32, 32, 3), 10, **shape, batch_norm_momentum=0.9, fast_layers=fast_layers)
    model.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=1e-4),
        loss="categorical_crossentropy",
        jit_compile=is_project and device.jit_compile_for(selected),
    )
    rng = np.random.default_rng(0)
    images = tf.constant(rng.integers(0, 256, (batch, 32, 32, 3)).astype(np.uint8))
    labels = tf.one_hot(rng.integers(0, 10, batch), 10)
    precision = keras.config.dtype_policy().compute_dtype
    matrix = tf.ones((MATRIX_SIDE, MATRIX_SIDE), precision)

    def train_step() -> float:
        return float(model.train_on_batch(images, labels))

    def multiply() -> float:
        # Reading a number on the host waits for the device.
        float(tf.matmul(matrix, matrix)[0, 0])
        return 2.0 * MATRIX_SIDE**3

    properties = {
        "device": str(selected),
        "auto_precision": auto_precision,
        "versions": f"TensorFlow {version('tensorflow')}, Keras {version('keras')}",
        "precision": precision,
    }
    answer_requests(properties, train_step, multiply)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
