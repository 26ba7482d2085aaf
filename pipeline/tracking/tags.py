"""Names of the tags that this program writes to MLflow, and the values of those that have a fixed set of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pipeline.runtime import process
from pipeline.runtime.code_version import code_version


class Tag:
    """Names of tags.

    MLflow's pages show tags in the order in which they were set. Those that a person reads have plain names and are set
    first; those that only programs read begin with `convmixer.`.
    """

    # MLflow's own
    PARENT_RUN_ID: Final = "mlflow.parentRunId"
    RUN_NAME: Final = "mlflow.runName"
    DESCRIPTION: Final = "mlflow.note.content"  # Markdown
    LOGGED_IMAGES: Final = "mlflow.loggedImages"  # on runs whose images the chart view can compare
    LOGGED_ARTIFACTS: Final = "mlflow.loggedArtifacts"  # JSON: the tables that the evaluation view can compare
    PROJECT_ENTRY_POINT: Final = "mlflow.project.entryPoint"  # on runs that `mlflow run` opened
    GIT_COMMIT: Final = "mlflow.source.git.commit"

    # any run
    ROLE: Final = "role"
    HEARTBEAT: Final = "convmixer.heartbeat"  # the last one, in ISO 8601
    OUTCOME: Final = "run.outcome"  # a RunOutcome
    OUTCOME_REASON: Final = "run.outcome_reason"
    GIT_DIRTY: Final = "convmixer.git.dirty"

    # the process that owns a run, see `pipeline.runtime.process.ProcessIdentity`
    HOST: Final = process.HOST
    HOST_BOOT: Final = process.HOST_BOOT
    PROCESS: Final = process.PROCESS
    PROCESS_NAMESPACE: Final = process.PROCESS_NAMESPACE
    PROCESS_STARTED: Final = process.PROCESS_STARTED

    # runs whose energy is measured
    ENERGY_OF: Final = "convmixer.energy_of"  # the parts of the machine that count theirs

    # trainings
    DATA: Final = "data"
    REFIT: Final = "refit"  # that validation images were trained on too, in words
    WEIGHTS_FROM: Final = "weights_from"  # the model that the training has started from
    WEIGHTS_RUN: Final = "convmixer.weights_from.run"  # id of the run that trained it
    WEIGHTS_DIGEST: Final = "convmixer.weights_from.sha256"  # of a file
    TEACHER: Final = "teacher"  # the model whose predictions the training has learned
    TEACHER_RUN: Final = "convmixer.teacher.run"  # id of the run that trained it
    DEVICE: Final = "device"
    PRECISION: Final = "precision"
    RECIPE_CHANGES: Final = "convmixer.recipe.changes"  # JSON: by setting, its value and the recipe's
    TENSORFLOW: Final = "convmixer.tensorflow"
    KERAS: Final = "convmixer.keras"
    DATA_FINGERPRINT: Final = "convmixer.data.fingerprint"
    DATA_DUPLICATES: Final = "convmixer.data.duplicates"
    TEST_SET_ACCESSES: Final = "test_set_accesses"  # their number
    TEST_SET_ACCESS: Final = "convmixer.test_set_access"  # a prefix: one tag an access
    EVALUATION: Final = "convmixer.evaluation"  # a prefix: the fingerprint of the data at each place of an evaluation

    FOLD: Final = "fold"  # number of a fold, from 1, on its run

    # searches and the runs below them
    STUDY: Final = "study"
    STORAGE: Final = "convmixer.storage"
    DRIVER: Final = "convmixer.driver"
    TRIAL_STATE: Final = "trial.state"  # a TrialOutcome, or RUNNING
    TRIAL_NUMBER: Final = "trial.number"
    CONTINUES: Final = "trial.continues"  # the trial from whose checkpoint it goes on
    WINNER: Final = "winner"  # on the run of a search and on its winner's: id of the winner's run
    ENSEMBLE: Final = "ensemble"  # on its run: of which networks; on the search's: id of its run
    FINAL_RANK: Final = "final.rank"  # of a finalist among the trials, from 1

    # runs that registered a model
    REGISTERED: Final = "registered"  # the version's URI
    REGISTERED_ALIAS: Final = "registered.alias"
    REGISTERED_REASON: Final = "registered.reason"
    REGISTERED_CALIBRATED: Final = "registered.calibrated"  # URI of the version with calibrated probabilities

    # runs of the other commands
    REPORT_RUNS: Final = "report.runs"
    EVALUATION_MODEL: Final = "evaluation.model"
    EVALUATION_IMAGES: Final = "evaluation.images"
    EXPORT_MODEL: Final = "export.model"
    EXPORT_FORMATS: Final = "export.formats"
    PREDICT_MODEL: Final = "predict.model"
    PREDICT_IMAGES: Final = "predict.images"
    PREDICT_MODEL_ID: Final = "convmixer.predict.model_id"
    PREDICT_TRAINED_BY: Final = "convmixer.predict.trained_by"

    # for a moment, on an experiment to which the doctor writes
    DOCTOR: Final = "convmixer.doctor"

    # why a trial failed, or why a model version is the champion or not
    REASON: Final = "reason"

    # logged models and their versions
    FILE_DIGESTS: Final = "convmixer.sha256"  # SHA-256 of each file, as JSON
    CLASSES_DIGEST: Final = "convmixer.classes.sha256"  # of the names of the classes, in order
    VERSION_RUN: Final = "convmixer.run"  # id of the run that a version comes from
    TEMPERATURE: Final = (
        "temperature"  # by which the logits of a calibrated model are divided, and its images, in words
    )
    CALIBRATED_FROM: Final = "calibrated_from"  # on a version: the one whose model it calibrates


class Role(StrEnum):
    """What a run is for."""

    RUN = "run"  # one training, or those of all folds together
    FOLD = "fold"  # the training of one fold, below their run
    SEARCH = "search"
    DRIVER = "driver"  # one of several that share a search
    TRIAL = "trial"
    FINAL = "final"  # a finalist's training with more epochs or seeds, or the winner's on validation images too
    ENSEMBLE = "ensemble"  # the finalists of a search as one model
    RESUME = "resume"  # what `mlflow run` opened for another run that goes on
    REPORT = "report"
    EVALUATE = "evaluate"
    PREDICT = "predict"
    EXPORT = "export"
    DOCTOR = "doctor"


class RunOutcome(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"  # by a signal

    @property
    def status(self) -> str:
        """MLflow's status of a run that ended so."""
        return "KILLED" if self is RunOutcome.STOPPED else self.value.upper()


