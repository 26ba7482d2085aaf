"""Makes the model of a run a version in MLflow's registry, and decides whether it becomes the champion."""

import errno
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipeline.evaluation.significance import mcnemar_exact
from pipeline.tracking.models import SERVED, find_logged_model
from pipeline.tracking.tags import Tag

CHAMPION, CHALLENGER = "champion", "challenger"  # aliases
ALPHA = 0.05  # a champion goes if so great a difference is rarer than this between equals
PREDICTIONS = "test_predictions.csv"


class AliasDecision(NamedTuple):
    """What a version becomes."""

    alias: str
    reason: str


def register_version(client: MlflowClient, run_id: str, *, name: str, tags: dict[str, str]) -> None:
    """Register the served model of a run, once; a version that is there already is judged again.

    Whoever registers under the same name at the same moment may judge by the same champion: the registry cannot
    compare and set.
    """
    run = client.get_run(run_id)
    version = _version(client, run, name, tags)
    champion = _champion(client, name)
    if champion and champion.version == version.version:  # an earlier try came so far
        verdict = AliasDecision(CHAMPION, version.tags.get(Tag.REASON, ""))
    else:
        verdict = _judge(client, run, version, champion)
        client.set_model_version_tag(name, version.version, Tag.REASON, verdict.reason)
        client.set_registered_model_alias(name, verdict.alias, version.version)
    outcome = {
        Tag.REGISTERED: f"models:/{name}/{version.version}",
        Tag.REGISTERED_ALIAS: verdict.alias,
        Tag.REGISTERED_REASON: verdict.reason,
    }
    client.log_batch(run_id, tags=[RunTag(tag, value) for tag, value in outcome.items()])


def describe(tags: Mapping[str, str]) -> str | None:
    """What a run's tags tell of its version, in words; None: it has none."""
    return (
        f"{tags[Tag.REGISTERED]} is the {tags[Tag.REGISTERED_ALIAS]}: {tags[Tag.REGISTERED_REASON]}"
        if Tag.REGISTERED in tags
        else None
    )


def _version(client: MlflowClient, run: Run, name: str, tags: Mapping[str, str]) -> ModelVersion:
    """The run's version, made where there is none yet."""
    run_id = run.info.run_id
    model = find_logged_model(client, run, SERVED)
    if model is None:
        raise FileNotFoundError(errno.ENOENT, f"run {run_id} has no model to register")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    there = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if there:
        return there[0]
    tags = {Tag.VERSION_RUN: run_id, **tags}
    return client.create_model_version(
        name, f"models:/{model.model_id}", run_id, tags=tags, model_id=model.model_id, await_creation_for=0
    )


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    if CHAMPION not in client.get_registered_model(name).aliases:
        return None
    return client.get_model_version_by_alias(name, CHAMPION)


def _judge(client: MlflowClient, run: Run, version: ModelVersion, champion: ModelVersion | None) -> AliasDecision:
    if champion is None:
        return AliasDecision(CHAMPION, "there was no champion")
    than = f"version {champion.version}, the champion"
    if version.tags.get(Tag.CLASSES_DIGEST) != champion.tags.get(Tag.CLASSES_DIGEST):
        return AliasDecision(CHALLENGER, f"not comparable with {than}: it has other classes")
    mine, theirs = _predictions(client, run.info.run_id), _predictions(client, champion.run_id)
    if mine is None or theirs is None:
        return AliasDecision(CHALLENGER, f"not comparable with {than}: a run has left no {PREDICTIONS}, or is gone")
    return compared(mine, theirs, than=than)


def compared(mine: pd.DataFrame, theirs: pd.DataFrame, *, than: str) -> AliasDecision:
    """What the newer of two models becomes, by McNemar's test over the test images that both have seen.

    Args:
        mine: columns image, label and predicted, a row a test image; those of the newer.
        theirs: those of the champion.
        than: who that is, in words.
    """
    which = ["image", "label"]  # once each: a network answers all copies of an image alike
    mine, theirs = mine.drop_duplicates(which), theirs.drop_duplicates(which)
    both = mine.merge(theirs, on=which, suffixes=("_mine", "_theirs"))
    if both.empty:
        return AliasDecision(CHALLENGER, f"not comparable with {than}: they have no test images in common")
    mine_right, theirs_right = both["predicted_mine"] == both["label"], both["predicted_theirs"] == both["label"]
    gained, lost = int((mine_right & ~theirs_right).sum()), int((~mine_right & theirs_right).sum())
    p = mcnemar_exact(gained, lost)
    better = gained > lost and p < ALPHA
    said = "better than" if better else "worse than" if p < ALPHA else "within noise of"
    counted = (
        f"of the {len(both):,} of its {len(mine):,} test images that both were tested on it alone recognizes "
        f"{gained:,}, the champion alone {lost:,} (McNemar's exact test, p = {p:.2g})"
    )
    return AliasDecision(CHAMPION if better else CHALLENGER, f"{said} {than}: {counted}")


def _predictions(client: MlflowClient, run_id: str | None) -> pd.DataFrame | None:
    """What a run has predicted for its test images; None where it has not left that, or has been deleted for good."""
    try:
        left = {file.path for file in client.list_artifacts(run_id)} if run_id else set()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        left = set()
    if PREDICTIONS not in left:
        return None
    kinds = {"image": str, "label": np.int64, "predicted": np.int64}
    with TemporaryDirectory() as folder:
        path = download_artifacts(run_id=run_id, artifact_path=PREDICTIONS, dst_path=folder)
        return pd.read_csv(Path(path), usecols=list(kinds), dtype=kinds)
