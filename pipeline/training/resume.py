"""Resuming a run: find the run, refuse those that cannot be resumed, and load its newest checkpoint."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.commands import LATEST
from pipeline.config.data_checks import validate_settings
from pipeline.config.training import CHANGE_NO_RESULT, TrainingConfig
from pipeline.data.dataset import Dataset, Split
from pipeline.runtime.errors import CorruptCheckpoint, Deleted, NotFound, NothingToDo, UsageError
from pipeline.runtime.parent_watch import PROJECT_RUN_ID_ENV, is_resumed_by_mlflow
from pipeline.runtime.process import ProcessIdentity
from pipeline.runtime.text import one_line, shown
from pipeline.tracking import ownership, stale_runs
from pipeline.tracking.client import Run, TrackingClient
from pipeline.tracking.fold_runs import find_fold_runs
from pipeline.tracking.models import split_digests
from pipeline.tracking.outbox.delivery import describe_error, send_pending
from pipeline.tracking.project_run import ProjectRun, already_used, close_if_unused
from pipeline.tracking.tags import Role, RunOutcome, Tag
from pipeline.training.checkpoint import Checkpoint, checkpoint_files, read_checkpoint
from pipeline.training.checkpoint_manager import checkpoint_folder, download_checkpoint, uploaded_checkpoints
from pipeline.training.description import Change, parse_changes

log = logging.getLogger(__name__)

# Few runs a page, since the latest run that can be resumed is usually among the newest.
RUNS_PER_PAGE = 100
DAMAGED_SUFFIX = ".damaged"  # instead of .checkpoint
# What to do instead of resuming a run of another role.
REMEDIES: Mapping[str, str] = {
    Role.SEARCH: "it is a search; start the same search again to continue it",
    Role.TRIAL: "it is a trial; start its search again to continue that",
    Role.FINAL: "it is a final training of a search; start that search again to continue it",
    Role.ENSEMBLE: "it is the ensemble of a search; start that search again to continue it",
    Role.REPORT: "it is a report; the same command makes another one",
    Role.EVALUATE: "it is an evaluation; the same command makes another one",
    Role.PREDICT: "it is a prediction; the same command makes another one",
    Role.EXPORT: "it is an export; the same command makes another one",
}


@dataclass(frozen=True)
class ResumePoint:
    """A run to resume, and the checkpoint to resume it from."""

    run: Run  # as it was found
    recipe: str
    config: TrainingConfig  # the run's own
    checkpoint: Checkpoint  # the newest, of the last fold that has begun
    changes: Mapping[str, Change]  # to the recipe
    folds: Mapping[int, Checkpoint] = field(default_factory=dict)  # the newest of each fold, by its number
    fold_runs: Mapping[int, Run] = field(default_factory=dict)  # by the same numbers, also those without a checkpoint

    @property
    def run_id(self) -> str:
        """Return the run's id."""
        return self.run.info.run_id

    @property
    def name(self) -> str:
        """Return the name for the run that `mlflow run` opened for the resumption."""
        epoch = self.checkpoint.state.epoch
        when = f"at epoch {epoch + 1}" if epoch < self.config.epochs else "after the last epoch"
        return f"resumed {when}{self._of_fold()}"

    @property
    def seconds(self) -> float:
        """Return for how long the run has been trained."""
        checkpoints = self.folds.values() if self.folds else [self.checkpoint]
        return sum(sum(one.state.history["epoch_seconds"]) for one in checkpoints)

    @property
    def has_folds_to_begin(self) -> bool:
        """Return whether folds begin anew, from the initial weights."""
        return len(self.folds) < (self.config.folds or 0)

    def __str__(self) -> str:
        epoch, epochs = self.checkpoint.state.epoch, self.config.epochs
        return f"run {self.run_id} resumes after epoch {epoch} of {epochs}{self._of_fold()}"

    def _of_fold(self) -> str:
        return f" of fold {max(self.folds)} of {self.config.folds}" if self.folds else ""

    def check_data(self, dataset: Dataset) -> None:
        """Raise UsageError unless the data set and its splits are still those that the run began with."""
        before = self.checkpoint.fingerprint
        if dataset.fingerprint != before:
            raise UsageError(
                f"a resumed run needs the images that it began with: {self.config.dataset} has changed since, its "
                f"fingerprint from {before} to {dataset.fingerprint}; start a new run"
            )
        train = dataset.out_of_fold if dataset.folds else dataset.train
        self._check_splits(self.run, {"train": train, "validation": dataset.validation, "test": dataset.test})
        for number, fold_run in self.fold_runs.items():
            fold = dataset.fold(number)
            self._check_splits(fold_run, {"train": fold.train, "validation": fold.validation}, f"fold {number} of ")

    def _check_splits(self, run: Run, splits: Mapping[str, Split], where: str = "") -> None:
        """Raise UsageError if a run has logged other splits, of which it has none if it was interrupted before."""
        digests = split_digests(run)
        for name, split in splits.items():
            before = digests.get(name, split.digest)
            if split.digest != before:
                raise UsageError(
                    f"a resumed run needs the splits that it began with: the {name} split of {where}"
                    f"{self.config.dataset} has changed since, its digest from {before} to {split.digest}; resume it "
                    "with the version of this program that began it, or start a new run"
                )

    def check_weights(self, digest: str) -> None:
        """Raise UsageError unless the file of the initial weights is still the one that the run began with."""
        before = self.run.data.tags.get(Tag.WEIGHTS_DIGEST, "")
        if digest != before:
            raise UsageError(
                f"a resumed run needs the weights that it began with: {self.config.weights_from} has changed since, "
                f"its SHA-256 from {before[:12] or 'none'} to {digest[:12] or 'none'}; start a new run"
            )


