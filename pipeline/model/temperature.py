"""Fold a temperature into a network, which then predicts calibrated probabilities.

`pipeline.evaluation.calibration` fits the temperature.
"""

import keras
from keras import layers

from pipeline.model.ensemble import ensemble_members


def fold_temperature(model: keras.Model, temperature: float) -> keras.Model:
    """Return a copy of a model whose logits are divided by a temperature.

    Weights and bias of the last layer are divided, so that the copy has the same layers. An ensemble has no logits: of
    the mean of its networks' probabilities the logarithms are divided, and a softmax follows.

    Args:
        model: Of stock layers, ending in a dense layer with softmax, or an ensemble of such.
        temperature: Above 0.
    """
    copied = keras.models.clone_model(model)
    copied.set_weights(model.get_weights())
    if ensemble_members(model):
        # float32 whatever the global policy is, as the mean is
        logits = layers.Rescaling(1 / temperature, dtype="float32", name="temperature")(keras.ops.log(copied.output))
        probabilities = layers.Softmax(dtype="float32", name="calibrated")(logits)
        return keras.Model(copied.input, probabilities, name=f"{model.name}_calibrated")
    head = copied.layers[-1]
    head.set_weights([weight / temperature for weight in head.get_weights()])
    return copied
