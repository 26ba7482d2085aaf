"""What a study leaves in MLflow: one parent run, a child a trial; for drivers, which import no TensorFlow."""

import logging
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress

import mlflow
import pandas as pd
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException

from pipeline.runtime.errors import Unavailable, UsageError
from pipeline.runtime.parent_watch import PROJECT_RUN_ID_ENV
from pipeline.runtime.process import this_process
from pipeline.tracking import ownership, registry, stale_runs
from pipeline.tracking.outbox import spool
from pipeline.tracking.outbox.delivery import reason, send_pending
from pipeline.tracking.outbox.outbox import PATIENCE_SECONDS, Outbox
from pipeline.tracking.outbox.records import is_permanent
from pipeline.tracking.ownership import TAG_CHARACTERS
from pipeline.tracking.system_metrics import system_metrics
from pipeline.tracking.tags import (
    RUNNING,
    Role,
    RunOutcome,
    RunRef,
    Tag,
    TrialOutcome,
    run_outcome_tags,
    trial_outcome_tags,
)

STATUS = {
    TrialOutcome.FINISHED: "FINISHED",
    TrialOutcome.PRUNED: "KILLED",
    TrialOutcome.STOPPED: "KILLED",
}  # else FAILED
DRIVER_GONE = "the search's driver was gone"
STOP_SECONDS = 2.0  # for a server that does not answer, where somebody waits for the end


