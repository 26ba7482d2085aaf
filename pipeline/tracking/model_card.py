"""The model card of a run: read what was logged, and put the card among its artifacts and into the registry.

The card itself is `pipeline.evaluation.model_card`'s. It is written at the end of each run that logs a model, and again
by each evaluation. Reading takes a few questions to the server and two small files.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from pipeline.config.training import TrainingConfig
from pipeline.evaluation import bootstrap
from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.model_card import UNKNOWN, CardFacts, ClassResult, DataSplit, write_card
from pipeline.runtime.errors import UsageError
from pipeline.runtime.tables import read_csv_cell
from pipeline.tracking.client import ModelVersion, Run, TrackingClient
from pipeline.tracking.models import CALIBRATED, MODEL, read_mlmodel
from pipeline.tracking.query import PREDICTIONS_FILE, RECALLS_FILE, find_data, get_training_run, read_predictions
from pipeline.tracking.registry import registered_version
from pipeline.tracking.tags import Tag
from pipeline.tracking.test_set_access import access_count

CARD_FILE = "model_card.md"
# MLflow's registry in a database has no room for more
DESCRIPTION_CHARACTERS = 5000
EVALUATIONS = "evaluation/"  # before the names of an evaluation's metrics
CLASS_SIZES = "class_sizes"  # in the profile of a data set: number of images by class
ABOUT_EXPORTS = (".csv", ".json")  # in the folder of exports, besides the models


def write_model_card(client: TrackingClient, run_id: str) -> None:
    """Write the card of a run's model: a file among its artifacts, and the description of each of its versions."""
    run = client.get_run(run_id)
    tags = run.data.tags
    facts = read_facts(client, run)
    cards = []
    for uri in (tags.get(Tag.REGISTERED), tags.get(Tag.REGISTERED_CALIBRATED)):
        if version := registered_version(client, uri):
            of_version = add_version(facts, version, tags)
            if of_version.temperature:
                of_version = replace(of_version, exports=_exports(client, run_id, is_calibrated=True))
            cards.append((version, of_version))
    client.upload_text(run_id, write_card(cards[0][1] if cards else facts), CARD_FILE)
    for version, of_version in cards:
        client.describe_model_version(
            version.name, version.version, write_card(of_version, at_most=DESCRIPTION_CHARACTERS)
        )


def read_facts(client: TrackingClient, run: Run) -> CardFacts:
    """Return what was logged of a run's model."""
    tags, metrics = run.data.tags, run.data.metrics
    params, unusual = _settings(client, run)
    metadata, shape = _about_model(client, run)
    above = find_data(client, run)
    splits, source = _data(above)
    return CardFacts(
        run_id=run.info.run_id,
        run_name=run.info.run_name or "",
        model_uri=f"runs:/{run.info.run_id}/{MODEL}",
        is_registered=False,
        params=params,
        unusual=unusual,
        changes=_changes(tags),
        metrics=metrics,
        lineage=_lineage(tags, params),
        code=_code(tags, above.data.tags),
        classes=metadata.get("classes", ()),
        image_shape=shape,
        resize=str(metadata.get("resize", "")),
        data_name=above.data.tags.get(Tag.DATA, params.get("dataset", "")),
        data_source=source,
        data_fingerprint=above.data.tags.get(Tag.DATA_FINGERPRINT, ""),
        duplicates=above.data.tags.get(Tag.DATA_DUPLICATES, ""),
        splits=splits,
        per_class=_per_class(client, run),
        interval=_interval(client, run, params),
        evaluations=_evaluations(metrics),
        accesses=access_count(tags, run_id=run.info.run_id, tested="test_accuracy" in metrics),
        exports=_exports(client, run.info.run_id, is_calibrated=False),
    )


def exports_folder(*, is_calibrated: bool) -> str:
    """Return the folder among a run's artifacts of what is exported of its model, or of the calibrated copy of that."""
    return f"exports-{CALIBRATED}" if is_calibrated else "exports"


