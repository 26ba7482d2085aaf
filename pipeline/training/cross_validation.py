"""The networks of a cross-validation: what each predicts of the images that it was not trained on, and their mean."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

import keras
import numpy as np
import numpy.typing as npt

from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset
from pipeline.model.conv_mixer import build_stock_model
from pipeline.model.ensemble import build_ensemble
from pipeline.training.fit import evaluation_batches


class CrossValidation:
    """The folds that have been trained so far.

    Attributes:
        probabilities: (images, classes), of `dataset.out_of_fold`, each image's by the network of its fold.
        weights: Of each fold's network.
        best: Of each fold, the metrics of its best epoch.
    """

    def __init__(self, config: TrainingConfig, dataset: Dataset) -> None:
        self._config = config
        self._dataset = dataset
        self.probabilities = np.zeros((len(dataset.out_of_fold), len(dataset.classes)), np.float32)
        self.weights: list[list[npt.NDArray]] = []
        self.best: list[Mapping[str, float]] = []

    def add(self, model: keras.Model, best: Mapping[str, float]) -> None:
        """Add the next fold: its network, whose predictions of the fold's images are kept, and its metrics."""
        fold = self._dataset.fold(len(self.weights) + 1)
        positions = np.searchsorted(self._dataset.out_of_fold.rows, fold.validation.rows)
        batches = evaluation_batches(self._config, fold, fold.validation)
        # not `predict`, which traces a graph for each network, of which TensorFlow warns
        predicted = [model(images, training=False).numpy() for images, _ in batches]
        self.probabilities[positions] = np.concatenate(predicted)
        self.weights.append(model.get_weights())
        self.best.append(best)

    def metrics(self) -> dict[str, float]:
        """Return mean and standard deviation of each metric over the folds."""
        return mean_and_sd(self.best)

    def model(self) -> keras.Model:
        """Return the model whose probabilities are the mean of those of all networks, in stock layers."""
        networks = []
        for weights in self.weights:
            networks.append(
                build_stock_model(self._config.model, self._dataset.image_shape, len(self._dataset.classes))
            )
            networks[-1].set_weights(weights)
        return build_ensemble(networks)


def mean_and_sd(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric of the folds and, of two or more, their standard deviation as `<metric>_sd`."""
    summary = {}
    for name in folds[0]:
        values = [fold[name] for fold in folds]
        summary[name] = mean(values)
        if len(values) > 1:
            summary[f"{name}_sd"] = stdev(values)
    return summary
