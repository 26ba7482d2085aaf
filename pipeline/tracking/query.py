"""Read training runs back from MLflow: their settings, what a report needs of them, and the tables they have logged."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import NamedTuple, TypeVar, get_args

import numpy as np
import pandas as pd

from pipeline.config.monitor import DIRECTIONS, ResultMetric
from pipeline.config.recipe import from_yaml, read_recipe
from pipeline.config.training import TrainingConfig
from pipeline.evaluation.report.groups import RunRecord
from pipeline.runtime.errors import UsageError
from pipeline.runtime.tables import read_csv_cell
from pipeline.tracking.client import Deleted, NotFound, Run, TrackingClient
from pipeline.tracking.models import split_digests
from pipeline.tracking.tags import Role, Tag, TrialOutcome
from pipeline.tracking.test_set_access import access_count

CONFIG_FILE = "config.yaml"
PREDICTIONS_FILE = "test_predictions.csv"
RECALLS_FILE = "per_class.csv"
KERNELS_FILE = "plots/depthwise_kernels.png"

# Of a run's parameters and metrics those that a report needs: a tenth of what MLflow returns.
SETTINGS = frozenset(TrainingConfig.model_fields)
METRICS = frozenset([*DIRECTIONS, *get_args(ResultMetric), "best_epoch", "parameters", "latency_ms"])
# Roles of runs that train a model; a search, a resumption and a report train none themselves.
TRAINING_ROLES = frozenset([Role.RUN, Role.TRIAL, Role.FINAL, Role.ENSEMBLE])
# Of a run's id and a file's digest in the lineage of a run
ORIGIN_DIGITS = 12
# Downloads at once; each mostly waits for a server, where the artifacts are on one.
DOWNLOAD_THREADS = 8

Content = TypeVar("Content")


class TrainingRun(NamedTuple):
    """A run that trained a model."""

    run: Run
    config: TrainingConfig
    fingerprint: str  # of its data; empty where it is not recorded
    splits: Mapping[str, str] = MappingProxyType({})  # their digests as they were logged, by what they were for

    @property
    def has_validation(self) -> bool:
        """Whether validation images were held out of the training."""
        return self.config.folds is None and not self.config.refit


def get_training_run(client: TrackingClient, run_id: str) -> TrainingRun:
    """Return a run with the settings and the data that it trained with.

    Raises:
        UsageError: It does not exist, has been deleted, or has no settings that this version can read.
    """
    rule = f"a model needs the run that trained it, got one of run {run_id}"
    try:
        run = client.get_active_run(run_id)
    except Deleted as error:
        raise UsageError(f"{rule}: {error}") from None
    except NotFound:
        raise UsageError(f"{rule}, which does not exist any more") from None
    data = find_data(client, run)
    return TrainingRun(
        run, _read_config(client, run), data.data.tags.get(Tag.DATA_FINGERPRINT, ""), split_digests(data)
    )


def _read_config(client: TrackingClient, run: Run) -> TrainingConfig:
    """Return the settings as they were used.

    They are read from config.yaml: the parameters of a run that `mlflow run` opened are logged as a person typed them.
    The runs of a search have no such file, and their parameters are as they were used.
    """
    with TemporaryDirectory() as folder:
        try:
            file = client.download(f"{run.info.artifact_uri}/{CONFIG_FILE}", Path(folder))
        except Exception:  # noqa: BLE001 - each kind of artifact store raises its own
            settings: dict[str, object] = {name: value for name, value in run.data.params.items() if name in SETTINGS}
        else:
            settings = read_recipe(str(file))
    return TrainingConfig.build(settings)


def find_data(client: TrackingClient, run: Run) -> Run:
    """Return the run that has logged a run's data: itself, or of a search's runs the search above them."""
    visited, found = set(), run
    while Tag.DATA_FINGERPRINT not in found.data.tags:
        parent = found.data.tags.get(Tag.PARENT_RUN_ID)
        if not parent or parent in visited:
            return run
        visited.add(parent)
        found = client.get_run(parent)
    return found


def search_run_records(client: TrackingClient, experiment_ids: Sequence[str], where: str) -> Iterator[RunRecord]:
    """Yield the runs of some experiments that match an MLflow filter, the newest first; deleted ones are left out.

    Raises:
        Rejected: MLflow cannot parse the filter.
    """
    return map(to_run_record, client.search_runs(experiment_ids, where))


def to_run_record(run: Run) -> RunRecord:
    """Return what a report needs of a run."""
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    elapsed = (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None
    return RunRecord(
        id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        experiment_id=run.info.experiment_id,
        artifact_uri=run.info.artifact_uri,
        state=_state(run),
        role=tags.get(Tag.ROLE, ""),
        study=tags.get(Tag.STUDY, ""),
        parent=tags.get(Tag.PARENT_RUN_ID, ""),
        params_as_typed=Tag.PROJECT_ENTRY_POINT in tags,
        commit=tags.get(Tag.GIT_COMMIT, ""),
        recipe=params.get("recipe", ""),
        params={name: value for name, value in params.items() if name in SETTINGS},
        metrics={name: value for name, value in metrics.items() if name in METRICS},
        data=tags.get(Tag.DATA, params.get("dataset", "")),
        fingerprint=tags.get(Tag.DATA_FINGERPRINT, ""),
        start_time=run.info.start_time,
        seconds=metrics.get("seconds", elapsed),
        test_set_accesses=access_count(tags, run_id=run.info.run_id, tested="test_accuracy" in metrics),
        is_winner=tags.get(Tag.WINNER) == run.info.run_id,
        models=tuple(_models(tags, params)),
    )


def _models(tags: Mapping[str, str], params: Mapping[str, str]) -> Iterator[str]:
    """Yield which models a training has used, in words; the runs of a search have them as settings alone."""
    weights = tags.get(Tag.WEIGHTS_FROM) or params.get("weights_from", "none")
    if weights != "none":
        digest = tags.get(Tag.WEIGHTS_DIGEST, "")[:ORIGIN_DIGITS]
        yield f"weights from {weights}{_of_run(tags, Tag.WEIGHTS_RUN)}{digest and f', SHA-256 {digest}'}"
    teacher = tags.get(Tag.TEACHER) or params.get("teacher", "none")
    if teacher != "none":
        yield f"taught by {teacher}{_of_run(tags, Tag.TEACHER_RUN)}"


def _of_run(tags: Mapping[str, str], name: str) -> str:
    return f" of run {tags[name][:ORIGIN_DIGITS]}" if name in tags else ""


def _state(run: Run) -> str:
    """Return finished, failed, pruned, stopped or running."""
    if run.info.status == "KILLED":
        return "pruned" if run.data.tags.get(Tag.TRIAL_STATE) == TrialOutcome.PRUNED else "stopped"
    return {"FINISHED": "finished", "FAILED": "failed"}.get(run.info.status, "running")


def is_training(record: RunRecord, *, by_id: bool = False) -> bool:
    """Return whether a run trained a model.

    Of a search's final runs those that only hold the trainings of several seeds did not: they have no seed. The run of
    a fold is a part of another one, and counts only where it is named by its id.
    """
    if by_id and record.role == Role.FOLD:
        return True
    if record.role == Role.FINAL and "seed" not in record.params:
        return False
    return record.role in TRAINING_ROLES


def inherit_data(client: TrackingClient, records: Sequence[RunRecord], known: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the records with the name and the fingerprint of their data filled in.

    Trials do not record their data: their search does, whose run is one or two levels above theirs.

    Args:
        client: Asked for the runs above that are not known.
        records: The records to fill in.
        known: Runs that have been read already, `records` among them.
    """
    by_id: dict[str, RunRecord | None] = {record.id: record for record in known}

    def get(run_id: str) -> RunRecord | None:
        if run_id not in by_id:
            try:
                by_id[run_id] = to_run_record(client.get_run(run_id))
            except NotFound:
                by_id[run_id] = None
        return by_id[run_id]

    def filled_in(record: RunRecord) -> RunRecord:
        ancestor = record
        while not ancestor.fingerprint and ancestor.parent:
            parent = get(ancestor.parent)
            if parent is None or parent.parent == ancestor.id:
                break
            ancestor = parent
        if ancestor is record:
            return record
        return record._replace(data=ancestor.data or record.data, fingerprint=ancestor.fingerprint)

    return [filled_in(record) for record in records]