def add_version(facts: CardFacts, version: ModelVersion, tags: Mapping[str, str]) -> CardFacts:
    """Return the facts of a run's model as those of a version of it, but for its exports.

    Args:
        facts: Of the model.
        version: One that the run has registered.
        tags: Of the run.
    """
    return replace(
        facts,
        model_uri=f"models:/{version.name}/{version.version}",
        is_registered=True,
        registry=_registry(version, tags),
        temperature=version.tags.get(Tag.TEMPERATURE, ""),
    )


def _exports(client: TrackingClient, run_id: str, *, is_calibrated: bool) -> list[str]:
    paths = client.list_artifacts(run_id, exports_folder(is_calibrated=is_calibrated))
    return [path for path in paths if not path.endswith(ABOUT_EXPORTS)]


def _settings(client: TrackingClient, run: Run) -> tuple[dict[str, str], dict[str, str]]:
    """Return the settings as they were used, with the recipe's name, and those that are not the defaults."""
    recipe = {name: run.data.params[name] for name in ("recipe",) if name in run.data.params}
    try:
        config = get_training_run(client, run.info.run_id).config
    except UsageError:
        return dict(run.data.params), {}
    names = [name for name in TrainingConfig.model_fields if name in run.data.params]
    defaults = TrainingConfig.build({})
    params = {name: config.text(name) for name in names}
    return recipe | params, {name: text for name, text in params.items() if text != defaults.text(name)}


def _about_model(client: TrackingClient, run: Run) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Return what was logged with a run's model, and (height, width, channels) of its input; empty if it has none."""
    model = client.find_logged_model(run, MODEL)
    if model is None:
        return {}, ()
    about = read_mlmodel(client, model)
    first = about.signature.inputs.inputs[0] if about.signature else None
    return about.metadata or {}, tuple(getattr(first, "shape", ())[1:])


def _data(run: Run) -> tuple[list[DataSplit], str]:
    """Return the splits that a run has logged as its inputs, and where they are from."""
    splits: list[DataSplit] = []
    source = ""
    for one in run.inputs.dataset_inputs if run.inputs else ():
        context = next((tag.value for tag in one.tags if tag.key == MLFLOW_DATASET_CONTEXT), "")
        sizes = _parse(one.dataset.profile).get(CLASS_SIZES) or {}
        splits.append(DataSplit(context, one.dataset.digest, sizes))
        origin = _parse(one.dataset.source)
        source = str(origin.get("uri") or (origin.get("tags") or {}).get("source", ""))
    order = ["train", "validation", "test"]
    return sorted(splits, key=lambda split: order.index(split.context) if split.context in order else 3), source


