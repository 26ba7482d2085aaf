"""The client through which this program asks MLflow: its pages, experiments, runs, artifacts and models."""

import gc
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Experiment, LoggedModelStatus, Metric, Param, Run, RunTag, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.entities import PagedList
from mlflow.tracking.fluent import _get_experiment_id

from pipeline.runtime.errors import Deleted, NotFound, Rejected, TrackingError, Unavailable
from pipeline.tracking.errors import mlflow_errors

__all__ = [
    "Deleted",
    "Experiment",
    "Metric",
    "ModelVersion",
    "NotFound",
    "Rejected",
    "Run",
    "TrackingClient",
    "TrackingError",
    "Unavailable",
    "tracking_uri",
]

RUNS_PER_PAGE = 1000  # 40 MB of Python objects
TAG_CHARACTERS = 5000  # MLflow refuses values of more than 8,000

Item = TypeVar("Item")


def tracking_uri() -> str:
    """Return the URI of the tracking store that new clients use."""
    return mlflow.get_tracking_uri()


class TrackingClient:
    """MLflow's client with this program's errors, every page of a search, and the present experiment.

    Each method raises `NotFound`, `Rejected` or `Unavailable` where MLflow raises an MlflowException. What it returns
    (runs, experiments, metrics, models) are MLflow's own entities.
    """

    def __init__(self) -> None:
        """Connect to the present tracking store; `mlflow` is MLflow's own client, which raises its own exceptions."""
        with mlflow_errors():
            self.mlflow = MlflowClient()

    def is_available(self) -> bool:
        """Return whether the tracking store answers a small question."""
        try:
            self.mlflow.search_experiments(max_results=1)
        except Exception:  # noqa: BLE001 - each kind of store raises its own
            return False
        return True

    # Experiments

    def experiment_id(self) -> str:
        """Return the id of the experiment that new runs belong to, which is created where it does not exist.

        MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID name it, or `mlflow.set_experiment`.

        Raises:
            Deleted: It has been deleted.
        """
        with mlflow_errors():
            experiment_id = str(_get_experiment_id())
            _check_active(self.mlflow.get_experiment(experiment_id))
        return experiment_id

    def get_experiment(self, experiment_id: str) -> Experiment:
        """Return an experiment, also one that has been deleted."""
        with mlflow_errors():
            return self.mlflow.get_experiment(experiment_id)

    def experiment_name(self, experiment_id: str) -> str:
        """Return the name of an experiment."""
        return str(self.get_experiment(experiment_id).name)

    def set_experiment_tag(self, experiment_id: str, name: str, value: str) -> None:
        """Set a tag of an experiment."""
        with mlflow_errors():
            self.mlflow.set_experiment_tag(experiment_id, name, value)

    @contextmanager
    def temporary_experiment_tag(self, experiment_id: str, name: str, value: str) -> Iterator[None]:
        """Context manager: set a tag of an experiment, and delete it again."""
        self.set_experiment_tag(experiment_id, name, value)
        try:
            yield
        finally:
            with mlflow_errors():
                self.mlflow.delete_experiment_tag(experiment_id, name)

    def find_experiment(self, name: str) -> Experiment | None:
        """Return the experiment of this name, or None.

        Raises:
            Deleted: It has been deleted.
        """
        with mlflow_errors():
            experiment = self.mlflow.get_experiment_by_name(name)
        if experiment:
            _check_active(experiment)
        return experiment

    def search_experiments(self) -> Iterator[Experiment]:
        """Yield the experiments that have not been deleted."""
        return _every_page(lambda token: self.mlflow.search_experiments(page_token=token))

    def create_experiment(self, name: str) -> str:
        """Create an experiment and return its id."""
        with mlflow_errors():
            return self.mlflow.create_experiment(name)

    # Runs

    def get_run(self, run_id: str) -> Run:
        """Return a run, also one that has been deleted but can be restored.

        Raises:
            NotFound: There is no such run, or the id is malformed.
        """
        try:
            with mlflow_errors():
                return self.mlflow.get_run(run_id)
        except Rejected as error:
            # a malformed id names no run
            if _has_code(error, "INVALID_PARAMETER_VALUE"):
                raise NotFound(error) from error
            raise

    def get_active_run(self, run_id: str) -> Run:
        """Return a run that has not been deleted.

        Raises:
            Deleted: It has been.
            NotFound: There is no such run, or the id is malformed.
        """
        run = self.get_run(run_id)
        if run.info.lifecycle_stage != "active":
            raise Deleted(f"run {run_id} has been deleted: `mlflow runs restore --run-id {run_id}` restores it")
        return run

    def is_active(self, run_id: str) -> bool:
        """Return whether there is a run, and it has not been deleted."""
        try:
            self.get_active_run(run_id)
        except (Deleted, NotFound):
            return False
        return True

    def search_runs(
        self, experiment_ids: Iterable[str], where: str = "", *, page_size: int | None = None
    ) -> Iterator[Run]:
        """Yield the runs of some experiments, the newest first and each once; deleted ones are left out.

        Args:
            experiment_ids: The experiments.
            where: An MLflow filter.
            page_size: How many runs to ask for at once; None is RUNS_PER_PAGE.

        Raises:
            Rejected: MLflow cannot parse the filter.
        """
        experiments = list(experiment_ids)

        def page(token: str | None) -> PagedList[Run]:
            with _fewer_garbage_collections():
                return self.mlflow.search_runs(
                    experiments, where, ViewType.ACTIVE_ONLY, max_results=page_size or RUNS_PER_PAGE, page_token=token
                )

        seen = set()
        for run in _every_page(page):
            # each run that begins meanwhile moves one run to the next page
            if run.info.run_id not in seen:
                seen.add(run.info.run_id)
                yield run

    def create_run(self, experiment_id: str, *, name: str | None = None, tags: Mapping[str, str] | None = None) -> Run:
        """Create a run, which is open; long values of tags are cut."""
        with mlflow_errors():
            return self.mlflow.create_run(experiment_id, tags=_cut(tags or {}), run_name=name)

    def unique_run_name(self, experiment_id: str, name: str) -> str:
        """Return the name, with a number behind it if runs of the experiment have it already."""
        # in a pattern _ and % stand for any characters, so that more may be found than has the name
        pattern = name.replace("'", "_")
        taken = {
            run.info.run_name
            for form in ("", " #%")
            for run in self.search_runs([experiment_id], f"attributes.run_name LIKE '{pattern}{form}'")
        }
        numbered = (f"{name} #{number}" for number in itertools.count(2))
        return name if name not in taken else next(candidate for candidate in numbered if candidate not in taken)

    def set_run_status(self, run_id: str, status: str) -> None:
        """Set a run's status; RUNNING opens a run again that has ended."""
        with mlflow_errors():
            self.mlflow.update_run(run_id, status=status)

    def terminate_run(self, run_id: str, status: str, *, end_time: int | None = None) -> None:
        """End a run.

        Args:
            run_id: The run.
            status: FINISHED, FAILED or KILLED.
            end_time: In milliseconds since the epoch; None is now.
        """
        with mlflow_errors():
            self.mlflow.set_terminated(run_id, status, end_time=end_time)

    def delete_run(self, run_id: str) -> None:
        """Delete a run, which can be restored."""
        with mlflow_errors():
            self.mlflow.delete_run(run_id)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run in one call; long values are cut."""
        self.log_batch(run_id, tags=_cut(tags))

    def delete_tag(self, run_id: str, name: str) -> None:
        """Delete a tag of a run."""
        with mlflow_errors():
            self.mlflow.delete_tag(run_id, name)

    def log_batch(
        self,
        run_id: str,
        *,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log metrics, parameters and tags of a run in one call, and wait for the answer."""
        with mlflow_errors():
            self.mlflow.log_batch(
                run_id,
                metrics,
                [Param(name, value) for name, value in (params or {}).items()],
                [RunTag(name, value) for name, value in (tags or {}).items()],
                synchronous=True,
            )

    def get_metric_history(self, run_id: str, name: str) -> list[Metric]:
        """Return every point of a metric of a run."""
        with mlflow_errors():
            return self.mlflow.get_metric_history(run_id, name)

    # Artifacts

    def list_artifacts(self, run_id: str, folder: str = "") -> list[str]:
        """Return the paths of the artifacts of a run that lie in a folder, below the run's artifact root."""
        with mlflow_errors():
            return [file.path for file in self.mlflow.list_artifacts(run_id, folder or None)]

    def download_artifact(self, run_id: str, path: str, folder: Path) -> Path:
        """Download an artifact of a run into a folder on this machine; return where it lies."""
        with mlflow_errors():
            return Path(self.mlflow.download_artifacts(run_id, path, str(folder)))

    def download(self, uri: str, folder: Path) -> Path:
        """Download a file or folder of an artifact store; return where it lies.

        Args:
            uri: Of the artifact, such as a run's `artifact_uri` and a path below it.
            folder: An existing folder on this machine.
        """
        with mlflow_errors():
            return Path(download_artifacts(artifact_uri=uri, dst_path=str(folder)))

    def upload_artifact(self, run_id: str, file: Path, folder: str = "") -> None:
        """Upload a file into a folder among a run's artifacts."""
        with mlflow_errors():
            self.mlflow.log_artifact(run_id, str(file), folder or None)

    def upload_artifacts(self, run_id: str, files: Path) -> None:
        """Upload all that lies in a folder on this machine."""
        with mlflow_errors():
            self.mlflow.log_artifacts(run_id, str(files))

    def upload_text(self, run_id: str, text: str, path: str) -> None:
        """Upload a text file."""
        with mlflow_errors():
            self.mlflow.log_text(run_id, text, path)

    def delete_artifacts(self, run_id: str, paths: Iterable[str]) -> None:
        """Delete artifacts of a run, files or folders, in order.

        Some stores cannot delete, and each raises its own exceptions.
        """
        with mlflow_errors():
            store = get_artifact_repository(self.mlflow.get_run(run_id).info.artifact_uri)
            for path in paths:
                store.delete_artifacts(path)  # type: ignore[no-untyped-call]

    def try_artifact_store(self, uri: str, name: str, text: str) -> None:
        """Write a text file into a folder of an artifact store, and delete it, if the store can delete."""
        with mlflow_errors(), TemporaryDirectory() as folder:
            store = get_artifact_repository(uri)
            file = Path(folder) / name
            file.write_text(text, encoding="utf-8")
            store.log_artifact(str(file))  # type: ignore[no-untyped-call]
            with suppress(Exception):
                store.delete_artifacts(name)  # type: ignore[no-untyped-call]

    # Logged models

    def get_logged_model(self, model_id: str) -> mlflow.entities.LoggedModel:
        """Return a logged model by its id, m-...

        Raises:
            NotFound: There is no such model.
        """
        with mlflow_errors():
            return self.mlflow.get_logged_model(model_id)

    def find_logged_model(self, run: Run, name: str) -> mlflow.entities.LoggedModel | None:
        """Return the model that a run has logged, or begun to log, under a name."""
        where = f"source_run_id = '{run.info.run_id}'"
        models = self._search_logged_models(run.info.experiment_id, where)
        return next((model for model in models if model.name == name), None)

    def latest_logged_model(self, experiment_id: str, name: str, *, tag: str) -> mlflow.entities.LoggedModel | None:
        """Return the newest complete model of this name in an experiment, or None.

        Args:
            experiment_id: The experiment.
            name: Of the model.
            tag: Models without this one are passed over, and those of deleted runs, which MLflow keeps.
        """
        models = self._search_logged_models(experiment_id, f"name = '{name}'")
        complete = (model for model in models if model.status == LoggedModelStatus.READY and tag in model.tags)
        return next((model for model in complete if model.source_run_id and self.is_active(model.source_run_id)), None)

    def _search_logged_models(self, experiment_id: str, where: str) -> Iterator[mlflow.entities.LoggedModel]:
        """Yield the logged models of an experiment that match an MLflow filter, the newest first."""
        newest_first = [{"field_name": "creation_timestamp", "ascending": False}]
        return _every_page(
            lambda token: self.mlflow.search_logged_models(
                [experiment_id], where, order_by=newest_first, page_token=token
            )
        )

    # The model registry

    def create_registered_model(self, name: str) -> None:
        """Create a registered model, unless there is one of this name."""
        try:
            with mlflow_errors():
                self.mlflow.create_registered_model(name)
        except Rejected as error:
            if not _has_code(error, "RESOURCE_ALREADY_EXISTS"):
                raise

    def create_model_version(
        self, name: str, model: mlflow.entities.LoggedModel, run_id: str, *, tags: Mapping[str, str]
    ) -> ModelVersion:
        """Make a logged model of a run the next version of a registered model."""
        with mlflow_errors():
            return self.mlflow.create_model_version(
                name,
                f"models:/{model.model_id}",
                run_id,
                tags=dict(tags),
                model_id=model.model_id,
                await_creation_for=0,
            )

    def get_model_version(self, name: str, version: str) -> ModelVersion:
        """Return a version of a registered model.

        Args:
            name: The registered model's.
            version: A number, or latest.

        Raises:
            NotFound: There is no such version.
        """
        if version != "latest":
            with mlflow_errors():
                return self.mlflow.get_model_version(name, version)
        versions = self.search_model_versions(f"name = '{name}'", at_most=1)
        if not versions:
            raise NotFound(f"there is no version of {name}")
        return versions[0]

    def get_model_version_by_alias(self, name: str, alias: str) -> ModelVersion:
        """Return the version of a registered model that has an alias.

        Raises:
            NotFound: There is no such model or alias.
        """
        try:
            with mlflow_errors():
                return self.mlflow.get_model_version_by_alias(name, alias)
        except Rejected as error:
            # what MLflow answers for an alias that no version has
            if _has_code(error, "INVALID_PARAMETER_VALUE"):
                raise NotFound(error) from error
            raise

    def search_model_versions(self, where: str, *, at_most: int = 1000) -> list[ModelVersion]:
        """Return the newest of the model versions that match an MLflow filter, the newest first."""
        with mlflow_errors():
            return list(self.mlflow.search_model_versions(where, max_results=at_most, order_by=["version_number DESC"]))

    def set_model_version_tag(self, name: str, version: str, tag: str, value: str) -> None:
        """Set a tag of a version of a registered model."""
        with mlflow_errors():
            self.mlflow.set_model_version_tag(name, version, tag, value)

    def describe_model_version(self, name: str, version: str, description: str) -> None:
        """Set the description of a version of a registered model, in Markdown."""
        with mlflow_errors():
            self.mlflow.update_model_version(name, version, description)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Give an alias of a registered model to a version, which takes it from the one before."""
        with mlflow_errors():
            self.mlflow.set_registered_model_alias(name, alias, version)


def _every_page(get_page: Callable[[str | None], PagedList[Item]]) -> Iterator[Item]:
    """Yield the items of a search, page by page; `get_page` takes the token of a page, None for the first one."""
    token = None
    while True:
        with mlflow_errors():
            page = get_page(token)
        yield from page
        token = page.token
        if not token:
            return


def _check_active(experiment: Experiment) -> None:
    """Raise Deleted if an experiment has been deleted."""
    if experiment.lifecycle_stage != "active":
        command = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise Deleted(f"experiment {experiment.name} has been deleted: `{command}` restores it")


def _cut(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags with values that MLflow takes."""
    return {name: value[:TAG_CHARACTERS] for name, value in tags.items()}


def _has_code(error: TrackingError, code: str) -> bool:
    """Return whether MLflow gave this error code."""
    return isinstance(error.__cause__, MlflowException) and error.__cause__.error_code == code


@contextmanager
def _fewer_garbage_collections() -> Iterator[None]:
    """Collect garbage more rarely: a run is some sixty objects, and half of the time went into traversing them all."""
    usual = gc.get_threshold()
    gc.set_threshold(100_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
