"""A side of step.py in Keras: `plain` and `stock` are the example's layers, anything else is this project's."""

import json
import sys
from importlib.metadata import version

import numpy as np
from turns import SIDE, take_turns

from pipeline.runtime.cpu import prefer_onednn


def main(way: str, model: dict[str, int]) -> None:
    """Take turns at training this model."""
    if way != "plain":
        prefer_onednn()
    import keras
    import tensorflow as tf

    from pipeline.model.conv_mixer import conv_mixer
    from pipeline.runtime import device as devices

    if way == "plain":
        devices.keep_freed_memory = lambda: False
    device = devices.select_device("one")
    auto = devices.precision_for(device)
    ours = way not in {"plain", "stock"}
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(auto if way == "auto" else "float32")
    batch = model.pop("batch")
    fast = ours and devices.fast_layers_for(device)
    trained = conv_mixer((32, 32, 3), 10, **model, batch_norm_momentum=0.9, fast_layers=fast)
    trained.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=1e-4),
        loss="categorical_crossentropy",
        jit_compile=ours and devices.jit_compile_for(device),
    )
    random = np.random.default_rng(0)
    images = tf.constant(random.integers(0, 256, (batch, 32, 32, 3)).astype(np.uint8))
    labels = tf.one_hot(random.integers(0, 10, batch), 10)
    precision = keras.config.dtype_policy().compute_dtype
    square = tf.ones((SIDE, SIDE), precision)
    versions = f"TensorFlow {version('tensorflow')}, Keras {version('keras')}"

    def product() -> float:
        float(tf.matmul(square, square)[0, 0])  # a number on the host: the device is done
        return 2.0 * SIDE**3

    told = {"device": str(device), "auto_precision": auto, "versions": versions, "precision": precision}
    take_turns(told, lambda: float(trained.train_on_batch(images, labels)), product)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
