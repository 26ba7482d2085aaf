"""The run of a study in MLflow and the runs below it, one a trial; for drivers, which import no TensorFlow."""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace

import mlflow

from pipeline.runtime.errors import Stopped, Unavailable, UsageError
from pipeline.runtime.urls import mask_password
from pipeline.tracking import registry
from pipeline.tracking.client import TAG_CHARACTERS, TrackingClient
from pipeline.tracking.energy import log_energy
from pipeline.tracking.errors import is_unavailable
from pipeline.tracking.experiment_page import prepare_experiment_page
from pipeline.tracking.lifecycle import STOP_SECONDS
from pipeline.tracking.outbox import spool
from pipeline.tracking.outbox.delivery import describe_error, send_pending
from pipeline.tracking.outbox.outbox import Outbox
from pipeline.tracking.outbox.records import EndRun, ForwardSpool, LogBatch, LogFiles
from pipeline.tracking.ownership import begin_run, claim_run, heartbeat_run, reopen_run, require_server, set_parent
from pipeline.tracking.project_run import ProjectRun
from pipeline.tracking.run import PARAM_CHARACTERS, TrackedRun, end_record, metric_points
from pipeline.tracking.stale_runs import close_stale_runs
from pipeline.tracking.system_metrics import log_system_metrics
from pipeline.tracking.tags import RUNNING, Role, RunOutcome, RunRef, Tag, TrialOutcome, trial_outcome_tags

MAX_STOP_SECONDS = 8.0  # in which a driver that was asked to stop sends what is pending
# Running, and not opened by a command that works below a search beside its driver
IS_DRIVERS = "status = 'RUNNING'" + "".join(
    f" and tags.{Tag.ROLE} != '{role}'" for role in (Role.REPORT, Role.EVALUATE, Role.PREDICT, Role.EXPORT)
)
DRIVER_GONE = "the search's driver was gone"


