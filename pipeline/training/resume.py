"""Which run is to go on, and from what: by its id, as the latest, or as the one that `mlflow run --run-id` names."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking.fluent import _get_experiment_id

from pipeline.config.training import CHANGE_NO_RESULT, TrainingConfig
from pipeline.runtime.errors import CorruptCheckpoint, NothingToDo, UsageError
from pipeline.runtime.parent_watch import PROJECT_RUN_ID_ENV
from pipeline.runtime.text import shown
from pipeline.tracking import ownership, stale_runs
from pipeline.tracking.outbox.delivery import send_pending
from pipeline.tracking.tags import Role, RunOutcome, Tag
from pipeline.training import checkpoint, checkpoint_manager
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.checkpoint_manager import checkpoint_folder

log = logging.getLogger(__name__)

PAGE = 100  # runs at a time on the way to the latest that can go on
CURES: dict[str | None, str] = {
    Role.SEARCH: "it is a search, and the same search goes on with it",
    Role.TRIAL: "it is a trial, and its search goes on with it",
    Role.FINAL: "it is a final training of a search, and that goes on with it",
    Role.REPORT: "it is a report, and the same command makes another",
    Role.EVALUATE: "it is an evaluation, and the same command makes another",
    Role.PREDICT: "it is a prediction, and the same command makes another",
}


@dataclass(frozen=True)
class ResumePoint:
    """A run that goes on."""

    run_id: str
    recipe: str
    config: TrainingConfig  # the run's own
    checkpoint: Checkpoint

    @property
    def name(self) -> str:
        """What the run is called that `mlflow run` opened for it."""
        epoch = self.checkpoint.state.epoch
        return f"resumed at epoch {epoch + 1}" if epoch < self.config.epochs else "resumed after the last epoch"

    def __str__(self) -> str:
        return f"run {self.run_id} goes on after epoch {self.checkpoint.state.epoch} of {self.config.epochs}"

    def check(self, data: str) -> None:
        """Refuse images that have changed since; `data` is their fingerprint now."""
        if data != self.checkpoint.data:
            raise UsageError(
                f"a run goes on with the images that it began with: {self.config.dataset} has changed since, its "
                f"fingerprint from {self.checkpoint.data} to {data}; start a new run"
            )


@contextmanager
def resume_point(asked: str | None, given: Mapping[str, str]) -> Iterator[ResumePoint | None]:
    """The run to go on with, see `find`; the run that `mlflow run` opened does not stay open if nothing begins."""
    client = MlflowClient()
    with ownership.require_server():
        for line in send_pending():  # a run may have ended, and had nobody to tell it
            log.info("%s", line)
        found = find_resume_point(client, asked, given)
    new = os.environ.get(PROJECT_RUN_ID_ENV)
    with ownership.close_if_unused(client, None if found and found.run_id == new else new):
        yield found


def find_resume_point(client: MlflowClient, asked: str | None, given: Mapping[str, str]) -> ResumePoint | None:
    """The run to go on with; None where `mlflow run` has opened a new one and nobody asked for another.

    Args:
        asked: a run's id, latest, or None for the run that `mlflow run` names.
        given: the settings that were given, as typed.

    Raises:
        NothingToDo: the run is finished.
        UsageError: there is no such run, or none that can go on, or a setting would change its result.
    """
    opened = os.environ.get(PROJECT_RUN_ID_ENV)
    run = _latest(client) if asked == "latest" else _run(client, asked)
    if asked is None and Tag.ROLE not in run.data.tags:
        return None
    try:
        _refuse(run)
    except NothingToDo:
        shutil.rmtree(
            checkpoint_folder(run.info.run_id), ignore_errors=True
        )  # of which a kill at the very end left some
        if opened and opened != run.info.run_id:
            ownership.set_parent(client, opened, parent=run.info.run_id, name="nothing to resume", role=Role.RESUME)
        raise
    found = _newest(client, run)
    if found is None:
        raise UsageError(f"{_named(run)} has no checkpoint to go on from: start it again with its recipe and settings")
    config = _config(found, given)
    return ResumePoint(run.info.run_id, run.data.params.get("recipe", ""), config, found)


def _latest(client: MlflowClient) -> Run:
    """The newest run of the experiment that can go on."""
    experiment = str(_get_experiment_id())
    token = None
    while True:
        page = client.search_runs(
            [experiment],
            f"tags.{Tag.ROLE} = '{Role.RUN}' and attributes.status != 'FINISHED'",
            max_results=PAGE,
            page_token=token,
        )
        for run in page:
            if _stands(run) and _has_checkpoint(client, run):
                return run
        if not (token := page.token):
            name = client.get_experiment(experiment).name
            raise UsageError(f"resume=latest must find a run to go on with: experiment {name} has none")


def _stands(run: Run) -> bool:
    """Whether a run is neither finished nor under way."""
    try:
        _refuse(run)
    except (NothingToDo, UsageError):
        return False
    return True


def _run(client: MlflowClient, asked: str | None) -> Run:
    run_id = os.environ[PROJECT_RUN_ID_ENV] if asked is None else asked
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        if asked is None:
            ownership.check_store_path()
        name = PROJECT_RUN_ID_ENV if asked is None else "resume"
        raise UsageError(f"{name} must be the id of a run in this tracking store, got {shown(run_id)}") from None
    if run.info.lifecycle_stage != "active":
        raise UsageError(f"{_named(run)} has been deleted: `mlflow runs restore --run-id {run_id}` brings it back")
    return run


def _refuse(run: Run) -> None:
    """Refuse a run that cannot go on whatever its checkpoints say."""
    tags = run.data.tags
    role = tags.get(Tag.ROLE)
    if role == Role.RESUME:
        raise UsageError(f"{_named(run)} resumed another run: resume {tags.get(Tag.PARENT_RUN_ID)}")
    if role in CURES:
        raise UsageError(f"{_named(run)} cannot be resumed: {CURES[role]}")
    if role != Role.RUN:
        raise UsageError(f"{_named(run)} has no checkpoint to go on from: no training has begun in it")
    if tags.get(Tag.OUTCOME) == RunOutcome.FINISHED:
        raise NothingToDo(f"{_named(run)} is finished: there is nothing to resume")
    one = stale_runs.open_runs(run)
    if run.info.status != "RUNNING" or one.fate == "gone":
        return
    if one.fate == "lives":
        raise UsageError(f"{_named(run)} is under way as {one.process}: wait for it, or stop it first")
    if one.silence() < stale_runs.UNRESPONSIVE_SECONDS:
        raise UsageError(
            f"{_named(run)} is under way as {one.process}, as it said {one.silence():.0f} s ago: stop it first, "
            f"or wait until it has been silent for {stale_runs.UNRESPONSIVE_SECONDS:.0f} s"
        )


def _has_checkpoint(client: MlflowClient, run: Run) -> bool:
    run_id = run.info.run_id
    return bool(
        checkpoint.checkpoint_files(checkpoint_folder(run_id)) or checkpoint_manager.uploaded_names(client, run_id)
    )


def _newest(client: MlflowClient, run: Run) -> Checkpoint | None:
    """The checkpoint of the latest epoch that is whole, here or among the run's artifacts."""
    folder = checkpoint_folder(run.info.run_id)
    here = {path.name: path for path in checkpoint.checkpoint_files(folder)}
    damaged = ""
    for name in sorted({*here, *checkpoint_manager.uploaded_names(client, run.info.run_id)}, reverse=True):
        try:
            path = here.get(name) or checkpoint_manager.fetch_uploads(client, run.info.run_id, name, folder)
            found = checkpoint.read_checkpoint(path)
        except (CorruptCheckpoint, OSError) as error:
            damaged = str(error)
        else:
            if found.run_id == run.info.run_id:
                return found
            damaged = f"{path} is of another run, {shown(found.run_id)}"
    if damaged:
        raise UsageError(f"{_named(run)} has no checkpoint to go on from: {damaged}")
    return None


def _config(found: Checkpoint, given: Mapping[str, str]) -> TrainingConfig:
    """The run's own settings, and those of the given ones that change no result.

    Raises:
        UsageError: a given one would change it.
    """
    own = TrainingConfig.build(found.settings)
    said = TrainingConfig.build(given)
    others = [
        f"{name}={own.text(name)} there, got {shown(given[name])}"
        for name in given
        if name not in CHANGE_NO_RESULT and not _equal(name, own, said)
    ]
    if others:
        raise UsageError(f"a run goes on with its own settings: {'; '.join(others)}; leave out what differs")
    return own.model_copy(update={name: getattr(said, name) for name in CHANGE_NO_RESULT & given.keys()})


def _equal(name: str, own: TrainingConfig, said: TrainingConfig) -> bool:
    """Whether a setting was given as the run has it, which has every auto decided and every path absolute."""
    value = getattr(said, name)
    paths = name == "dataset" and os.path.abspath(os.path.expanduser(value)) == own.dataset
    return paths or value in (getattr(own, name), "auto")


def _named(run: Run) -> str:
    return f"run {run.info.run_id} ({run.info.run_name})"
