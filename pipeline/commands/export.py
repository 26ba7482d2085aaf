"""The command `export`: write a logged model in other formats, and keep those that are proven to answer the same.

Each file is loaded by the runtime that it is made for and compared with the Keras model. The files and a table of the
comparison are logged to the MLflow run that trained the model, below exports/, those of its calibrated copy below
exports-calibrated/; another export replaces them.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipeline.commands.unseen_images import load_unseen_images, tags_of_test_access
from pipeline.config.commands import ExportCommand
from pipeline.data.subset import build_subset
from pipeline.runtime.console import Console
from pipeline.runtime.errors import NotEqual
from pipeline.runtime.files import list_files
from pipeline.runtime.imports import slow_imports
from pipeline.runtime.text import count
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.lifecycle import start_run
from pipeline.tracking.model_card import exports_folder
from pipeline.tracking.models import CALIBRATED, find_model, load_model, logged_metadata, resolve_model_uri
from pipeline.tracking.ownership import require_server
from pipeline.tracking.project_run import ProjectRun, close_if_unused
from pipeline.tracking.query import get_training_run
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.tags import Role, Tag

# TensorFlow takes seconds to import, so what uses it is imported inside a function.
if TYPE_CHECKING:
    from pipeline.commands.export_formats import Export

TABLE, METADATA = "exports.csv", "model.json"


def run_export(command: ExportCommand, console: Console) -> "list[Export]":
    """Export a model, log what is kept to the run that trained it, and return what came of each format.

    The export has a run of its own below that run, the one that `mlflow run` opened or a new one.

    Raises:
        NotEqual: A format was refused; the others have been kept.
        UsageError: The model or the images do not exist, cannot be read, or do not go together; or the artifact store
            refuses the files.
    """
    with require_server():
        client = TrackingClient()
        uri = resolve_model_uri(client, command.model)
        logged_model = find_model(client, uri)
        training_run = get_training_run(client, str(logged_model.source_run_id))
        metadata = logged_metadata(client, logged_model)
    training, settings = training_run.run.info, command.settings
    folder = exports_folder(is_calibrated=logged_model.name == CALIBRATED)

    with close_if_unused(ProjectRun.find_below(training.run_id)):
        # the accuracy of the formats on images of the training would mislead
        split = "all" if settings.dataset else "validation"
        dataset = load_unseen_images(
            training_run,
            metadata,
            dataset=settings.dataset,
            split_name=split,
            remedy="a dataset of other images",
        )
        with slow_imports():
            from pipeline.commands.export_formats import describe_model, export_all
        # by its own URI: a training may have given the alias to another model since
        model = load_model(client, str(logged_model.model_uri))
        subset = build_subset(dataset, split, classes=model.classes, image_shape=model.image_shape)
        console.print(
            f"model    {model.model_id} of run {training.run_id} ({training.run_name})",
            f"images   {subset}: {count(min(settings.images, len(subset.split)), 'image')}",
        )
        with start_run(
            role=Role.EXPORT,
            parent=training.run_id,
            experiment_id=training.experiment_id,
            tags={Tag.EXPORT_MODEL: uri, Tag.EXPORT_FORMATS: settings.text("formats")},
        ) as run:
            run.set_name(f"export to {', '.join(settings.formats)}")
            for notice in run.notices:
                console.print(notice)
            if access := tags_of_test_access(dataset, split, training_run, by=run.id):
                client.set_tags(training.run_id, access)
            logged_to = TrackedRun(training.run_id, run.outbox, training_run.run)
            about = json.dumps(describe_model(model), indent=2)
            log = partial(_log, logged_to, folder, about)
            exports = export_all(model, dataset, subset, settings, console, log=log)
            logged_to.log_table(f"{folder}/{TABLE}", _table(exports), view=_table(exports))
            # in an outage the outbox keeps the files; a refusal is final
            logged_to.check_artifacts_accepted()
            logged_to.write_model_card()
            kept = {export.format for export in exports if export.kept}
            # of a format that was tried in several ways, the reason of the last
            refused = {export.format: export.reason for export in exports if export.format not in kept}
            if refused:
                raise NotEqual("; ".join(f"{name} refused: {reason}" for name, reason in refused.items()))

    if pending := run.outbox.pending():
        console.print(pending)
    console.print(f"run      {training.run_id}: {folder} among its artifacts")
    return exports


def _table(exports: "Sequence[Export]") -> pd.DataFrame:
    return pd.DataFrame([vars(export) for export in exports])


def _log(run: TrackedRun, folder: str, metadata: str, file: Path) -> None:
    """Log a file, or a folder with all files in it, and the metadata beside it."""
    for part in list_files(file):
        run.log_file(f"{folder}/{part.relative_to(file.parent).as_posix()}", part)
    # not before: where nothing is kept, the metadata stay those of the files that are there
    run.log_text(f"{folder}/{METADATA}", metadata)
