"""Register a run's model as a version in MLflow's registry, and decide whether it becomes the champion."""

import errno
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pandas as pd
from mlflow.entities import LoggedModel, LoggedModelStatus

from pipeline.config.commands import parse_model_uri
from pipeline.config.monitor import metric_words, sign
from pipeline.evaluation import bootstrap
from pipeline.evaluation.significance import mcnemar_exact
from pipeline.runtime.text import format_metric
from pipeline.tracking.client import ModelVersion, NotFound, Run, TrackingClient, TrackingError
from pipeline.tracking.models import CALIBRATED, SERVED
from pipeline.tracking.query import PREDICTIONS_FILE, read_predictions
from pipeline.tracking.tags import Tag

# Aliases: the champion is the version to serve, the challenger the newest one that was not proved to be better.
CHAMPION, CHALLENGER = "champion", "challenger"
# A version replaces the champion if so great a difference between equally good models is rarer than this.
ALPHA = 0.05


class AliasDecision(NamedTuple):
    """Which alias a version gets, and why."""

    alias: str
    reason: str


def register_version(client: TrackingClient, run_id: str, *, name: str, tags: Mapping[str, str]) -> None:
    """Make the served model of a run a version of a registered model, once, and give it an alias.

    Called again, as after an answer of MLflow that was lost, it finds the version and decides anew. Two runs that
    register under one name at the same moment may both be compared with the same champion: MLflow's registry has no
    compare-and-set.

    Args:
        client: The registry's.
        run_id: The run, which gets tags that name the version and its alias.
        name: Of the registered model.
        tags: Of the version.

    Raises:
        FileNotFoundError: The run has no model to register.
    """
    run = client.get_run(run_id)
    version = _find_or_create_version(client, run, name, tags)
    champion = _find_champion(client, name)
    if champion and champion.version == version.version:
        # an earlier call came so far
        decision = AliasDecision(CHAMPION, version.tags.get(Tag.REASON, ""))
    else:
        decision = _decide(client, run, version, champion)
        client.set_model_version_tag(name, version.version, Tag.REASON, decision.reason)
        client.set_alias(name, decision.alias, version.version)
    client.log_batch(
        run_id,
        tags={
            Tag.REGISTERED: f"models:/{name}/{version.version}",
            Tag.REGISTERED_ALIAS: decision.alias,
            Tag.REGISTERED_REASON: decision.reason,
        },
    )


def pin_version(client: TrackingClient, uri: str) -> str:
    """Return a model's URI with the number of the version that its alias, or latest, names now.

    A training that registers its model may give an alias to another version at any moment; a number stays with one
    model. A URI without a version, or of one that is not found, is returned as it is, for `find_model` to refuse.
    """
    try:
        version = find_version(client, uri, None)
    except TrackingError:
        return uri
    return f"models:/{version.name}/{version.version}" if version else uri


def find_version(client: TrackingClient, uri: str, registered: str | None) -> ModelVersion | None:
    """Return the version of a registered model that a model's URI names, or else the one that its run has registered.

    Args:
        client: The registry's.
        uri: Of a model.
        registered: URI of the version that the run has registered, and that may have been deleted since; None if it has
            none.
    """
    parts = parse_model_uri(uri)
    if "alias" in parts:
        return client.get_model_version_by_alias(parts["name"], parts["alias"])
    if "version" in parts:
        return client.get_model_version(parts["name"], parts["version"])
    return registered_version(client, registered)


def registered_version(client: TrackingClient, uri: str | None) -> ModelVersion | None:
    """Return the version at models:/NAME/NUMBER; None if there is none, or it has been deleted since."""
    if uri is None:
        return None
    name, _, number = uri.removeprefix("models:/").rpartition("/")
    try:
        return client.get_model_version(name, number)
    except NotFound:
        return None


