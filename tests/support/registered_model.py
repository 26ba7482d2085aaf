"""A registered model that tells red, green and blue images apart, made without training."""

from functools import partial
from typing import NamedTuple

import keras
import mlflow
import numpy as np

from pipeline.serving.packaging import save_keras, save_pyfunc
from pipeline.tracking.lifecycle import start_run
from pipeline.tracking.tags import Role
from tests.support.stores import tracking_store

NAME = "colours"
CLASSES = ("red", "green", "blue")
SHAPE = (8, 6, 3)  # height, width, channels
RESIZE = "crop"  # how images of another size are resized


class Registered(NamedTuple):
    """The run of a registered model."""

    uri: str  # of the tracking store
    run_id: str
    model: keras.Model


def build_model() -> keras.Model:
    """Return a model of stock layers that predicts the brightest channel."""
    layers = keras.layers
    dense = layers.Dense(3, activation="softmax", name="probabilities")
    model = keras.Sequential([keras.Input(SHAPE), layers.Rescaling(1 / 255), layers.GlobalAveragePooling2D(), dense])
    dense.set_weights([10 * np.eye(3), np.zeros(3)])
    # as a trained one is
    model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy")
    return model


def register_model(folder):
    """Log a finished run in a tracking store of its own; its model is version 1 and the champion."""
    model = build_model()
    with tracking_store(folder, "registering") as uri:
        # the default one has its artifacts in the folder of this process
        experiment = mlflow.get_experiment_by_name("registering")
        with start_run(role=Role.RUN, experiment_id=experiment.experiment_id) as run:
            save = partial(save_keras, model=model, classes=CLASSES, resize=RESIZE)
            run.log_model(partial(save, example=np.zeros((1, *SHAPE), np.float32)))
            serve = partial(save_pyfunc, model=model, classes=CLASSES, resize=RESIZE)
            run.register_model(
                NAME,
                partial(serve, images=np.zeros((1, *SHAPE), np.uint8)),
                classes=CLASSES,
                tags={"test_accuracy": "0.9"},
            )
        assert run.describe_registration() == f"models:/{NAME}/1 is the champion: there was no champion"
        return Registered(uri, run.id, model)
