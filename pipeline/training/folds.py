"""Cross-validation: a network for each fold, trained on the other folds, and all of them together as one model."""

import gc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import keras
import tensorflow as tf

from pipeline.config.monitor import DIRECTIONS, metric_words
from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset
from pipeline.runtime.console import Console
from pipeline.runtime.errors import Diverged
from pipeline.runtime.text import format_metric
from pipeline.tracking.fold_runs import end_fold_run, open_fold_run
from pipeline.tracking.run import TrackedRun
from pipeline.training.callbacks import CheckpointSaver, ProgressReporter
from pipeline.training.checkpoint import Checkpoint, TrainingState
from pipeline.training.checkpoint_manager import CheckpointManager
from pipeline.training.cross_validation import CrossValidation
from pipeline.training.fit import TrainingResult, fit
from pipeline.training.initial_weights import InitialWeights
from pipeline.training.results import log_history
from pipeline.training.teacher import Teacher


def best_metrics(result: TrainingResult) -> dict[str, float]:
    """Return the metrics of the validation images, if there are any, at the best epoch, and that epoch."""
    known = [name for name in DIRECTIONS if name in result.history]
    values = {f"best_{name}": result.history[name][result.best_epoch - 1] for name in known}
    return values | {"best_epoch": result.best_epoch}


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
    teacher: Teacher | None,
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
        teacher: What teaches each network.
        strategy: How each batch is shared among devices.
    """
    folds = CrossValidation(config, dataset)
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
                teacher=teacher,
                strategy=strategy,
                progress_bar=console.is_terminal,
            )
        except Diverged as error:
            raise Diverged(f"fold {number} of {len(dataset.folds)}: {error}") from None
        folds.add(result.model, best_metrics(result))
        if is_open:
            log_history(fold_run, config, result)
            fold_run.log_results({**folds.best[-1], "seconds": sum(result.history["epoch_seconds"])})
            end_fold_run(run, fold_run)
            manager.upload_final()
        # a network and what is compiled for it refer to each other
        del result
        gc.collect()
        console.print(describe_fold(config, folds))
    return folds


def describe_fold(config: TrainingConfig, folds: CrossValidation) -> str:
    """Return the line that the terminal shows of the fold that was trained last."""
    best, of_all, metric = folds.best[-1], folds.metrics(), f"best_{config.monitor}"
    number = len(folds.best)
    line = f"fold {number}/{config.folds}  {metric_words(metric)} {format_metric(metric, best[metric])}"
    line += f" at epoch {best['best_epoch']:.0f}"
    if number > 1:
        line += f"; mean of {number} folds {format_metric(metric, of_all[metric], of_all[f'{metric}_sd'])}"
    return line
