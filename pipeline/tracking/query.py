"""Runs from MLflow, page by page; of each no more is kept than a report needs."""

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from pipeline.config.training import TrainingConfig, from_yaml, read_recipe
from pipeline.evaluation.report.groups import RunRecord
from pipeline.runtime.errors import UsageError
from pipeline.tracking.tags import Role, Tag, TrialOutcome
from pipeline.tracking.test_set_access import access_count

CONFIG_FILE = "config.yaml"


class TrainingRun(NamedTuple):
    """A run that trained a model."""

    run: Run
    config: TrainingConfig
    fingerprint: str  # of its data; empty where nobody has said it


def get_training_run(client: MlflowClient, run_id: str) -> TrainingRun:
    """What a run was trained with.

    Raises:
        UsageError: it is gone, or says nothing of its settings that this version can read.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UsageError(f"a model needs the run that trained it, got one of run {run_id}, which is gone") from None
    if run.info.lifecycle_stage != "active":
        raise UsageError(
            f"a model needs the run that trained it, got one of run {run_id}, which has been deleted: "
            f"`mlflow runs restore --run-id {run_id}` brings it back"
        )
    return TrainingRun(run, _config(run), _fingerprint(client, run))


def _config(run: Run) -> TrainingConfig:
    """The settings as they were used: the parameters of a run by `mlflow run` may be as a person typed them."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with TemporaryDirectory() as folder:
        try:
            file = Path(download_artifacts(artifact_uri=f"{run.info.artifact_uri}/{CONFIG_FILE}", dst_path=folder))
        except Exception:  # noqa: BLE001 - a search's trainings have none, and each kind of store raises its own
            file = None
        said = (
            read_recipe(str(file))
            if file
            else {k: v for k, v in run.data.params.items() if k in TrainingConfig.model_fields}
        )
    return TrainingConfig.build(said)


def _fingerprint(client: MlflowClient, run: Run) -> str:
    """Of the data of a run; a search's trainings say nothing of theirs: the search does, above them."""
    seen = set()
    while (
        Tag.DATA_FINGERPRINT not in run.data.tags
        and (parent := run.data.tags.get(Tag.PARENT_RUN_ID))
        and parent not in seen
    ):
        seen.add(parent)
        run = client.get_run(parent)
    return run.data.tags.get(Tag.DATA_FINGERPRINT, "")


PAGE = 1000  # runs at a time: 40 MB of Python objects, of which a tenth is kept
SETTINGS = frozenset(TrainingConfig.model_fields)
METRICS = frozenset(
    ["test_accuracy", "test_loss", "best_val_accuracy", "val_accuracy", "best_epoch", "parameters", "latency_ms"]
)
TRAININGS = frozenset(
    [Role.RUN, Role.TRIAL, Role.FINAL]
)  # roles; a search, a resumption and a report train nothing themselves


def search_run_records(client: MlflowClient, experiments: Sequence[str], where: str) -> Iterator[RunRecord]:
    """The runs of some experiments that match an MLflow filter, the newest first; deleted ones are passed over."""
    token, seen = None, set()
    while True:
        page = _page(client, experiments, where, token)
        for run in page:
            if run.info.run_id not in seen:  # of runs that began meanwhile, each moves one to the next page
                seen.add(run.info.run_id)
                yield to_run_record(run)
        if not (token := page.token):
            return


def _page(client: MlflowClient, experiments: Sequence[str], where: str, token: str | None) -> PagedList[Run]:
    """One page. A run is some sixty objects, and Python's looking through all of them took half the time."""
    usual = gc.get_threshold()
    gc.set_threshold(100_000, 50, 50)
    try:
        return client.search_runs(list(experiments), where, ViewType.ACTIVE_ONLY, max_results=PAGE, page_token=token)
    finally:
        gc.set_threshold(*usual)