@contextmanager
def open_resume_point(run: str | None, overrides: Mapping[str, str]) -> Iterator[ResumePoint | None]:
    """Find the run to resume, see `find_resume_point`, and close the project run if nothing begins in it.

    The lock of the run is held until the block ends, so that no other process on this machine resumes it too.

    The project run is the one that `mlflow run` opened for this process, if any. It is closed as failed, or as killed,
    if the block raises before a run has been started in it.

    Raises:
        UsageError: The tracking store does not answer, or there is no run to resume.
    """
    client = TrackingClient()
    project_run = ProjectRun.find()
    named = run or (project_run.id if project_run else LATEST)
    with ExitStack() as locks:
        with ownership.require_server():
            # The run may have finished without being able to tell the server so. Other runs' records are sent, and
            # reported, when this one starts.
            for line in send_pending(None if named == LATEST else [named]):
                log.info("%s", line)
            resume_point = find_resume_point(client, run, overrides, locks=locks)
        if project_run and resume_point and resume_point.run_id == project_run.id:
            project_run = None
        with close_if_unused(project_run):
            yield resume_point


def find_resume_point(
    client: TrackingClient, run: str | None, overrides: Mapping[str, str], *, locks: ExitStack
) -> ResumePoint | None:
    """Return the run to resume, or None if `mlflow run` has opened a new run and no other one is named.

    Args:
        client: Of the tracking store.
        run: A run's id, latest, or None for the project run, which `mlflow run --run-id` names.
        overrides: The settings on the command line, as text.
        locks: Holds the lock of the run from here on.

    Raises:
        NothingToDo: The run has finished.
        UsageError: There is no such run, it cannot be resumed, a setting would change its result, or the project run
            has been used although this is no `mlflow run --run-id`.
    """
    found = None if run == LATEST else _get_run(client, run)
    if found and run is None:
        if Tag.ROLE not in found.data.tags:
            return None
        if not is_resumed_by_mlflow():
            raise already_used(found)
    try:
        found = _lock_named_run(client, found, locks) if found else _lock_latest_run(client, locks)
    except NothingToDo:
        if found:
            _discard_resumption(client, found)
        raise
    fold_runs = _fold_runs(client, found)
    folds = load_fold_checkpoints(client, fold_runs)
    checkpoint, config = folds[max(folds)] if folds else load_newest_checkpoint(client, found)
    config = merge_overrides(config, overrides)
    changes = parse_changes(found.data.tags.get(Tag.RECIPE_CHANGES, ""))
    recipe = found.data.params.get("recipe", "")
    of_folds = {number: of_fold for number, (of_fold, _) in folds.items()}
    return ResumePoint(found, recipe, config, checkpoint, changes, of_folds, fold_runs)


