"""A registered model that knows red from green from blue, made in a moment as runs make theirs."""

from functools import partial
from typing import NamedTuple

import keras
import numpy as np

from pipeline.serving.packaging import save_keras, save_pyfunc
from pipeline.tracking.run import start_run
from pipeline.tracking.tags import Role
from tests.support.stores import tracking_store

NAME = "colours"
CLASSES = ("red", "green", "blue")
SHAPE = (8, 6, 3)  # height, width, channels


class Registered(NamedTuple):
    uri: str  # of the tracking store
    run_id: str
    model: keras.Model


def network() -> keras.Model:
    """Of stock layers; the brightest channel wins."""
    layers = keras.layers
    dense = layers.Dense(3, activation="softmax", name="probabilities")
    model = keras.Sequential([keras.Input(SHAPE), layers.Rescaling(1 / 255), layers.GlobalAveragePooling2D(), dense])
    dense.set_weights([10 * np.eye(3), np.zeros(3)])
    return model


def registered(folder):
    """A finished run whose model is version 1 and the champion, in a tracking store of its own."""
    model = network()
    with tracking_store(folder, "registering") as uri:
        with start_run(role=Role.RUN) as run:
            run.log_model(partial(save_keras, model=model, example=np.zeros((1, *SHAPE), np.float32), classes=CLASSES))
            run.register_model(
                NAME,
                partial(save_pyfunc, model=model, example=np.zeros(SHAPE, np.uint8), classes=CLASSES),
                classes=CLASSES,
                tags={"test_accuracy": "0.9"},
            )
        assert run.describe_registration() == f"models:/{NAME}/1 is the champion: there was no champion"
        return Registered(uri, run.id, model)
