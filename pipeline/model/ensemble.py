"""An ensemble of trained networks as one Keras model, whose probabilities are the mean of theirs."""

from collections.abc import Sequence

import keras
from keras import layers


def build_ensemble(models: Sequence[keras.Model]) -> keras.Model:
    """Return one model from raw pixels (b, height, width, channels) to the mean probabilities (b, classes) float32.

    Each model becomes a layer `member1`, `member2` and so on, with a copy of its weights. The ensemble has stock layers
    only and is saved, loaded and served like any other model.

    Args:
        models: Two or more of stock layers and of the same input and output shapes.

    Raises:
        ValueError: There are fewer than two, or their shapes differ.
    """
    shapes = {(model.input_shape, model.output_shape) for model in models}
    if len(models) < 2 or len(shapes) > 1:
        raise ValueError(f"an ensemble needs two or more models of one input and output shape, got {sorted(shapes)}")
    images = keras.Input(models[0].input_shape[1:], name="images")
    members = [_copy(model, name=f"member{number}") for number, model in enumerate(models, start=1)]
    # float32 whatever the global policy is, as the members' last layers are
    probabilities = layers.Average(dtype="float32", name="mean")([member(images) for member in members])
    return keras.Model(images, probabilities, name=f"ensemble_of_{len(models)}")


def ensemble_members(model: keras.Model) -> list[keras.Model]:
    """Return the models that an ensemble is the mean of, in their order; none if the model is no ensemble."""
    return [layer for layer in model.layers if isinstance(layer, keras.Model)]


def _copy(model: keras.Model, *, name: str) -> keras.Model:
    """Return a model with the same layers and weights under another name, as the names of layers are unique."""
    copied = keras.Model.from_config(model.get_config() | {"name": name})
    copied.set_weights(model.get_weights())
    return copied