class StudyRun:
    """The one run of a study, whether it is begun or gone on with, and the runs under it.

    What it is told goes through an outbox, which no outage of the tracking server stops.
    """

    def __init__(self, study: str, *, known: str | None, trials: int) -> None:
        """Open the study's run.

        A run that `mlflow run` opened for a study which has one already becomes a child of that: `mlflow run` fails if
        its run is deleted.

        Args:
            known: id of the run that the study has had so far.
            trials: how many it has finished, for the name of such a child.

        Raises:
            UsageError: the tracking store does not answer.
        """
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client = mlflow.MlflowClient()
        self._study = study
        self._life = ExitStack()
        with ownership.require_server():
            given = os.environ.pop(PROJECT_RUN_ID_ENV, None)
            known = known if known and self._is_there(known) else None
            self._found = ownership.begin_run(self._client, known or given)
            self.id: str = self._found.info.run_id
            self._own = {self.id, given}
            self._of: dict[str, str] = {}  # tags of all that it opens
            if given and known and given != known:
                ownership.set_parent(
                    self._client, given, parent=self.id, name=f"resumed after {trials} trials", role=Role.RESUME
                )
                self._client.set_tag(given, Tag.STUDY, study)
        self._begin(self.id)

    def _begin(self, mine: str) -> None:
        """The rest of opening; `mine` is the id of the run that is this process's."""
        self._mine = mine
        self.experiment_id: str = self._found.info.experiment_id
        self.artifacts: str = self._found.info.artifact_uri
        self.tracking_uri: str = mlflow.get_tracking_uri()
        self._outbox = Outbox(mine)
        self._life.enter_context(system_metrics(mine, lambda figures, step: self.measure(mine, figures, step=step)))

    def own(self) -> list[str]:
        """Say, from now to its close, that the run that is this process's is so.

        Returns:
            A line for each other run that left something to be told, and for each other run of the experiment that has
            lost its process: those of this host are closed.

        Raises:
            UsageError: the tracking store does not answer.
        """
        with ownership.require_server():
            ownership.claim_run(self._client, self._mine)
            lines = [*send_pending(), *stale_runs.close_stale_runs(self._client, self.experiment_id)]
        # a second driver, which the study's lease knows of before
        beating = ownership.heartbeat_run(self._client, self._mine, taken=lambda process: None)
        self._life.enter_context(beating)
        return lines

    def name(self, name: str) -> None:
        self.tags({Tag.RUN_NAME: name})

    def tags(self, tags: Mapping[str, str]) -> None:
        self._tags(self.id, tags)

    def params(self, settings: Mapping[str, str]) -> None:
        """Log the settings that no earlier call, and not `mlflow run`, has logged."""
        there = self._found.data.params
        new = {name: value[:TAG_CHARACTERS] for name, value in settings.items() if name not in there}
        self._outbox.put("batch", {"params": new}, run_id=self.id)

    def metrics(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        self.measure(self.id, metrics, step=step or 0)

    def figure(self, path: str, figure: Figure) -> None:
        self._outbox.put("files", run_id=self.id, fill=spool.save_figure(path, figure))

    def table(self, path: str, table: pd.DataFrame) -> None:
        self.text(path, table.to_csv(index=False))

    def text(self, path: str, text: str) -> None:
        self._outbox.put("files", run_id=self.id, fill=spool.write_text(path, text))

    def child(self, name: str, *, role: str, tags: Mapping[str, str], under: str | None = None) -> RunRef:
        """Open a run below the study's own, or below another of its runs.

        Raises:
            Away: the tracking server does not answer.
            MlflowException: it has refused something: the study's run has been deleted, say.
        """
        self._outbox.check()
        try:
            run = self._client.create_run(
                self.experiment_id,
                run_name=name,
                tags={
                    Tag.PARENT_RUN_ID: under or self.id,
                    Tag.STUDY: self._study,
                    Tag.ROLE: role,
                    Tag.TRIAL_STATE: RUNNING,
                    **self._of,
                    **tags,
                },
            )
        except Exception as error:
            if is_permanent(error):
                raise
            raise Unavailable(reason(error)) from None
        return RunRef(self.tracking_uri, run.info.run_id)

    def close_child(self, run_id: str, outcome: TrialOutcome, *, reason: str, output_tail: str) -> None:
        """Close a trial's run as it ended; it may have done so itself, if it lived to."""
        if output_tail and outcome not in STATUS:
            self._outbox.put("files", run_id=run_id, fill=spool.write_text("output.txt", output_tail))
        self._outbox.put("others", run_id=run_id)
        tags = trial_outcome_tags(outcome)
        if reason:
            tags[Tag.OUTCOME_REASON] = reason[:TAG_CHARACTERS]
        if_open = outcome is not TrialOutcome.CRASHED  # a final that was closed may crash as it is measured
        self._end(run_id, STATUS.get(outcome, "FAILED"), tags, if_open=if_open)

    def registered(self, run_id: str) -> str:
        """What became of the registration of a run's model."""
        with suppress(Exception):  # it is only shown
            if told := registry.describe(self._client.get_run(run_id).data.tags):
                return told
        return "not registered: the tracking server has not taken it yet, or has refused it"

    def measure(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log figures of the study's own run or of one below it."""
        now = int(1000 * time.time())
        points = [[name, float(value), now, step] for name, value in metrics.items()]
        self._outbox.put("batch", {"metrics": points}, run_id=run_id)

    def finish_child(self, run_id: str, outcome: TrialOutcome) -> None:
        """Close a run that trained nothing itself."""
        self._end(run_id, STATUS.get(outcome, "FAILED"), trial_outcome_tags(outcome))

    def close_lost(self, why: str = DRIVER_GONE) -> int:
        """Close as FAILED the runs below this one that a driver left open; returns how many.

        Raises:
            UsageError: the tracking store does not answer.
        """
        self._outbox.flush()  # the driver that left them may also have left how they ended
        with ownership.require_server():
            finals = self._below(self.id, f"tags.{Tag.ROLE} = '{Role.FINAL}'")
            lost = [run_id for parent in [self.id, *finals] for run_id in self._below(parent, "status = 'RUNNING'")]
        lost = [run_id for run_id in lost if run_id not in self._own]
        for run_id in lost:
            self._close_lost(run_id, why)
        return len(lost)

    def _close_lost(self, run_id: str, why: str) -> None:
        self._end(
            run_id, "FAILED", {Tag.TRIAL_STATE: TrialOutcome.LOST.value} | run_outcome_tags(RunOutcome.FAILED, why)
        )

    def close(self, status: str, ended: str, reason: str) -> str | None:
        """Close the study's own run; returns a line on what could not be told, if any."""
        self._life.close()
        self._end(self.id, status, ending(ended, reason), process=this_process().tags())
        away_seconds = patience(ended)
        if not self._outbox.flush(away_seconds=away_seconds):
            with suppress(UsageError):
                self.close_lost("the tracking server began it, and its answer was lost")
                self._outbox.flush(away_seconds=away_seconds)
        return self._closed_outbox()

    def _closed_outbox(self) -> str | None:
        left = self._outbox.left()
        self._outbox.close()
        return left

    def _tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        shortened = {name: value[:TAG_CHARACTERS] for name, value in tags.items()}
        self._outbox.put("batch", {"tags": shortened}, run_id=run_id)

    def _end(
        self,
        run_id: str,
        status: str,
        tags: Mapping[str, str],
        *,
        if_open: bool = False,
        process: Mapping[str, str] | None = None,
    ) -> None:
        said = {"tags": dict(tags), "status": status, "end_time": int(1000 * time.time())}
        self._outbox.put("end", {**said, "if_open": if_open, "process": process}, run_id=run_id)

    def _below(self, run_id: str, where: str) -> list[str]:
        """Ids of a run's own children; the study's name would find those of another storage too."""
        mine = f"tags.`{Tag.PARENT_RUN_ID}` = '{run_id}' and {where}"
        found = self._client.search_runs([self.experiment_id], filter_string=mine, max_results=1000)
        return [run.info.run_id for run in found]

    def _is_there(self, run_id: str) -> bool:
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if not is_permanent(error):
                raise
            return False


def ending(ended: str, reason: str) -> dict[str, str]:
    """The tags of how a run ended: finished, failed or stopped, and why."""
    return run_outcome_tags(RunOutcome(ended), reason[:TAG_CHARACTERS])


def patience(ended: str) -> float:
    """Seconds to wait at an end like this for a tracking server that does not answer."""
    return STOP_SECONDS if ended == "stopped" else PATIENCE_SECONDS


class SharedStudyRun(StudyRun):
    """The run of a study as one of several drivers sees it; `mlflow run`'s own run becomes the driver's below it."""

    def __init__(self, study: str, *, known: str | None, driver: str) -> None:
        """Open the study's run, unless it is there, and a run of this driver's below it.

        Args:
            known: id of the run that the study has had so far.
            driver: id of this driver among the study's.

        Raises:
            UsageError: the tracking store does not answer.
        """
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client = mlflow.MlflowClient()
        self._study = study
        self._life = ExitStack()
        self._of = {Tag.DRIVER: driver}
        with ownership.require_server():
            mine = ownership.begin_run(self._client, os.environ.pop(PROJECT_RUN_ID_ENV, None))
            known = known if known and self._is_there(known) else None
            self._found = self._client.get_run(known or self._client.create_run(mine.info.experiment_id).info.run_id)
            self.id: str = self._found.info.run_id
            tags = {
                Tag.PARENT_RUN_ID: self.id,
                Tag.ROLE: Role.DRIVER,
                Tag.STUDY: study,
                Tag.RUN_NAME: f"driver {driver}",
                **self._of,
            }
            ownership.tag_run(self._client, mine.info.run_id, tags)
            ownership.reopen_run(self._client, self._found)
        self._own = {self.id, mine.info.run_id}
        self._begin(mine.info.run_id)

    def close_driver(self, driver: str) -> None:
        """Close what a driver that is gone left open."""
        where = f"tags.{Tag.DRIVER} = '{driver}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([self.experiment_id], filter_string=where, max_results=1000):
            self._close_lost(run.info.run_id, DRIVER_GONE)

    def close(self, status: str, ended: str, reason: str) -> str | None:
        """Close the study's run, and this driver's; returns as StudyRun's does."""
        self._end(self.id, status, ending(ended, reason))
        return self.leave(status, ended, reason)

    def leave(self, status: str, ended: str, reason: str) -> str | None:
        """Close this driver's run; the study's is the others' to close. Returns as StudyRun's close does."""
        self._life.close()
        self._end(self._mine, status, ending(ended, reason), process=this_process().tags())
        self._outbox.flush(away_seconds=patience(ended))
        return self._closed_outbox()
