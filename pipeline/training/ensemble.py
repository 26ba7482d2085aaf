"""The ensemble of a search's finalists: compared with the winner on validation images, evaluated on the test set."""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.config.monitor import DIRECTIONS
from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset
from pipeline.evaluation import bootstrap
from pipeline.evaluation.significance import mcnemar_exact
from pipeline.model.conv_mixer import build_stock_model
from pipeline.model.ensemble import build_ensemble, ensemble_members
from pipeline.tracking.run import TrackedRun
from pipeline.training.checkpoint import read_weights
from pipeline.training.fit import evaluation_batches
from pipeline.training.results import (
    evaluate_on_test_set,
    log_trained_model,
    log_validation_predictions,
    register_model,
)


def load_ensemble(members: Sequence[TrainingConfig], dataset: Dataset, weights: Path) -> keras.Model:
    """Return the ensemble of networks whose weights stand in a file one after another."""
    arrays = read_weights(weights)
    models = []
    for config in members:
        model = build_stock_model(config.model, dataset.image_shape, len(dataset.classes))
        own = len(model.weights)
        model.set_weights(arrays[:own])
        arrays = arrays[own:]
        models.append(model)
    return build_ensemble(models)


def measure_ensemble(
    run: TrackedRun,
    config: TrainingConfig,
    members: Sequence[TrainingConfig],
    dataset: Dataset,
    weights: Path,
    *,
    metric: str,
) -> dict[str, float]:
    """Log an ensemble, and compare it on the validation images with its first network, the winner of the search.

    Args:
        run: The run of the ensemble.
        config: The winner's settings.
        members: Those of all networks.
        dataset: Their data.
        weights: File with the weights of all networks, one after another.
        metric: By which the two are compared.

    Returns:
        Each metric of the validation images, `winner_` and that metric of the winner's network alone, `p_value` of the
        difference, and the number of parameters.
    """
    ensemble = load_ensemble(members, dataset, weights)
    log_trained_model(run, ensemble, config, dataset)
    log_validation_predictions(run, ensemble, config, dataset)
    batches = evaluation_batches(config, dataset, dataset.validation)
    labels = dataset.validation.labels[dataset.validation.rows]
    of_ensemble, of_winner = (model.predict(batches, verbose=0) for model in (ensemble, ensemble_members(ensemble)[0]))
    results = validation_metrics(of_ensemble, labels)
    results |= {f"winner_{name}": value for name, value in validation_metrics(of_winner, labels).items()}
    results["p_value"] = compare(metric, of_ensemble, of_winner, labels)
    results["parameters"] = ensemble.count_params()
    run.log_results(results)
    return results


def evaluate_ensemble(
    run: TrackedRun, config: TrainingConfig, members: Sequence[TrainingConfig], dataset: Dataset, weights: Path
) -> dict[str, float]:
    """Log the results on the test set of an ensemble that takes the winner's place, and have it registered.

    Args:
        run: The run of the ensemble.
        config: The winner's settings.
        members: Those of all networks.
        dataset: Their data.
        weights: File with the weights of all networks, one after another.
    """
    ensemble = load_ensemble(members, dataset, weights)
    log_trained_model(run, ensemble, config, dataset)
    results = evaluate_on_test_set(run, ensemble, config, dataset)
    if config.register_as:
        results["parameters"] = ensemble.count_params()
        results["latency_ms"] = register_model(run, ensemble, config, dataset, results)
    run.log_results(results)
    return results


def validation_metrics(probabilities: npt.NDArray, labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return the metrics of validation that a training may be judged by."""
    table = _predictions(probabilities, labels)
    return {name: bootstrap.measure(name, table) for name in DIRECTIONS}


def compare(metric: str, first: npt.NDArray, second: npt.NDArray, labels: npt.NDArray[np.int64]) -> float:
    """Return the p-value of the difference between two models' predictions of the same images, two-sided.

    Args:
        metric: By which they are compared: accuracy by McNemar's test, the others by the paired bootstrap.
        first: Probabilities (n, classes).
        second: Those of the other one.
        labels: (n,).
    """
    if metric != "val_accuracy":
        values = [bootstrap.resample(metric, _predictions(probabilities, labels)) for probabilities in (first, second)]
        return bootstrap.p_value(values[0] - values[1])
    is_first, is_second = (probabilities.argmax(axis=1) == labels for probabilities in (first, second))
    return mcnemar_exact(int((is_first & ~is_second).sum()), int((~is_first & is_second).sum()))


def _predictions(probabilities: npt.NDArray, labels: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Return what the metrics need of the table of predictions that a run logs."""
    of_label = probabilities[np.arange(len(labels)), labels]
    return pd.DataFrame({"label": labels, "predicted": probabilities.argmax(axis=1), bootstrap.PROBABILITY: of_label})
