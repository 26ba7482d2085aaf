"""Open the run that a command works in, send its heartbeat, and end it whatever happens inside."""

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from mlflow.entities import Run

from pipeline.runtime import signals
from pipeline.runtime.errors import Stopped, UsageError
from pipeline.runtime.process import ProcessIdentity
from pipeline.runtime.signals import errors_as_stopped, handle_signals
from pipeline.runtime.urls import mask_password
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.energy import log_energy
from pipeline.tracking.experiment_page import prepare_experiment_page
from pipeline.tracking.outbox.delivery import send_pending
from pipeline.tracking.outbox.outbox import PATIENCE_SECONDS, Outbox
from pipeline.tracking.ownership import (
    begin_run,
    check_unchanged,
    claim_run,
    confirm_claim,
    forget_claim,
    heartbeat_run,
    lock_run,
    outcome_of_error,
    require_server,
    set_parent,
)
from pipeline.tracking.project_run import ProjectRun
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.stale_runs import close_stale_runs
from pipeline.tracking.system_metrics import log_system_metrics
from pipeline.tracking.tags import Role, RunOutcome, Tag

# of the ten in which a run that is asked to stop ends, for what is still to be sent
STOP_SECONDS = 2.0


@contextmanager
def start_run(
    *,
    role: Role,
    parent: str | None = None,
    experiment_id: str | None = None,
    resume: Run | None = None,
    resume_name: str = "",
    tags: Mapping[str, str] | None = None,
    system_metrics: bool = False,
) -> Iterator[TrackedRun]:
    """Open the command's own run, send its heartbeat, and end it whatever happens inside.

    It is the run `resume`, else the one that `mlflow run` opened, else a new one. It ends as FINISHED, as FAILED after
    an exception, or as KILLED after a signal, with the tags `run.outcome` and `run.outcome_reason`, since an
    `mlflow run` that outlives this process writes FAILED over KILLED.

    A command writes::

        with start_run(role=Role.REPORT, experiment_id=experiment_id, tags={Tag.REPORT_RUNS: runs}) as run:
            run.set_name(f"report on {title}")
            run.set_tags(code_version_tags())
            console.print(*run.notices)
            run.log_text("report.html", html)

    Args:
        role: What the run is for.
        parent: Id of the run to put it below.
        experiment_id: Where a new run belongs; None is the present experiment.
        resume: The run to open again, as it was found; the caller holds its lock.
        resume_name: Name of the run that `mlflow run` opened, if that is not `resume`: it is put below `resume` and
            ends with it.
        tags: What a person may want to know of the run; they come first on its page.
        system_metrics: Log what the machine does, and the energy that it takes.

    Yields:
        The run. Its `notices` are lines for the terminal: on records of other runs that were pending on this machine,
        and on other runs of the experiment whose process is dead, which have been closed.

    Raises:
        UsageError: The tracking store does not answer, or does not hold the run that `mlflow run` opened; or another
            process resumes the same run.
    """
    client = TrackingClient()
    project_run = ProjectRun.find()
    all_tags = {Tag.ROLE: str(role), **(tags or {}), **({Tag.PARENT_RUN_ID: parent} if parent else {})}
    with handle_signals() as shutdown, ExitStack() as stack:
        with require_server():
            if project_run and not (resume and project_run.id == resume.info.run_id):
                project_run.check_unused(client)
            if resume:
                check_unchanged(client, resume)
                to_open = resume.info.run_id
            else:
                to_open = project_run.claim() if project_run else None
            entity = begin_run(client, to_open, experiment_id=experiment_id, tags=all_tags)
        run_id = entity.info.run_id
        if not resume:
            stack.enter_context(lock_run(run_id))
        no_run = shutdown.on_deadline

        @stack.callback
        def forget_run() -> None:
            """Leave a run that has ended as it is."""
            shutdown.on_deadline = no_run

        run = stack.enter_context(_end_on_exit(TrackedRun(run_id, Outbox(run_id), entity)))
        if system_metrics:
            stack.enter_context(log_system_metrics(run_id, run.log_system_metrics))
        with require_server():
            began = time.monotonic()
            if to_open:
                if not resume:
                    forget_claim(client, entity)
                claim_run(client, run_id, all_tags)
            run.is_claimed = True
            if resume:
                try:
                    confirm_claim(client, resume, claim_seconds=time.monotonic() - began)
                except UsageError:
                    run.is_superseded = True
                    raise
            if project_run and not project_run.is_claimed():
                run.project_run_id = _put_below(client, project_run.claim(), run_id, resume_name)
            run.notices = [*send_pending(), *close_stale_runs(client, run.experiment_id)]
            prepare_experiment_page(client, run.experiment_id)

        def on_superseded(process: ProcessIdentity) -> None:
            run.is_superseded = True
            signals.stop(f"as {process} has resumed the run")

        def on_deadline(stopped: Stopped) -> None:
            """End the run of a main thread that does not get to it."""
            run.end(*outcome_of_error(stopped))
            run.outbox.flush(at_most=STOP_SECONDS)

        if system_metrics:
            stack.enter_context(log_energy(run, is_resumed=resume is not None))
        stack.enter_context(heartbeat_run(client, run_id, superseded=on_superseded))
        shutdown.on_deadline = on_deadline
        yield run


def _put_below(client: TrackingClient, project_run_id: str, run_id: str, name: str) -> str | None:
    """Put the run that `mlflow run` opened below another one; return its id, or None if they are one run."""
    if project_run_id == run_id:
        return None
    set_parent(client, project_run_id, parent=run_id, name=name, role=Role.RESUME)
    return project_run_id


@contextmanager
def attach_run(run_id: str) -> Iterator[TrackedRun]:
    """Log to a run that a search's driver has opened, and end it as `start_run` does.

    MLflow need not answer: the driver sends what is pending at the end.
    """
    with (
        handle_signals(),
        _end_on_exit(TrackedRun(run_id, Outbox(run_id)), unavailable_seconds=STOP_SECONDS) as run,
    ):
        yield run


@contextmanager
def _end_on_exit(run: TrackedRun, *, unavailable_seconds: float = PATIENCE_SECONDS) -> Iterator[TrackedRun]:
    """End a run with the reason, whatever happens inside."""
    try:
        with errors_as_stopped():
            yield run
            run.wait_until_logged(unavailable_seconds)
        run.end(RunOutcome.FINISHED, "")
    except Stopped as stopped:
        run.end(*outcome_of_error(stopped))
        run.outbox.flush(at_most=STOP_SECONDS)
        raise
    except BaseException as error:
        # on a full disk, for example; the run has to be ended all the same
        with suppress(Exception):
            if not run.is_superseded:
                run.log_text("traceback.txt", mask_password("".join(traceback.format_exception(error))))
        run.end(*outcome_of_error(error))
        run.outbox.flush(unavailable_seconds=unavailable_seconds)
        raise
    else:
        run.outbox.flush(unavailable_seconds=STOP_SECONDS)
    finally:
        if run.outbox.pending():
            run.send_end()
        run.outbox.close()
