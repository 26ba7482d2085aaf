"""Cross-validation: a network for each fold, trained on the other folds, and all of them together as one model."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.config.monitor import DIRECTIONS, metric_words
from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset
from pipeline.model.ensemble import build_ensemble
from pipeline.runtime.console import Console
from pipeline.runtime.errors import Diverged
from pipeline.runtime.text import format_metric
from pipeline.tracking.fold_runs import end_fold_run, open_fold_run
from pipeline.tracking.run import TrackedRun
from pipeline.training.callbacks import CheckpointSaver, ProgressReporter
from pipeline.training.checkpoint import Checkpoint, TrainingState
from pipeline.training.checkpoint_manager import CheckpointManager
from pipeline.training.fit import TrainingResult, evaluation_batches, fit
from pipeline.training.initial_weights import InitialWeights
from pipeline.training.results import log_history, serving_model


@dataclass
class CrossValidation:
    """The folds that have been trained so far."""

    dataset: Dataset
    probabilities: npt.NDArray[np.float32]  # (images, classes), of `dataset.out_of_fold`, each by its fold's network
    networks: list[keras.Model] = field(default_factory=list)  # of stock layers
    best: list[dict[str, float]] = field(default_factory=list)  # metrics of each fold's best epoch

    @classmethod
    def of(cls, dataset: Dataset) -> "CrossValidation":
        """Return one without a trained fold."""
        return cls(dataset, np.zeros((len(dataset.out_of_fold), len(dataset.classes)), np.float32))

    def add(self, config: TrainingConfig, result: TrainingResult) -> None:
        """Add the next fold: its network, its predictions of the images that it was not trained on, its metrics."""
        fold = self.dataset.fold(len(self.networks) + 1)
        positions = np.searchsorted(self.dataset.out_of_fold.rows, fold.validation.rows)
        batches = evaluation_batches(config, fold, fold.validation)
        self.probabilities[positions] = result.model.predict(batches, verbose=0)
        self.networks.append(serving_model(result.model, config, fold))
        self.best.append(best_metrics(result))

    def metrics(self) -> dict[str, float]:
        """Return mean and standard deviation of each metric over the folds."""
        return mean_and_sd(self.best)

    def model(self) -> keras.Model:
        """Return the model whose probabilities are the mean of those of all folds' networks."""
        return build_ensemble(self.networks)


def best_metrics(result: TrainingResult) -> dict[str, float]:
    """Return the metrics of the validation images, if there are any, at the best epoch, and that epoch."""
    known = [name for name in DIRECTIONS if name in result.history]
    values = {f"best_{name}": result.history[name][result.best_epoch - 1] for name in known}
    return values | {"best_epoch": result.best_epoch}


def mean_and_sd(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric of the folds and, of two or more, their standard deviation as `<metric>_sd`."""
    summary = {}
    for name in folds[0]:
        values = [fold[name] for fold in folds]
        summary[name] = mean(values)
        if len(values) > 1:
            summary[f"{name}_sd"] = stdev(values)
    return summary


class FoldCheckpoints:
    """The checkpoints of all folds of a run, each of which is kept until the run has finished.

    Args:
        config: The run's settings.
        fingerprint: Of its data set.
    """

    def __init__(self, config: TrainingConfig, *, fingerprint: str) -> None:
        self._config = config
        self._fingerprint = fingerprint
        self._managers: list[CheckpointManager] = []

    def open(self, run_id: str) -> CheckpointManager:
        """Return the manager of the next fold's checkpoints."""
        self._managers.append(CheckpointManager(run_id, self._config, fingerprint=self._fingerprint))
        return self._managers[-1]

    def newest(self) -> Path | None:
        """Return a checkpoint from which the run can be resumed on this machine, or None."""
        return next((path for manager in reversed(self._managers) if (path := manager.newest())), None)

    def upload_final(self) -> None:
        """Upload the newest checkpoint of a run that is asked to stop, as far as a short time allows."""
        if self._managers:
            self._managers[-1].upload_final()

    def clear(self) -> None:
        """Remove all checkpoints of the run, here and among the artifacts."""
        for manager in self._managers:
            manager.clear()


def train_folds(
    run: TrackedRun,
    config: TrainingConfig,
    dataset: Dataset,
    checkpoints: FoldCheckpoints,
    *,
    log_start: Callable[[TrackedRun, Dataset, TrainingState | None], None],
    report_epoch: Callable[[TrackedRun, int, dict[str, float]], None],
    console: Console,
    resumed: Mapping[int, Checkpoint],
    initial_weights: InitialWeights | None,
    strategy: tf.distribute.Strategy,
) -> CrossValidation:
    """Train the network of each fold in a run of its own, below that of all folds.

    Args:
        run: The run of all folds.
        config: Its settings, resolved.
        dataset: Its data.
        checkpoints: Those of its folds.
        log_start: Logs to a fold's run what its training starts from: its data, and a state that it is resumed from.
        report_epoch: Logs an epoch to a fold's run, and prints it.
        console: Shows which fold is trained.
        resumed: By fold, the checkpoints of those that an interrupted process has begun. One that has trained all of
            its epochs is not trained again.
        initial_weights: What each network starts from.
        strategy: How each batch is shared among devices.
    """
    folds = CrossValidation.of(dataset)
    for number in range(1, len(dataset.folds) + 1):
        state = resumed[number].state if number in resumed else None
        fold_run = open_fold_run(run, number, name=f"{run.name}, fold {number} of {len(dataset.folds)}")
        is_open = run.fold_run_id == fold_run.id
        data = dataset.fold(number)
        console.print(
            f"fold {number}/{len(dataset.folds)}  {len(data.train):,} training and {len(data.validation):,} validation "
            "images" + ("" if is_open else ", trained before")
        )
        manager = checkpoints.open(fold_run.id)
        callbacks: list[keras.callbacks.Callback] = [CheckpointSaver(manager.save)]
        if is_open:
            log_start(fold_run, data, state)
            callbacks.append(ProgressReporter(partial(report_epoch, fold_run)))
        try:
            result = fit(
                config,
                data,
                callbacks,
                start=state,
                initial_weights=initial_weights,
                strategy=strategy,
                progress_bar=console.is_terminal,
            )
        except Diverged as error:
            raise Diverged(f"fold {number} of {len(dataset.folds)}: {error}") from None
        folds.add(config, result)
        if is_open:
            log_history(fold_run, config, result)
            fold_run.log_results(folds.best[-1] | {"seconds": sum(result.history["epoch_seconds"])})
            end_fold_run(run, fold_run)
            manager.upload_final()
        # a network and what is compiled for it refer to each other
        del result
        gc.collect()
        console.print(describe_fold(number, folds, monitor=config.monitor))
    return folds


def describe_fold(number: int, folds: CrossValidation, *, monitor: str) -> str:
    """Return the line that the terminal shows of a fold that has been trained."""
    best, of_all, metric = folds.best[-1], folds.metrics(), f"best_{monitor}"
    line = f"fold {number}/{len(folds.dataset.folds)}  {metric_words(metric)} {format_metric(metric, best[metric])}"
    line += f" at epoch {best['best_epoch']:.0f}"
    if number > 1:
        line += f"; mean of {number} folds {format_metric(metric, of_all[metric], of_all[f'{metric}_sd'])}"
    return line
