"""Timing of training steps and predictions."""

from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf

from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.training import benchmark

TINY = TrainingConfig.build(
    {"dataset": "digits", "filters": 4, "depth": 1, "kernel_size": 3, "batch_size": 50, "epochs": 1}
    | {"precision": "float32", "jit_compile": False, "train_examples": 100}
)


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(dataset="digits", train_examples=100), seed=0)


def test_time_training_step_with_few_images_takes_full_batches(digits, monkeypatch):
    monkeypatch.setattr(benchmark, "SECONDS", 1e9)
    monkeypatch.setattr(benchmark, "MAX_REPETITIONS", 10)
    shapes = []
    monkeypatch.setattr(
        keras.Model, "train_on_batch", lambda model, images, labels: shapes.append((images.shape, labels.shape))
    )
    seconds = benchmark.time_training_step(TINY, digits)
    assert seconds.keys() == {"step_seconds", "tracing_seconds"}
    assert shapes == [((50, 8, 8, 1), (50, 10))] * 12  # two are not counted


def test_time_training_step_includes_the_teacher_where_it_has_weight(digits, monkeypatch):
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    columns = []
    monkeypatch.setattr(keras.Model, "train_on_batch", lambda model, images, labels: columns.append(labels.shape[1]))
    teacher = SimpleNamespace(build=lambda *_: lambda batch: (batch[0], tf.concat([batch[1], batch[1]], axis=-1)))
    for weight in (0.5, 0.0):
        benchmark.time_training_step(TINY.model_copy(update={"teacher_weight": weight}), digits, teacher)
    assert columns == [20] * 5 + [10] * 5


def test_time_inference_predicts_one_image_at_a_time(digits, monkeypatch):
    shapes = []
    call = keras.Model.__call__
    monkeypatch.setattr(
        keras.Model, "__call__", lambda self, images, **more: shapes.append(images.shape) or call(self, images, **more)
    )
    assert 0 < benchmark.time_inference(TINY, digits) < 10_000
    assert shapes[-1] == (1, 8, 8, 1) and shapes.count((1, 8, 8, 1)) == 1, "it is traced once, and then compiled"


def test_times_are_of_predictions_that_autograph_does_not_convert(digits, monkeypatch, converted):
    """It would only slow tracing down."""
    results = []
    monkeypatch.setattr(benchmark, "median_seconds", lambda call: results.append(call()) or 0.001)
    benchmark.time_inference(TINY, digits)
    (probabilities,) = results
    assert probabilities.shape == (1, 10) and probabilities.sum() == pytest.approx(1)
    assert "time_prediction.<locals>.<lambda>" not in converted
    monkeypatch.setattr(keras.Model, "train_on_batch", lambda model, *batch: None)

    def teach(batch):
        return batch

    config = TINY.model_copy(update={"teacher_weight": 0.5})
    benchmark.time_training_step(config, digits, SimpleNamespace(build=lambda *given: teach))
    assert teach.__qualname__ not in converted


def test_time_training_step_compiles_the_network_of_the_settings_for_a_constant_learning_rate(digits, monkeypatch):
    compiled, built = [], []
    compile_model = benchmark.compile_model
    monkeypatch.setattr(benchmark, "compile_model", lambda *given: compiled.append(given) or compile_model(*given))
    monkeypatch.setattr(benchmark, "median_seconds", lambda call: 0.25)
    monkeypatch.setattr(keras.Model, "train_on_batch", lambda model, *batch: None)
    config = TINY.model_copy(update={"precision": "mixed_bfloat16", "teacher_weight": 0.5, "learning_rate": 0.25})
    teacher = SimpleNamespace(build=lambda *given: built.append(given) or (lambda batch: batch))
    try:
        benchmark.time_training_step(config, digits, teacher)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    ((model, used, rate),) = compiled
    assert used is config and (model.input_shape, model.output_shape) == ((None, 8, 8, 1), (None, 10))
    assert [float(rate(step)) for step in (0, 7)] == [0.25, 0.25]
    assert built == [(config, digits)]


def test_time_inference_of_folds_times_the_mean_of_as_many_networks(digits, monkeypatch):
    counts = []
    build = benchmark.build_ensemble
    monkeypatch.setattr(benchmark, "build_ensemble", lambda models: counts.append(len(models)) or build(models))
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    benchmark.time_inference(TINY.model_copy(update={"folds": 3}), digits)
    assert counts == [3]


def test_median_seconds_ignores_the_first_call_and_one_slow_call(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])

    def call():
        calls.append(1)
        clock[0] += {1: 100.0, 3: 9.0}.get(len(calls), 0.5)

    assert benchmark.median_seconds(call) == 0.5
    assert len(calls) == 1 + benchmark.MIN_REPETITIONS


@pytest.mark.parametrize(("seconds", "calls"), [(0.25, 8), (0.001, 200), (10.0, 3)])
def test_median_seconds_repeats_for_two_seconds_from_3_to_200_times(monkeypatch, seconds, calls):
    clock, made = [0.0], []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])

    def call():
        made.append(1)
        clock[0] += seconds

    assert benchmark.median_seconds(call) == pytest.approx(seconds)
    assert len(made) == 1 + calls


def test_times_are_of_the_whole_and_of_a_step(digits, monkeypatch):
    monkeypatch.setattr(benchmark, "median_seconds", lambda call: 0.25)
    assert benchmark.time_inference(TINY, digits) == 250
    seconds = benchmark.time_training_step(TINY, digits)
    assert seconds["step_seconds"] == 0.25 and 0.05 < seconds["tracing_seconds"] < 300