def check_resumable(run: Run) -> bool:
    """Check that a run can be resumed if it has a checkpoint.

    Returns:
        Whether its process is gone for certain; else its heartbeat has to be watched.

    Raises:
        NothingToDo: The run has finished.
        UsageError: The run is no training, or is still running.
    """
    tags = run.data.tags
    role = tags.get(Tag.ROLE, "")
    if role == Role.RESUME:
        raise UsageError(f"{_describe(run)} resumed another run: resume {tags.get(Tag.PARENT_RUN_ID)}")
    if role == Role.FOLD:
        raise UsageError(
            f"{_describe(run)} is one fold of a cross-validation: resume {tags.get(Tag.PARENT_RUN_ID)}, which goes on "
            "with its folds"
        )
    if role in REMEDIES:
        raise UsageError(f"{_describe(run)} cannot be resumed: {REMEDIES[role]}")
    if role != Role.RUN:
        raise UsageError(f"{_describe(run)} has no checkpoint to resume from: no training has begun in it")
    if tags.get(Tag.OUTCOME) == RunOutcome.FINISHED:
        raise NothingToDo(f"{_describe(run)} is finished: there is nothing to resume")
    open_run = stale_runs.inspect_run(run)
    if run.info.status == "RUNNING" and open_run.liveness == "alive":
        raise UsageError(f"{_describe(run)} is running as {open_run.process}: wait for it, or stop it first")
    # `mlflow run --run-id` has opened it again, but its last process has said how it ended
    has_ended = run.info.status != "RUNNING" or Tag.OUTCOME in tags
    return has_ended or open_run.liveness == "dead"


def load_fold_checkpoints(
    client: TrackingClient, fold_runs: Mapping[int, Run]
) -> dict[int, tuple[Checkpoint, TrainingConfig]]:
    """Load the newest usable checkpoint of each fold of a run that has begun, by the number of the fold."""
    checkpoints = {}
    for number, fold_run in fold_runs.items():
        # its training had hardly begun, or was on another machine and has left no copies: it begins anew
        with suppress(UsageError):
            checkpoints[number] = load_newest_checkpoint(client, fold_run)
    return checkpoints


def _fold_runs(client: TrackingClient, run: Run) -> dict[int, Run]:
    if run.data.params.get("folds", "none") == "none":
        return {}
    return find_fold_runs(client, run.info.run_id, run.info.experiment_id)


def load_newest_checkpoint(client: TrackingClient, run: Run) -> tuple[Checkpoint, TrainingConfig]:
    """Load the newest usable checkpoint of a run, from this machine or from its artifacts, and the run's settings.

    Raises:
        UsageError: The run has none.
    """
    run_id = run.info.run_id
    folder = checkpoint_folder(run_id)
    problems = []
    local = {path.name: path for path in checkpoint_files(folder)}
    try:
        uploaded = set(uploaded_checkpoints(client, run_id))
    except Exception as error:  # noqa: BLE001 - each kind of artifact store raises its own
        uploaded = set()
        problems.append(f"its artifacts cannot be listed: {describe_error(error)}")
    for name in sorted({*local, *uploaded}, reverse=True):
        for is_local in (True, False):
            if name not in (local if is_local else uploaded):
                continue
            try:
                path = local[name] if is_local else download_checkpoint(client, run_id, name, folder)
                usable = _read_usable_checkpoint(path, run_id)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, there may be another one
                problems.append(one_line(error))
                continue
            for problem in problems:
                log.warning("%s; the run resumes from epoch %d", problem, usable[0].state.epoch)
            return usable
    problem = problems[0] if problems else "start it again with its recipe and settings"
    raise UsageError(f"{_describe(run)} has no checkpoint to resume from: {problem}")