def _changes(tags: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    changes = _parse(tags.get(Tag.RECIPE_CHANGES))
    return {name: (str(both[0]), str(both[1])) for name, both in changes.items() if len(both) == 2}


def _lineage(tags: Mapping[str, str], params: Mapping[str, str]) -> dict[str, str]:
    """Return what the weights come from, besides this training, in words."""
    origin = tags.get(Tag.WEIGHTS_FROM) or params.get("weights_from", "none")
    details = (tags.get(Tag.WEIGHTS_RUN, ""), "of run {}"), (tags.get(Tag.WEIGHTS_DIGEST, ""), "SHA-256 {}")
    words = [origin, *(form.format(value) for value, form in details if value)]
    lineage = {"weights_from": "random initial weights" if origin == "none" else ", ".join(words)}
    taught_by = tags.get(Tag.TEACHER) or params.get("teacher", "none")
    if taught_by != "none":
        lineage["teacher"] = taught_by + (f", of run {tags[Tag.TEACHER_RUN]}" if Tag.TEACHER_RUN in tags else "")
    if tags.get(Tag.ENSEMBLE):
        lineage["ensemble"] = f"the mean of {tags[Tag.ENSEMBLE]}"
    if params.get("folds", "none") != "none":
        lineage["folds"] = f"the mean of the networks of {params['folds']} folds"
    if Tag.REFIT in tags:
        lineage["refit"] = tags[Tag.REFIT]
    if Tag.STUDY in tags:
        lineage["search"] = f"study {tags[Tag.STUDY]}"
    return lineage


def _code(tags: Mapping[str, str], above: Mapping[str, str]) -> dict[str, str]:
    """Return the commit, the libraries and the device, in words; of a search's runs some are those of the search."""
    tags = {**above, **tags}
    commit = tags.get(Tag.GIT_COMMIT, UNKNOWN)
    if tags.get(Tag.GIT_DIRTY) == "true":
        commit += ", with changes that were not committed"
    known = (("TensorFlow", Tag.TENSORFLOW), ("Keras", Tag.KERAS))
    libraries = [f"{name} {tags[tag]}" for name, tag in known if tag in tags]
    device = [tags[tag] for tag in (Tag.DEVICE, Tag.PRECISION) if tag in tags]
    return {
        "commit": commit,
        "libraries": ", ".join(libraries) or UNKNOWN,
        "trained on": ", ".join(device) or UNKNOWN,
    }


def _registry(version: ModelVersion, tags: Mapping[str, str]) -> dict[str, str]:
    """Return what the registry has of a version of a run's model, in words."""
    found = {
        "version": f"{version.version} of {version.name}",
        "aliases": f"{', '.join(version.aliases) or 'none'}, when this was written",
    }
    if base := version.tags.get(Tag.CALIBRATED_FROM):
        return found | {"calibrated from": base}
    if reason := version.tags.get(Tag.REASON):
        found["registered as"] = f"{tags.get(Tag.REGISTERED_ALIAS, 'a version')}: {reason}"
    if calibrated := tags.get(Tag.REGISTERED_CALIBRATED):
        found["calibrated as"] = calibrated
    return found


def _per_class(client: TrackingClient, run: Run) -> list[ClassResult]:
    table = _read_table(client, run, RECALLS_FILE, _read_per_class)
    return [] if table is None else [ClassResult(*row) for row in table.itertuples(index=False, name=None)]


def _read_per_class(path: Path) -> pd.DataFrame:
    names = ["class", "images", "recall", "precision", "f1"]
    # a class may be called "null" or "nan", so that missing values are recognized in the numbers alone
    missing = {name: [""] for name in names[1:]}
    table = pd.read_csv(path, dtype={"class": str}, keep_default_na=False, na_values=missing)[names]
    return table.assign(**{"class": table["class"].map(read_csv_cell)})


def _interval(client: TrackingClient, run: Run, params: Mapping[str, str]) -> tuple[str, Interval] | None:
    """Return the bootstrap interval of the monitored metric; that of accuracy needs no images."""
    metric = params.get("monitor", "val_accuracy").replace("val_", "test_")
    if metric == "test_accuracy" or metric not in run.data.metrics:
        return None
    table = _read_table(client, run, PREDICTIONS_FILE, read_predictions)
    if table is None or (metric == "test_loss" and bootstrap.PROBABILITY not in table):
        return None
    return metric, bootstrap.percentile_interval(bootstrap.resample(metric, table))


def _evaluations(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the metrics of each evaluation, by the data set and split that it is of."""
    found: dict[str, dict[str, float]] = {}
    for name, value in sorted(metrics.items()):
        if name.startswith(EVALUATIONS):
            images, _, metric = name.removeprefix(EVALUATIONS).rpartition("/")
            found.setdefault(images, {})[metric] = value
    return found


def _read_table(
    client: TrackingClient, run: Run, name: str, read: Callable[[Path], pd.DataFrame]
) -> pd.DataFrame | None:
    """Return a table among a run's artifacts; None if there is none, or it is damaged."""
    with TemporaryDirectory() as folder:
        try:
            return read(client.download(f"{run.info.artifact_uri}/{name}", Path(folder)))
        except Exception:  # noqa: BLE001 - each kind of artifact store raises its own
            return None


def _parse(text: str | None) -> dict[str, Any]:
    """Return a JSON object that was logged, empty if it is something else."""
    try:
        parsed = json.loads(text or "{}")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