def register_calibrated(client: TrackingClient, run_id: str, *, name: str, version: str, temperature: str) -> None:
    """Make the calibrated model of a run a version of a registered model, once, with the aliases of another version.

    It predicts the same classes as that one, so that nothing has to be compared. Called again, it finds the version.

    Args:
        client: The registry's.
        run_id: The run, which gets a tag that names the version.
        name: Of the registered model.
        version: The version of the same run whose model is calibrated.
        temperature: It, and what it was fitted on, in words.

    Raises:
        FileNotFoundError: The run has no calibrated model whose files are stored.
        ValueError: The version is of another run.
    """
    model = _ready_model(client, client.get_run(run_id), CALIBRATED)
    base = client.get_model_version(name, version)
    if base.run_id != run_id:
        raise ValueError(f"version {version} of {name} must be of run {run_id}, got one of run {base.run_id}")
    found = _find_version_of(client, name, model)
    if found is None:
        # the loss is of the probabilities before the calibration; what counts predicted classes stays the same
        copied = {tag: value for tag, value in base.tags.items() if tag != "test_loss"}
        tags = {
            **copied,
            Tag.VERSION_RUN: run_id,
            Tag.TEMPERATURE: temperature,
            Tag.CALIBRATED_FROM: f"version {version}",
            Tag.REASON: f"version {version} with calibrated probabilities",
        }
        found = client.create_model_version(name, model, run_id, tags=tags)
    for alias in base.aliases:
        client.set_alias(name, alias, found.version)
    client.log_batch(run_id, tags={Tag.REGISTERED_CALIBRATED: f"models:/{name}/{found.version}"})


def describe(tags: Mapping[str, str]) -> str | None:
    """Describe the version that a run's tags name, in one sentence; None if the run has none."""
    if Tag.REGISTERED not in tags:
        return None
    return f"{tags[Tag.REGISTERED]} is the {tags[Tag.REGISTERED_ALIAS]}: {tags[Tag.REGISTERED_REASON]}"


def compare_predictions(
    new: pd.DataFrame, champion: pd.DataFrame, *, champion_name: str, monitor: str
) -> AliasDecision:
    """Decide on the test images that both models have predicted.

    By accuracy McNemar's exact test decides, by another metric the paired bootstrap: whether the interval of the
    difference leaves out zero.

    Args:
        new: Columns image, label and predicted, by loss also probability_of_class, a row a test image.
        champion: The champion's.
        champion_name: How the reason names the champion.
        monitor: The metric of validation that the new model was chosen by.
    """
    # copies of an image count once: a network answers all of them alike
    columns = ["image", "label"]
    new, champion = new.drop_duplicates(columns), champion.drop_duplicates(columns)
    both = new.merge(champion, on=columns, suffixes=("_new", "_champion"))
    if both.empty:
        return AliasDecision(CHALLENGER, f"not comparable with {champion_name}: they have no test images in common")
    images = f"{len(both):,} test images that both predicted (of its {len(new):,})"
    if monitor == "val_accuracy":
        return _decide_by_mcnemar(both, champion_name, images)
    return _decide_by_bootstrap(both, champion_name, images, monitor)


def _decide_by_mcnemar(both: pd.DataFrame, champion_name: str, images: str) -> AliasDecision:
    new_correct = both["predicted_new"] == both["label"]
    champion_correct = both["predicted_champion"] == both["label"]
    new_only, champion_only = int((new_correct & ~champion_correct).sum()), int((~new_correct & champion_correct).sum())
    p = mcnemar_exact(new_only, champion_only)
    if p >= ALPHA:
        alias, verdict = CHALLENGER, "within noise of"
    elif new_only > champion_only:
        alias, verdict = CHAMPION, "better than"
    else:
        alias, verdict = CHALLENGER, "worse than"
    return AliasDecision(
        alias,
        f"{verdict} {champion_name}: of {images}, it alone is right on {new_only:,}, the champion alone on "
        f"{champion_only:,} (McNemar's exact test, p = {p:.2g})",
    )