def _read_usable_checkpoint(path: Path, run_id: str) -> tuple[Checkpoint, TrainingConfig]:
    """Return the checkpoint in a file, and its settings; put a damaged file out of the way of those before it.

    Raises:
        CorruptCheckpoint: It is damaged, or another run's.
        OSError: It cannot be read.
    """
    try:
        checkpoint = read_checkpoint(path)
        if checkpoint.run_id != run_id:
            raise CorruptCheckpoint(f"{path} belongs to another run, {shown(checkpoint.run_id)}")
        config = _read_settings(path, checkpoint)
        # with refit there are no metrics of validation
        for needed in ("loss", *(() if config.refit else (config.monitor,))):
            if needed not in checkpoint.state.history:
                raise CorruptCheckpoint(f"{path} is not a checkpoint: it lacks {needed}")
        return checkpoint, config
    except CorruptCheckpoint:
        # else it would count as the newest one of the resumed run
        with suppress(OSError):
            path.replace(path.with_suffix(DAMAGED_SUFFIX))
        raise


def _read_settings(path: Path, checkpoint: Checkpoint) -> TrainingConfig:
    """Return the settings in a checkpoint."""
    try:
        return TrainingConfig.build(checkpoint.settings)
    except UsageError as error:
        raise CorruptCheckpoint(f"{path} has settings that this version cannot use: {error}") from None


def merge_overrides(config: TrainingConfig, overrides: Mapping[str, str]) -> TrainingConfig:
    """Return the settings of a run with those overrides that change no result.

    Raises:
        UsageError: An override would change the result, or does not suit the run's settings.
    """
    given = TrainingConfig.build(overrides)
    differences = [
        f"{name}={config.text(name)} there, got {shown(overrides[name])}"
        for name in overrides
        if name not in CHANGE_NO_RESULT and not _is_same_setting(name, config, given)
    ]
    if differences:
        raise UsageError(f"a resumed run keeps its own settings: {'; '.join(differences)}; leave out what differs")
    merged = config.model_copy(update={name: getattr(given, name) for name in CHANGE_NO_RESULT & overrides.keys()})
    if merged != config:
        # unchanged settings may break a rule that is younger than the run
        validate_settings(merged)
    return merged


def _is_same_setting(name: str, config: TrainingConfig, given: TrainingConfig) -> bool:
    """Return whether a given setting means what a run has, in which every auto is resolved and every path absolute."""
    value = getattr(given, name)
    is_same_path = name == "dataset" and os.path.abspath(os.path.expanduser(value)) == config.dataset
    return is_same_path or value in (getattr(config, name), "auto")


def _lock_named_run(client: TrackingClient, found: Run, locks: ExitStack) -> Run:
    """Return a run as it is under its lock.

    Raises:
        NothingToDo: The run has finished.
        UsageError: The run cannot be resumed.
    """
    if not check_resumable(found) and not _watch(client, [found]):
        process = ProcessIdentity.from_tags(found.data.tags)
        raise UsageError(f"{_describe(found)} is running as {process}, which sends heartbeats: stop it first")
    if run := _lock(client, found, locks):
        return run
    raise UsageError(f"{_describe(found)} is being resumed by another process: wait for it, or stop it first")


def _lock_latest_run(client: TrackingClient, locks: ExitStack) -> Run:
    """Return the newest run of the current experiment that can be resumed, as it is under its lock."""
    experiment_id = client.experiment_id()
    for found in _unfinished_runs(client, experiment_id):
        # it may have finished since
        with suppress(NothingToDo):
            if run := _lock(client, found, locks):
                return run
    raise UsageError(
        "resume=latest must find a run that can be resumed: "
        f"experiment {client.experiment_name(experiment_id)} has none"
    )


