"""The test images of a report: which there are, and what this machine has of them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pipeline.data.thumbnails import find_thumbnails
from pipeline.evaluation.report.examples import Model, Strip, add_pictures, choose_examples, have_same_images
from pipeline.evaluation.report.groups import RunRecord
from pipeline.evaluation.report.leaderboard import LeaderboardRow
from pipeline.runtime.text import count
from pipeline.tracking import query
from pipeline.tracking.client import TrackingClient

CANDIDATES = 7  # configurations from which the best two with predictions are taken


class Examples(NamedTuple):
    """Strips of test images, and what a reader must know about them, a sentence each."""

    strips: list[Strip]
    notes: list[str]


def find_examples(
    client: TrackingClient,
    rows: Sequence[LeaderboardRow],
    predictions: Mapping[str, pd.DataFrame],
) -> Examples:
    """Return the test images that tell most about the best two models.

    Args:
        client: Of the tracking store.
        rows: Of the leaderboard.
        predictions: Those that have been fetched, by run id.
    """
    candidates = [(row, run) for row in rows[:CANDIDATES] if row.is_ranked for run in _tested(row)[:1]]
    missing = [run for _, run in candidates if run.id not in predictions]
    tables = {**predictions, **query.fetch_predictions(client, missing)}
    known = [(row, run) for row, run in candidates if run.id in tables][:2]
    if not known:
        return Examples([], ["No test images are shown: no configuration here has predictions of them."])
    models = [_model(row, run, tables[run.id]) for row, run in known]
    notes = []
    if len(models) == 1:
        notes = [f"{models[0].name} alone has predictions of the test images: no second model is compared by image."]
    elif not have_same_images(*models):
        notes = [f"{models[0].name} and {models[1].name} were tested on different images and not compared by image."]
        models = models[:1]
    strips = choose_examples(models)
    shown = {example.image for strip in strips for example in strip.examples}
    thumbnails = find_thumbnails(shown)
    if absent := len(shown - thumbnails.keys()):
        notes.append(f"Pixels of {count(absent, 'image')} are not shown: no data set in this machine's cache has them.")
    dataset = known[0][1].params.get("dataset", "")
    return Examples(add_pictures(strips, thumbnails, lambda name: file_url(dataset, name)), notes)


def file_url(dataset: str, name: str) -> str:
    """Return the URL of a file of a data set in a folder; empty if this machine has no such file in this folder.

    Args:
        dataset: Path of the folder, as a run has recorded it.
        name: Path of the file below it; anybody's text.
    """
    folder = Path(os.path.abspath(os.path.expanduser(dataset)))
    file = Path(os.path.normpath(folder / name))
    return file.as_uri() if file.is_relative_to(folder) and os.path.isfile(file) else ""


def _tested(row: LeaderboardRow) -> list[RunRecord]:
    return [run for run in row.group.runs if "test_accuracy" in run.metrics]


def _model(row: LeaderboardRow, run: RunRecord, table: pd.DataFrame) -> Model:
    seed = f", seed {run.params['seed']}" if run.params.get("seed") else ""
    return Model(f"{row.rank} {row.group.name}{seed}", table)
