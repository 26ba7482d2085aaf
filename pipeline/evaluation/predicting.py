"""A logged model -> a function from images to probabilities."""

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.corruptions import Images
from pipeline.evaluation.measuring import Predict
from pipeline.logged_model import LoggedModel

BATCH = 256  # images: more are no faster


def predictor(model: LoggedModel) -> Predict:
    """The model's probabilities, traced once: `Model.predict` sets up a pipeline anew for each call."""
    pixels = tf.TensorSpec((None, *model.image_shape), tf.float32)
    call = tf.function(lambda images: model.model(images, training=False), input_signature=[pixels])

    def predict(images: Images) -> npt.NDArray[np.float32]:
        batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        return np.concatenate([call(batch.astype(np.float32)).numpy() for batch in batches])

    return predict