class StudyRun:
    """The run of a study as its driver sees it, and the runs below it.

    What is logged goes through an outbox, which no outage of the tracking server stops.

    Attributes:
        run: The study's own run.
    """

    def __init__(
        self,
        study: str,
        run: TrackedRun,
        *,
        driver_run: TrackedRun,
        project_run_id: str | None = None,
        child_tags: Mapping[str, str] | None = None,
        is_resumed: bool = False,
        measures_energy: bool = True,
    ) -> None:
        """Log to an open run; see `open_study_run` and `join_study_run`.

        Args:
            study: Name of the study.
            run: The study's run.
            driver_run: The run that this process claims: the study's, or one of its own.
            project_run_id: The run below the study's that `mlflow run` opened, and ends.
            child_tags: Tags of all runs that it opens.
            is_resumed: Whether another process has worked on the driver's run before.
            measures_energy: Whether the trials run on this machine, whose energy is then logged.
        """
        self.run = run
        self.tracking_uri: str = mlflow.get_tracking_uri()
        self._study = study
        self._driver_run = driver_run
        self._own_run_ids = {run.id, driver_run.id, project_run_id}
        self._child_tags = dict(child_tags or {})
        self._is_resumed, self._measures_energy = is_resumed, measures_energy
        self._client = TrackingClient()
        self._outbox = run.outbox
        self._life = ExitStack()
        self._life.enter_context(log_system_metrics(driver_run.id, driver_run.log_system_metrics))

    @property
    def id(self) -> str:
        """Id of the study's run."""
        return self.run.id

    def claim(self) -> list[str]:
        """Claim this process's run and send its heartbeat until the run is closed.

        Returns:
            A line for each other run that had records on this machine, and for each stale or unresponsive run of the
            experiment.

        Raises:
            UsageError: The tracking store does not answer.
        """
        with require_server():
            role = Role.SEARCH if self._driver_run.id == self.id else Role.DRIVER
            claim_run(self._client, self._driver_run.id, {**_search_tags(self._study), Tag.ROLE: str(role)})
            self._driver_run.is_claimed = True
            lines = [*send_pending(), *close_stale_runs(self._client, self.run.experiment_id)]
            prepare_experiment_page(self._client, self.run.experiment_id, unfold=self.id)
        if self._measures_energy:
            self._life.enter_context(log_energy(self._driver_run, is_resumed=self._is_resumed))
        # a second driver does not supersede this one: the study's lease keeps it out
        self._life.enter_context(heartbeat_run(self._client, self._driver_run.id))
        return lines

    def start_child(self, name: str, *, role: Role, tags: Mapping[str, str], parent: str | None = None) -> RunRef:
        """Open a run below the study's.

        Args:
            name: Of the new run.
            role: What it is for.
            tags: More tags.
            parent: Id of another run to put it below.

        Raises:
            Unavailable: The tracking server does not answer.
            TrackingError: It has refused something: the study's run has been deleted, for example.
        """
        self._outbox.raise_rejection()
        all_tags = {
            Tag.PARENT_RUN_ID: parent or self.id,
            Tag.STUDY: self._study,
            Tag.ROLE: str(role),
            Tag.TRIAL_STATE: RUNNING,
            **self._child_tags,
            **tags,
        }
        try:
            run = self._client.create_run(self.run.experiment_id, name=name, tags=all_tags)
        except Exception as error:
            if is_unavailable(error):
                raise Unavailable(describe_error(error)) from None
            raise
        return RunRef(self.tracking_uri, run.info.run_id)

    def log_child_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Log metrics of a run below the study's that describe it as a whole."""
        self._outbox.put(LogBatch(run_id, metrics=metric_points(metrics, step=0)))

    def log_child_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Log parameters of a run below the study's that trains nothing itself."""
        self._outbox.put(LogBatch(run_id, params={name: value[:PARAM_CHARACTERS] for name, value in params.items()}))

    def present_child(
        self, run_id: str, *, description: str, name: str | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        """Give a run below the study's a description in Markdown, and maybe another name and more tags."""
        named = {} if name is None else {Tag.RUN_NAME: name}
        self._outbox.put(LogBatch(run_id, tags={Tag.DESCRIPTION: description, **named, **(tags or {})}))

    def end_trial(self, run_id: str, outcome: TrialOutcome, *, reason: str, output_tail: str) -> None:
        """End the run of a trial whose process is gone; the process may have ended it itself.

        Args:
            run_id: The trial's run.
            outcome: How the trial ended.
            reason: Why; may be empty.
            output_tail: The end of what its process wrote, which is logged if it failed.
        """
        if output_tail and outcome.is_failure:
            self._outbox.put(LogFiles(run_id, write=spool.write_text("output.txt", mask_password(output_tail))))
        self._outbox.put(ForwardSpool(run_id))
        end = self._trial_end(run_id, outcome, reason)
        # a finalist's run that has ended may crash when it is measured
        self._outbox.put(replace(end, keep_status=outcome is not TrialOutcome.CRASHED))

    def end_child(self, run_id: str, outcome: TrialOutcome) -> None:
        """End a run that trained nothing itself."""
        self._outbox.put(self._trial_end(run_id, outcome, ""))

    def describe_registration(self, run_id: str) -> str:
        """Return what became of the registration of a run's model."""
        # it is only shown
        with suppress(Exception):
            if description := registry.describe(self._client.get_run(run_id).data.tags):
                return description
        return "not registered: the tracking server has not taken it yet, or has refused it"

    def close_lost(self, reason: str = DRIVER_GONE) -> int:
        """Close as FAILED the runs below the study's that a driver left open; return how many.

        Raises:
            UsageError: The tracking store does not answer.
        """
        # the driver that left them may also have left how they ended
        self._outbox.flush()
        with require_server():
            finals = self._children(self.id, f"tags.{Tag.ROLE} = '{Role.FINAL}'")
            lost = [run_id for parent in [self.id, *finals] for run_id in self._children(parent, IS_DRIVERS)]
        lost = [run_id for run_id in lost if run_id not in self._own_run_ids]
        for run_id in lost:
            self.end_lost(run_id, reason)
        return len(lost)

    def end_lost(self, run_id: str, reason: str) -> None:
        """End as FAILED a run that a driver left open."""
        end = end_record(run_id, RunOutcome.FAILED, reason)
        self._outbox.put(replace(end, tags={**end.tags, Tag.TRIAL_STATE: str(TrialOutcome.LOST)}))

    def close(self, outcome: RunOutcome, reason: str) -> str | None:
        """End the study's run; return a line on the records that are pending, if any."""
        self.stop_heartbeat()
        self.run.end(outcome, reason)
        if flush_at_end(self._outbox, outcome):
            self.run.send_end()
        else:
            with suppress(UsageError):
                self.close_lost("the tracking server began it, and its answer was lost")
                flush_at_end(self._outbox, outcome)
        return self.close_outbox()

    def give_up(self, stopped: Stopped) -> None:
        """Record the end of this driver's run, which does not get to `close` in time."""
        reason = f"by {stopped}; its end took too long, and the same command goes on"
        self._driver_run.end(RunOutcome.STOPPED, reason)

    def stop_heartbeat(self) -> None:
        """Stop the heartbeat, the system metrics and the measurement of energy."""
        self._life.close()

    def close_outbox(self) -> str | None:
        """Stop logging; return a line on the records that are pending or were refused, if any."""
        self.stop_heartbeat()
        unsent = self._outbox.unsent()
        self._outbox.close()
        return unsent

    def _trial_end(self, run_id: str, outcome: TrialOutcome, reason: str) -> EndRun:
        end = end_record(run_id, RunOutcome.FINISHED, "")
        tags = trial_outcome_tags(outcome)
        if reason:
            tags[Tag.OUTCOME_REASON] = mask_password(reason)[:TAG_CHARACTERS]
        return replace(end, status=outcome.status, tags=tags)

    def _children(self, run_id: str, where: str) -> list[str]:
        """Return the ids of a run's own children; the study's name would find those of another storage too."""
        below = f"tags.`{Tag.PARENT_RUN_ID}` = '{run_id}' and {where}"
        return [run.info.run_id for run in self._client.search_runs([self.run.experiment_id], below)]


class SharedStudyRun:
    """The run of a study as one of several drivers sees it, each of which has a run of its own below it.

    Attributes:
        study_run: The study's run.
    """

    def __init__(self, study_run: StudyRun, driver_run: TrackedRun) -> None:
        self.study_run = study_run
        self._driver_run = driver_run
        self._client = TrackingClient()

    def close_driver(self, driver: str) -> None:
        """Close what a dead driver left open."""
        where = f"tags.{Tag.DRIVER} = '{driver}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([self._driver_run.experiment_id], where):
            self.study_run.end_lost(run.info.run_id, DRIVER_GONE)

    def close(self, outcome: RunOutcome, reason: str) -> str | None:
        """End the study's run and this driver's; return a line on the records that are pending, if any."""
        self.study_run.run.end(outcome, reason)
        return self.leave(outcome, reason)

    def leave(self, outcome: RunOutcome, reason: str) -> str | None:
        """End this driver's run alone; return a line on the records that are pending, if any."""
        self.study_run.stop_heartbeat()
        self._driver_run.end(outcome, reason)
        if flush_at_end(self._driver_run.outbox, outcome):
            for run in (self.study_run.run, self._driver_run):
                run.send_end()
        return self.study_run.close_outbox()


def open_study_run(study: str, *, known: str | None, trials: int, measures_energy: bool = True) -> StudyRun:
    """Open the run of a study that has one driver.

    Where the study has a run already, the one that `mlflow run` opened is put below it: `mlflow run` fails if its run
    is deleted.

    Args:
        study: Name of the study.
        known: Id of the run that the study has had so far.
        trials: How many it has finished, for the name of such a child.
        measures_energy: Whether its trials run on this machine.

    Raises:
        UsageError: The tracking store does not answer.
    """
    client = TrackingClient()
    with require_server():
        project_run = ProjectRun.find()
        known = known if known and client.is_active(known) else None
        if project_run and project_run.id != known:
            project_run.check_unused(client)
        given = project_run.claim() if project_run else None
        entity = begin_run(client, known or given, tags=_search_tags(study))
        run = TrackedRun(entity.info.run_id, Outbox(entity.info.run_id), entity)
        if given and given != run.id:
            set_parent(client, given, parent=run.id, name=f"resumed after {trials} trials", role=Role.RESUME)
            client.set_tags(given, {Tag.STUDY: study})
    return StudyRun(
        study,
        run,
        driver_run=run,
        project_run_id=given,
        is_resumed=known is not None,
        measures_energy=measures_energy,
    )


def join_study_run(study: str, *, known: str | None, driver: str, measures_energy: bool = True) -> SharedStudyRun:
    """Open the run of a study that has several drivers, unless it is open, and a run of this driver's below it.

    The run that `mlflow run` opened becomes the driver's.

    Args:
        study: Name of the study.
        known: Id of the run that the study has had so far.
        driver: Id of this driver among the study's.
        measures_energy: Whether its trials run on this machine.

    Raises:
        UsageError: The tracking store does not answer.
    """
    client = TrackingClient()
    with require_server():
        project_run = ProjectRun.find()
        if project_run:
            project_run.check_unused(client)
        tags = {
            Tag.ROLE: str(Role.DRIVER),
            Tag.STUDY: study,
            Tag.RUN_NAME: f"driver {driver}",
            Tag.DRIVER: driver,
        }
        own = begin_run(client, project_run.claim() if project_run else None, tags=tags)
        known = known if known and client.is_active(known) else None
        entity = client.get_run(known) if known else client.create_run(own.info.experiment_id, tags=_search_tags(study))
        claim_run(client, own.info.run_id, {Tag.PARENT_RUN_ID: entity.info.run_id, **tags})
        reopen_run(client, entity)
    outbox = Outbox(own.info.run_id)
    driver_run = TrackedRun(own.info.run_id, outbox, own)
    run = TrackedRun(entity.info.run_id, outbox, entity)
    study_run = StudyRun(
        study, run, driver_run=driver_run, child_tags={Tag.DRIVER: driver}, measures_energy=measures_energy
    )
    return SharedStudyRun(study_run, driver_run)


def _search_tags(study: str) -> dict[str, str]:
    return {Tag.ROLE: str(Role.SEARCH), Tag.STUDY: study}


def flush_at_end(outbox: Outbox, outcome: RunOutcome) -> int:
    """Send what is pending at a run's end and return how many records still are; take little time after a stop."""
    if outcome is RunOutcome.STOPPED:
        # however slowly the server answers
        return outbox.flush(unavailable_seconds=STOP_SECONDS, at_most=MAX_STOP_SECONDS)
    return outbox.flush()