def to_run_record(run: Run) -> RunRecord:
    """What is kept of a run."""
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    ended = (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None
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
        seconds=metrics.get("seconds", ended),
        test_set_accesses=access_count(tags, run_id=run.info.run_id, tested="test_accuracy" in metrics),
    )


def is_training(one: RunRecord) -> bool:
    """Whether a run is a training; of a search's finals those that hold the trainings of several seeds are not."""
    return one.role in TRAININGS and not (one.role == Role.FINAL and "seed" not in one.params)


def inherit_data(client: MlflowClient, rows: Sequence[RunRecord], known: Sequence[RunRecord]) -> list[RunRecord]:
    """Trials say nothing of their data: their search does, in the run above theirs, or above that.

    Args:
        known: runs that have been read, `rows` among them.
    """
    found = {one.id: one for one in known}

    def above(run_id: str) -> RunRecord | None:
        if run_id not in found:
            try:
                found[run_id] = to_run_record(client.get_run(run_id))
            except MlflowException:  # gone for good
                return None
        return found[run_id]

    def told(one: RunRecord) -> RunRecord:
        parent = one
        while not parent.fingerprint and parent.parent:
            higher = above(parent.parent)
            if higher is None or higher.parent == parent.id:
                break
            parent = higher
        return one if parent is one else one._replace(data=parent.data or one.data, fingerprint=parent.fingerprint)

    return [told(one) for one in rows]


def _state(run: Run) -> str:
    status = run.info.status
    if status == "KILLED":
        return "pruned" if run.data.tags.get(Tag.TRIAL_STATE) == TrialOutcome.PRUNED else "stopped"
    return {"FINISHED": "finished", "FAILED": "failed"}.get(status, "running")


AT_ONCE = 8  # mostly waiting for a server, where the artifacts are on one
Read = TypeVar("Read")


def fetch_configs(rows: Iterable[RunRecord]) -> dict[str, TrainingConfig]:
    """The settings as they were used, from config.yaml, by the id of the run; none where there is no such file."""
    return _read_artifacts(rows, "config.yaml", from_yaml)


def fetch_predictions(rows: Iterable[RunRecord]) -> dict[str, pd.DataFrame]:
    """Tables with columns image, label and predicted, a row a test image, by the id of the run."""
    kinds = {"image": str, "label": np.int64, "predicted": np.int64}
    return _read_artifacts(
        rows, "test_predictions.csv", lambda path: pd.read_csv(path, usecols=list(kinds), dtype=kinds)
    )


def fetch_recalls(rows: Iterable[RunRecord]) -> "dict[str, pd.Series[float]]":
    """Share of each class's test images that were recognized, by the id of the run."""
    return _read_artifacts(rows, "per_class.csv", _recall)


def fetch_kernel_images(rows: Iterable[RunRecord]) -> dict[str, bytes]:
    """PNG of the middle block's depthwise kernels, by the id of the run."""
    return _read_artifacts(rows, "plots/depthwise_kernels.png", Path.read_bytes)


def _recall(path: Path) -> "pd.Series[float]":
    table = pd.read_csv(path, dtype={"class": str}, keep_default_na=False, na_values={"recall": [""]})
    return table.set_index("class")["recall"].astype(float)


def _read_artifacts(rows: Iterable[RunRecord], name: str, reader: Callable[[Path], Read]) -> dict[str, Read]:
    """What a reader makes of an artifact, by the id of the run; a missing or damaged artifact is left out."""

    def one(row: RunRecord) -> Read | None:
        with TemporaryDirectory() as folder:
            try:
                path = Path(download_artifacts(artifact_uri=f"{row.artifact_uri}/{name}", dst_path=folder))
            except Exception:  # noqa: BLE001 - each kind of store raises its own
                return None
            try:
                return reader(path)
            except (OSError, UsageError, ValueError, KeyError):
                return None

    rows = list(rows)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(one, rows)
        return {row.id: value for row, value in zip(rows, found, strict=True) if value is not None}
