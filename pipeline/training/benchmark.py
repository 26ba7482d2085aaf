"""Time a training step and a single prediction; what the network has learned does not matter for that."""

import itertools
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset
from pipeline.model.conv_mixer import build_model, build_stock_model
from pipeline.model.ensemble import build_ensemble
from pipeline.training.fit import compile_model, make_training_batches
from pipeline.training.schedules import LearningRateSchedule
from pipeline.training.teacher import Teacher

# duration of a measurement, after tracing and compiling
SECONDS = 2.0
MIN_REPETITIONS, MAX_REPETITIONS = 3, 200


def time_training_step(config: TrainingConfig, dataset: Dataset, teacher: Teacher | None = None) -> dict[str, float]:
    """Time a training step, its input included, and the first step with everything that comes before it.

    Args:
        config: Resolved, with no setting left at auto.
        dataset: Its training images are used.
        teacher: The model of `config.teacher`.

    Returns:
        `step_seconds`, a median, and `tracing_seconds`.
    """
    began = time.perf_counter()
    keras.config.set_dtype_policy(config.precision)
    model = build_model(config, dataset.image_shape, len(dataset.classes))
    learning_rate = LearningRateSchedule("constant", peak=config.learning_rate, steps=1, warmup_fraction=0)
    compile_model(model, config, learning_rate)
    epoch = make_training_batches(config, dataset).on_host()
    batches: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(epoch))
    if teacher and config.teacher_weight:
        teach = tf.function(teacher.build(config, dataset), autograph=False, reduce_retracing=True)
        batches = map(teach, batches)
    model.train_on_batch(*next(batches))
    tracing_seconds = time.perf_counter() - began
    step_seconds = median_seconds(lambda: model.train_on_batch(*next(batches)))
    return {"step_seconds": step_seconds, "tracing_seconds": tracing_seconds}


def time_inference(config: TrainingConfig, dataset: Dataset) -> float:
    """Return the median time in milliseconds from one image to its probabilities, for the model as it is served.

    With folds that is the mean of as many networks.
    """
    networks = [
        build_stock_model(config.model, dataset.image_shape, len(dataset.classes)) for _ in range(config.folds or 1)
    ]
    return time_prediction(build_ensemble(networks) if config.folds else networks[0])


def time_prediction(model: keras.Model) -> float:
    """Return the median time in milliseconds from one image to its probabilities."""
    predict = tf.function(lambda images: model(images, training=False), autograph=False)
    image = tf.constant(np.random.default_rng(0).uniform(0, 255, (1, *model.input_shape[1:])), tf.float32)
    # the first call traces
    predict(image)
    return 1000 * median_seconds(lambda: predict(image).numpy())


def median_seconds(call: Callable[[], object]) -> float:
    """Return the median time of a call, repeated for `SECONDS`."""
    # the first call after tracing may still be slow
    call()
    seconds: list[float] = []
    while len(seconds) < MIN_REPETITIONS or (sum(seconds) < SECONDS and len(seconds) < MAX_REPETITIONS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return median(seconds)
