"""How long a training step and one prediction take; what the network has learned does not matter for that."""

import itertools
import time
from collections.abc import Callable
from statistics import median

import keras
import numpy as np
import tensorflow as tf

from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset
from pipeline.model.conv_mixer import build_model, build_stock_model
from pipeline.training.fit import compile_model, training_batches
from pipeline.training.schedules import LearningRateSchedule

SECONDS = 2.0  # of measuring, after tracing and compiling
LEAST, MOST = 3, 200  # measurements


def time_training_step(config: TrainingConfig, data: Dataset) -> dict[str, float]:
    """Median time of a training step, input included, and the time of the first with all that comes before it.

    Args:
        config: resolved, with nothing left at auto.

    Returns:
        step_seconds and tracing_seconds.
    """
    began = time.perf_counter()
    keras.config.set_dtype_policy(config.precision)
    model = build_model(config, data.image_shape, len(data.classes))
    compile_model(
        model, config, LearningRateSchedule("constant", peak=config.learning_rate, steps=1, warmup_fraction=0)
    )
    batches = itertools.chain.from_iterable(itertools.repeat(training_batches(config, data)))
    model.train_on_batch(*next(batches))
    tracing_seconds = time.perf_counter() - began
    step_seconds = _median_seconds(lambda: model.train_on_batch(*next(batches)))
    return {"step_seconds": step_seconds, "tracing_seconds": tracing_seconds}


def time_inference(config: TrainingConfig, data: Dataset) -> float:
    """Median time, in milliseconds, from one image to its probabilities, by the network as it would be served."""
    model = build_stock_model(config.model, data.image_shape, len(data.classes))
    predict = tf.function(lambda images: model(images, training=False))
    image = tf.constant(np.random.default_rng(0).uniform(0, 255, (1, *data.image_shape)), tf.float32)
    predict(image)  # traces
    return 1000 * _median_seconds(lambda: predict(image).numpy())


def _median_seconds(call: Callable[[], object]) -> float:
    call()  # the first after tracing may still be a slow one
    took: list[float] = []
    while len(took) < LEAST or (sum(took) < SECONDS and len(took) < MOST):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return median(took)