def _unfinished_runs(client: TrackingClient, experiment_id: str) -> Iterator[Run]:
    """Yield the runs that are neither finished nor running and have a checkpoint, the newest first."""
    to_watch: list[Run] = []
    unfinished = f"tags.{Tag.ROLE} = '{Role.RUN}' and attributes.status != 'FINISHED'"
    for run in client.search_runs([experiment_id], unfinished, page_size=RUNS_PER_PAGE):
        is_dead = _try_resumable(run)
        if is_dead is None or not _has_checkpoint(client, run):
            continue
        if is_dead:
            # all of them at once, since it takes minutes
            yield from _watch(client, to_watch)
            to_watch.clear()
            yield run
        else:
            to_watch.append(run)
    yield from _watch(client, to_watch)


def _try_resumable(run: Run) -> bool | None:
    """Return what `check_resumable` returns, or None for a run that is finished or running."""
    try:
        return check_resumable(run)
    except (NothingToDo, UsageError):
        return None


def _watch(client: TrackingClient, runs: Sequence[Run]) -> list[Run]:
    """Return those open runs that send no heartbeat, which takes minutes to find out."""
    open_runs = [stale_runs.inspect_run(run) for run in runs]
    for one in open_runs:
        log.info(
            "%s is open, and this machine cannot see %s: watching for its heartbeat, for up to %.0f s",
            one,
            one.process or "its process",
            stale_runs.SILENCE_SECONDS,
        )
    return [one.run for one in stale_runs.silent_runs(client, open_runs)]


def _lock(client: TrackingClient, found: Run, locks: ExitStack) -> Run | None:
    """Return a run as it is under its lock, or None if another process has the lock or has claimed the run since.

    Raises:
        NothingToDo: The run has finished.
    """
    with ExitStack() as lock:
        is_mine = lock.enter_context(ownership.lock_run(found.info.run_id))
        run = client.get_active_run(found.info.run_id)
        if not is_mine or ownership.last_claim(run) != ownership.last_claim(found):
            return None
        check_resumable(run)
        locks.push(lock.pop_all())
        return run


def _has_checkpoint(client: TrackingClient, run: Run) -> bool:
    """Return whether a run or a fold of it has a checkpoint, intact or not, on this machine or among its artifacts."""
    run_ids = [run.info.run_id, *(fold.info.run_id for fold in _fold_runs(client, run).values())]
    return any(
        checkpoint_files(checkpoint_folder(run_id)) or uploaded_checkpoints(client, run_id) for run_id in run_ids
    )


def _get_run(client: TrackingClient, run: str | None) -> Run:
    """Return the run of an id, or the project run."""
    project_run = ProjectRun.find()
    if run is None:
        assert project_run
        run_id, setting = project_run.id, PROJECT_RUN_ID_ENV
    else:
        run_id, setting = run, "resume"
    try:
        return client.get_active_run(run_id)
    except Deleted as error:
        raise UsageError(str(error)) from None
    except NotFound:
        if run is None:
            ownership.check_store_path()
        raise UsageError(f"{setting} must be the id of a run in this tracking store, got {shown(run_id)}") from None


def _discard_resumption(client: TrackingClient, finished: Run) -> None:
    """Remove what is left of the checkpoints of a finished run, and put the project run below it."""
    run_id = finished.info.run_id
    # A process that was killed at the very end leaves some of its checkpoints.
    shutil.rmtree(checkpoint_folder(run_id), ignore_errors=True)
    project_run = ProjectRun.find()
    if project_run and project_run.id != run_id:
        project_run.check_unused(client)
        ownership.set_parent(client, project_run.id, parent=run_id, name="nothing to resume", role=Role.RESUME)


def _describe(run: Run) -> str:
    """Return a run's id and name for a message."""
    return f"run {run.info.run_id} ({run.info.run_name})"