def _decide_by_bootstrap(both: pd.DataFrame, champion_name: str, images: str, monitor: str) -> AliasDecision:
    metric = monitor.replace("val_", "test_")
    columns = ("predicted", bootstrap.PROBABILITY)
    tables = [both.rename(columns={f"{name}_{model}": name for name in columns}) for model in ("new", "champion")]
    # unless both have it, the column of the one has no ending
    if metric == "test_loss" and f"{bootstrap.PROBABILITY}_new" not in both:
        return AliasDecision(CHALLENGER, f"not comparable with {champion_name}: a run has logged no probabilities")
    value, of_champion = (bootstrap.measure(metric, table) for table in tables)
    first, second = (bootstrap.resample(metric, table) for table in tables)
    low, high = bootstrap.percentile_interval(first - second)
    if low <= 0 <= high:
        alias, verdict = CHALLENGER, "within noise of"
    elif sign(monitor) * low > 0:
        alias, verdict = CHAMPION, "better than"
    else:
        alias, verdict = CHALLENGER, "worse than"
    return AliasDecision(
        alias,
        f"{verdict} {champion_name}: on {images}, it has a {metric_words(metric)} of {format_metric(metric, value)}, "
        f"the champion one of {format_metric(metric, of_champion)} (paired bootstrap: a difference of "
        f"{format_metric(metric, low)} to {format_metric(metric, high)} at 95 %)",
    )


def _find_or_create_version(client: TrackingClient, run: Run, name: str, tags: Mapping[str, str]) -> ModelVersion:
    """Return the run's version of a registered model, which is created if there is none."""
    run_id = run.info.run_id
    model = _ready_model(client, run, SERVED)
    client.create_registered_model(name)
    if found := _find_version_of(client, name, model):
        return found
    return client.create_model_version(name, model, run_id, tags={Tag.VERSION_RUN: run_id, **tags})


def _ready_model(client: TrackingClient, run: Run, name: str) -> LoggedModel:
    """Return the logged model of a run, or raise FileNotFoundError if it has none whose files are stored."""
    model = client.find_logged_model(run, name)
    if model is None or model.status != LoggedModelStatus.READY:
        raise FileNotFoundError(errno.ENOENT, f"run {run.info.run_id} has stored no model {name} to register")
    return model


def _find_version_of(client: TrackingClient, name: str, model: LoggedModel) -> ModelVersion | None:
    """Return the version of a registered model that a logged model has become; a run may have logged several."""
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{model.source_run_id}'")
    return next((version for version in versions if version.source == f"models:/{model.model_id}"), None)


def _find_champion(client: TrackingClient, name: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except NotFound:
        return None


def _decide(client: TrackingClient, run: Run, version: ModelVersion, champion: ModelVersion | None) -> AliasDecision:
    """Decide which alias a version gets."""
    if champion is None:
        return AliasDecision(CHAMPION, "there was no champion")
    champion_name = f"version {champion.version}, the champion"
    if version.tags.get(Tag.CLASSES_DIGEST) != champion.tags.get(Tag.CLASSES_DIGEST):
        return AliasDecision(CHALLENGER, f"not comparable with {champion_name}: it has other classes")
    monitor = run.data.params.get("monitor", "val_accuracy")
    if monitor == "val_loss" and Tag.TEMPERATURE in champion.tags:
        # a loss that is better than the one before the calibration may be worse than that of what is served
        reason = "its probabilities are calibrated, and those that its run has logged are not"
        return AliasDecision(CHALLENGER, f"not comparable with {champion_name}, by loss: {reason}")
    predictions = _fetch_predictions(client, run.info.run_id)
    champion_predictions = _fetch_predictions(client, champion.run_id)
    if predictions is None or champion_predictions is None:
        reason = f"a run has no {PREDICTIONS_FILE}, or does not exist any more"
        return AliasDecision(CHALLENGER, f"not comparable with {champion_name}: {reason}")
    return compare_predictions(
        predictions,
        champion_predictions,
        champion_name=champion_name,
        monitor=monitor,
    )


def _fetch_predictions(client: TrackingClient, run_id: str | None) -> pd.DataFrame | None:
    """Return a run's predictions of its test images; None if it has logged none, or has been deleted for good."""
    try:
        if not run_id or PREDICTIONS_FILE not in client.list_artifacts(run_id):
            return None
    except NotFound:
        return None
    with TemporaryDirectory() as folder:
        return read_predictions(client.download_artifact(run_id, PREDICTIONS_FILE, Path(folder)))
