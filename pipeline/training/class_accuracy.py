"""The metric that a training is compiled with: accuracy, which also counts the images of each class."""

from typing import Any

import keras
import numpy as np
from keras import ops

from pipeline.evaluation.metrics import ClassCounts


class ClassAccuracy(keras.metrics.CategoricalAccuracy):
    """Accuracy, and for each class the number of its images, of its predictions and of the correct ones among them.

    These are the margins and the diagonal of the confusion matrix, from which recall, balanced accuracy and macro F1
    follow; the whole matrix would need the square of the number of classes at each step.

    Args:
        classes: Their number.
    """

    def __init__(self, classes: int) -> None:
        super().__init__("accuracy")
        # float32 counts exactly up to 16.7 million images of a class
        self.by_class = self.add_variable((3, classes), "zeros", name="by_class")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch.

        Args:
            y_true: One-hot labels (b, classes), or labels and targets (b, 2 classes) as `Teacher` adds them.
            y_pred: Probabilities (b, classes).
            sample_weight: Of the accuracy alone.
        """
        classes = self.by_class.shape[1]
        y_true = y_true[..., :classes]
        super().update_state(y_true, y_pred, sample_weight)
        label, predicted = (
            ops.one_hot(ops.argmax(values, axis=-1), classes, dtype=self.by_class.dtype) for values in (y_true, y_pred)
        )  # (b, classes)
        counts = ops.stack([ops.sum(part, axis=0) for part in (label, predicted, label * predicted)])
        self.by_class.assign_add(counts)

    def reset_state(self) -> None:
        """Begin to count anew; Keras does so before each epoch and each validation."""
        super().reset_state()
        self.by_class.assign(ops.zeros_like(self.by_class))

    def counts(self) -> ClassCounts:
        """Return what has been counted since the metric was last reset."""
        return ClassCounts(*np.array(self.by_class).astype(np.int64))


def class_counts(model: keras.Model) -> ClassCounts:
    """Return what the `ClassAccuracy` that a model was compiled with has counted."""
    metrics = (metric for group in model.metrics for metric in getattr(group, "metrics", ()))
    return next(metric for metric in metrics if isinstance(metric, ClassAccuracy)).counts()
