"""Training on several devices: the results equal those of one device with the same batches.

TensorFlow divides a process's processor only before it has touched it, so the trainings are a process of their own.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.support.paths import ROOT

TRAIN = """
import gc, json, sys
import numpy as np
from pipeline.runtime.imports import slow_imports
with slow_imports():
    import tensorflow as tf
    from pipeline.model.conv_mixer import build_stock_model
    from pipeline.training.callbacks import CheckpointSaver
    from pipeline.training.fit import fit
    from pipeline.training.initial_weights import InitialWeights
    from pipeline.training.results import serving_model
    from pipeline.training.teacher import Teacher
# Tracing leaves objects that are looked through again and again
gc.disable()
# Optimizing the graphs takes longer than these trainings
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
processor, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
from pipeline.config.training import DataConfig
from pipeline.data.dataset import load_dataset
from pipeline.config.training import TrainingConfig

digits = load_dataset(DataConfig(dataset="digits", train_examples=212), seed=0)
settings = {
    "dataset": "digits", "filters": 8, "depth": 1, "kernel_size": 3, "epochs": 2, "batch_size": 50, "translation": 1,
    "learning_rate": 0.01, "batch_norm_momentum": 0.5, "precision": "float32", "jit_compile": False,
    "fast_layers": False,
}

architecture = {"filters": 4, "depth": 1, "kernel_size": 3, "patch_size": 2, "activation": "gelu"}
network = build_stock_model(TrainingConfig.build(settings | architecture), digits.image_shape, 10)
weights = {layer.name: layer.get_weights() for layer in network.layers if layer.weights}
teacher = Teacher(InitialWeights("models:/m-1", weights, architecture | {"batch_norm_epsilon": 1e-3},
                                 classes=digits.classes, image_shape=digits.image_shape))

def train(config, strategy, start=None):
    states = []
    taught_by = teacher if config.teacher else None
    fitted = fit(config, digits, [CheckpointSaver(states.append)], teacher=taught_by, strategy=strategy, start=start)
    images = digits.test.take(np.arange(40))[0].astype(np.float32)
    predictions = serving_model(fitted.model, config, digits)(images)
    return {"history": fitted.history, "predictions": predictions.numpy().tolist()}, states

# Keras' default for logical processors crashes in synchronized batch norms
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
trainings = {}
for name, changes in json.loads(sys.argv[1]).items():
    config = TrainingConfig.build(settings | changes)
    one, _ = train(config, None)
    two, states = train(config, mirrored)
    trainings[name] = {"one": one, "two": two}
trainings[name]["resumed"], _ = train(config, mirrored, states[0])
print(json.dumps(trainings))
"""
# All that takes part in a step at once, as a training takes seconds to trace
ALL = {"clip_norm": 0.1, "optimizer": "muon", "ema_momentum": 0.8, "steps_per_execution": 2, "teacher": "models:/m-1"}
CHANGES = {"plain": {}, "clipped, Muon, averaged, in groups of steps, taught": ALL}


@pytest.fixture(scope="module")
def trainings():
    """Return the trainings on one and two devices by their changes, the last one resumed too; one process runs all."""
    command = [sys.executable, "-c", TRAIN, json.dumps(CHANGES)]
    completed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert completed.returncode == 0, completed.stderr[-3000:]
    return json.loads(completed.stdout.splitlines()[-1])


def check_is_equal(training, expected, *, tolerance):
    for name in ("loss", "accuracy", "val_loss", "val_macro_f1"):
        assert training["history"][name] == pytest.approx(expected["history"][name], rel=tolerance), name
    assert np.abs(np.subtract(training["predictions"], expected["predictions"])).max() < 1e-3


@pytest.mark.parametrize("changes", CHANGES)
def test_training_on_two_devices_equals_one_device_with_the_same_batches(trainings, changes):
    check_is_equal(trainings[changes]["two"], trainings[changes]["one"], tolerance=1e-3)


def test_training_resumed_on_two_devices_equals_one_that_was_not_interrupted(trainings):
    (*_, training) = trainings.values()
    check_is_equal(training["resumed"], training["two"], tolerance=1e-5)