RUNNING = "running"  # a trial's state until it ends


class TrialOutcome(StrEnum):
    """How a trial ended."""

    FINISHED = "finished"
    PRUNED = "pruned"  # the driver asked
    STOPPED = "stopped"  # the driver, or a SIGTERM
    TIMEOUT = "timeout"  # took more minutes than it was given
    DIVERGED = "diverged"  # its loss was no longer finite
    INFEASIBLE = "infeasible"  # beyond a limit of the search, which was found out before its training
    OOM = "oom"  # wanted more memory than there was, on the GPU or the host
    RAISED = "raised"  # a Python exception
    CRASHED = "crashed"  # the process ended without reporting a result
    LOST = "node lost"  # the machine that it ran on, the connection to it, or its driver

    @property
    def status(self) -> str:
        """MLflow's status of a trial that ended so."""
        if self is TrialOutcome.FINISHED:
            return "FINISHED"
        return "FAILED" if self.is_failure else "KILLED"

    @property
    def is_failure(self) -> bool:
        """Whether the trial ended otherwise than by its own end or at the driver's request."""
        expected = {TrialOutcome.FINISHED, TrialOutcome.PRUNED, TrialOutcome.STOPPED, TrialOutcome.INFEASIBLE}
        return self not in expected


@dataclass(frozen=True)
class RunRef:
    """Address of an existing MLflow run."""

    tracking_uri: str
    run_id: str


def trial_outcome_tags(outcome: TrialOutcome) -> dict[str, str]:
    """Return the tags that say how a trial ended; only those that failed have a `reason`."""
    tags = {Tag.TRIAL_STATE: str(outcome)}
    if outcome.is_failure:
        tags[Tag.REASON] = str(outcome)
    return tags


def run_outcome_tags(outcome: RunOutcome, reason: str) -> dict[str, str]:
    """Return the tags that say how a run ended and, unless `reason` is empty, why."""
    tags = {Tag.OUTCOME: str(outcome)}
    if reason:
        tags[Tag.OUTCOME_REASON] = reason
    return tags


def code_version_tags() -> dict[str, str]:
    """Return the tags of the project's commit; empty where the project is not a Git checkout.

    MLflow sets the commit itself on runs that `mlflow run` opens or its context creates. Trainings that it does not tag
    have it under the same name.
    """
    version = code_version()
    return {Tag.GIT_COMMIT: version.commit, Tag.GIT_DIRTY: str(version.is_dirty).lower()} if version else {}


def is_untouched(tags: Mapping[str, str]) -> bool:
    """Return whether `mlflow run` opened a run in which nothing has begun."""
    return Tag.PROJECT_ENTRY_POINT in tags and Tag.ROLE not in tags
