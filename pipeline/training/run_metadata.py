"""What a run logs when it begins: settings, code, libraries, data, and epochs that an interrupted process has left."""

import json
from collections.abc import Mapping

import keras
import tensorflow as tf

from pipeline.config.recipe import to_yaml
from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset, Split
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.tags import Tag, code_version_tags
from pipeline.training.checkpoint import TrainingState
from pipeline.training.description import CONFIG_FILE, REFIT, Change, run_name
from pipeline.training.initial_weights import InitialWeights
from pipeline.training.teacher import Teacher


def log_run_metadata(
    run: TrackedRun,
    recipe: str,
    config: TrainingConfig,
    dataset: Dataset,
    changes: Mapping[str, Change],
) -> str:
    """Log what the result depends on: settings, code, libraries and data.

    Returns:
        The run's name.
    """
    name = run.set_name(run_name(recipe, changes, dataset, refit=config.refit))
    log_settings(run, recipe, config)
    run.log_text(CONFIG_FILE, to_yaml(config))
    run.set_tags(
        code_version_tags()
        | {
            Tag.RECIPE_CHANGES: json.dumps(changes),
            Tag.TENSORFLOW: tf.__version__,
            Tag.KERAS: keras.__version__,
            Tag.DATA_FINGERPRINT: dataset.fingerprint,
            Tag.DATA_DUPLICATES: str(dataset.duplicates),
        }
        | ({Tag.REFIT: REFIT} if config.refit else {})
    )
    log_splits(run, dataset)
    return name


def log_settings(run: TrackedRun, recipe: str, config: TrainingConfig) -> None:
    """Log the recipe and all settings as parameters."""
    run.log_params({"recipe": recipe} | {setting: config.text(setting) for setting in TrainingConfig.model_fields})


def log_splits(run: TrackedRun, dataset: Dataset) -> None:
    """Log the images that a model is trained, validated and tested on, as inputs of a run."""
    if dataset.folds:
        # which of them validate differs from fold to fold, and is logged to their runs
        splits = {"train": dataset.out_of_fold, "test": dataset.test}
    else:
        splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    log_datasets(run, dataset, splits)


def log_datasets(run: TrackedRun, dataset: Dataset, splits: Mapping[str, Split]) -> None:
    """Log splits of a data set, by what they are for, as inputs of a run."""
    for context, split in splits.items():
        if not len(split):
            continue
        run.log_dataset(
            name=f"{dataset.name} {context}",
            source=dataset.source,
            digest=split.digest,
            context=context,
            shape=dataset.image_shape,
            class_sizes=dict(zip(dataset.classes, split.class_sizes(len(dataset.classes)), strict=True)),
        )


def log_fold_start(
    recipe: str, config: TrainingConfig, run: TrackedRun, fold: Dataset, start: TrainingState | None
) -> None:
    """Log to the run of a fold what its training starts from: settings and data, and epochs that were not logged."""
    log_settings(run, recipe, config)
    log_datasets(run, fold, {"train": fold.train, "validation": fold.validation})
    replay_logged_epochs(run, start)


def log_origin(run: TrackedRun, initial_weights: InitialWeights) -> None:
    """Log which trained model the run starts from, as its input where MLflow knows the model."""
    origin = {Tag.WEIGHTS_FROM: initial_weights.origin}
    if initial_weights.run_id:
        origin[Tag.WEIGHTS_RUN] = initial_weights.run_id
    if initial_weights.digest:
        origin[Tag.WEIGHTS_DIGEST] = initial_weights.digest
    run.set_tags(origin)
    if initial_weights.model_id:
        run.log_input_model(initial_weights.model_id)


def log_teacher(run: TrackedRun, teacher: Teacher) -> None:
    """Log which trained model teaches the run's, as its input."""
    run.set_tags({Tag.TEACHER: teacher.origin, Tag.TEACHER_RUN: teacher.network.run_id})
    run.log_input_model(teacher.network.model_id)


def replay_logged_epochs(run: TrackedRun, start: TrainingState | None) -> str:
    """Log those epochs of a resumed run that the interrupted process finished and could not log any more.

    Returns:
        The run's name.
    """
    name = run.load_logged_state()
    if start:
        for epoch in range(1, start.epoch + 1):
            run.log_epoch(epoch, {metric: values[epoch - 1] for metric, values in start.history.items()})
    return name