def fetch_configs(client: TrackingClient, records: Iterable[RunRecord]) -> dict[str, TrainingConfig]:
    """Return the settings as they were used, from config.yaml, by run id; runs without such a file are left out."""
    return _fetch_artifacts(client, records, CONFIG_FILE, from_yaml)


def fetch_predictions(client: TrackingClient, records: Iterable[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return tables of test images, see `read_predictions`, by run id."""
    return _fetch_artifacts(client, records, PREDICTIONS_FILE, read_predictions)


def fetch_recalls(client: TrackingClient, records: Iterable[RunRecord]) -> "dict[str, pd.Series[float]]":
    """Return the recall of each class on the test images, a fraction, by run id."""
    return _fetch_artifacts(client, records, RECALLS_FILE, _read_recalls)


def fetch_kernel_images(client: TrackingClient, records: Iterable[RunRecord]) -> dict[str, bytes]:
    """Return a PNG file of the middle block's depthwise kernels, by run id."""
    return _fetch_artifacts(client, records, KERNELS_FILE, Path.read_bytes)


def read_predictions(path: Path) -> pd.DataFrame:
    """Return a run's predictions of its test images, a row an image.

    The columns are image, label and predicted, and where they were logged file, class, predicted_class and the
    probabilities, see `predictions_table`.
    """
    required = {"image": str, "label": np.int64, "predicted": np.int64}
    names = {"file": str, "class": str, "predicted_class": str}
    dtypes = {**required, **names, "probability_of_predicted_class": np.float64, "probability_of_class": np.float64}
    # a file or a class may be called "null" or "nan"
    table = pd.read_csv(path, dtype=dtypes, keep_default_na=False)
    predictions = table[[*required, *(name for name in dtypes if name in table and name not in required)]]
    return predictions.assign(**{name: table[name].map(read_csv_cell) for name in names if name in table})


def _read_recalls(path: Path) -> "pd.Series[float]":
    # a class may be called "null" or "nan", so that missing values are recognized in the recalls alone
    table = pd.read_csv(path, dtype={"class": str}, keep_default_na=False, na_values={"recall": [""]})
    return table.set_index(table["class"].map(read_csv_cell))["recall"].astype(float)


def _fetch_artifacts(
    client: TrackingClient, records: Iterable[RunRecord], name: str, read: Callable[[Path], Content]
) -> dict[str, Content]:
    """Download an artifact of each run and read it; missing or damaged ones are left out.

    Args:
        client: Asked for the artifacts.
        records: The runs.
        name: Path of the artifact below the run's artifact root.
        read: Returns the content of the downloaded file.

    Returns:
        What `read` returned, by run id.
    """

    def fetch(record: RunRecord) -> Content | None:
        with TemporaryDirectory() as folder:
            try:
                path = client.download(f"{record.artifact_uri}/{name}", Path(folder))
            except Exception:  # noqa: BLE001 - each kind of artifact store raises its own
                return None
            try:
                return read(path)
            except (OSError, UsageError, ValueError, KeyError):
                return None

    records = list(records)
    with ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:
        contents = pool.map(fetch, records)
        return {record.id: content for record, content in zip(records, contents, strict=True) if content is not None}
