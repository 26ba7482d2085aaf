"""Training on several devices: the results equal those of one device with the same batches.

TensorFlow divides a process's processor only before it has touched it, so the trainings are a process of their own.
"""

import json
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

TRAIN = """
import json, sys
import keras, numpy as np, tensorflow as tf
# Optimizing the graphs takes longer than these trainings
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
processor, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
from pipeline.config.training import DataConfig
from pipeline.data.dataset import load_dataset
from pipeline.config.training import TrainingConfig
from pipeline.training.callbacks import CheckpointSaver
from pipeline.training.fit import fit
from pipeline.training.results import serving_model

digits = load_dataset(DataConfig(dataset="digits", train_examples=212), seed=0)
settings = {
    "dataset": "digits", "filters": 8, "depth": 1, "kernel_size": 3, "epochs": 2, "batch_size": 50, "translation": 1,
    "learning_rate": 0.01, "batch_norm_momentum": 0.5, "precision": "float32", "jit_compile": False,
    "fast_layers": False,
}

def train(config, strategy, start=None):
    states = []
    fitted = fit(config, digits, [CheckpointSaver(states.append)], strategy=strategy, start=start)
    images = digits.test.take(np.arange(40))[0].astype(np.float32)
    return fitted, states, serving_model(fitted.model, config, digits)(images)

# Keras' default for logical processors crashes in synchronized batch norms
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())

def compare(changes):
    config = TrainingConfig.build(settings | changes)
    one, _, predictions = train(config, None)
    two, states, two_predictions = train(config, mirrored)
    resumed, _, resumed_predictions = train(config, mirrored, states[0])
    names = ("loss", "accuracy", "val_loss", "val_macro_f1")
    return {
        "history": [[result.history[name] for name in names] for result in (one, two, resumed)],
        "differences": [
            float(np.abs(others - predictions).max()) for others in (two_predictions, resumed_predictions)
        ],
    }

print(json.dumps([compare(changes) for changes in json.loads(sys.argv[1])]))
"""
CHANGES = {
    "plain": {},
    "clipped, in groups of steps": {"clip_norm": 0.1, "steps_per_execution": 2},
    "clipped, Muon, averaged": {"clip_norm": 0.1, "optimizer": "muon", "ema_momentum": 0.8},
}


@pytest.fixture(scope="module")
def trainings():
    """Return the histories and differences of the trainings by their changes; one process runs them all."""
    command = [sys.executable, "-c", TRAIN, json.dumps(list(CHANGES.values()))]
    completed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert completed.returncode == 0, completed.stderr[-3000:]
    return dict(zip(CHANGES, json.loads(completed.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("changes", CHANGES)
def test_training_on_two_devices_equals_one_device_with_the_same_batches(trainings, changes):
    for name, one, two, resumed in zip(
        ("loss", "accuracy", "val_loss", "val_macro_f1"), *trainings[changes]["history"], strict=True
    ):
        assert two == pytest.approx(one, rel=1e-3), name
        assert resumed == pytest.approx(two, rel=1e-5), name
    assert max(trainings[changes]["differences"]) < 1e-3
