"""The run that `mlflow run` opened for this process, until a command claims it.

This module imports MLflow only inside functions: `convmixer train` and every refusal of bad input ask it first, and
importing MLflow takes seconds.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pipeline.runtime.errors import Stopped, UsageError
from pipeline.runtime.parent_watch import PROJECT_RUN_ID_ENV
from pipeline.tracking.tags import RunOutcome, Tag

if TYPE_CHECKING:
    from pipeline.tracking.client import Run, TrackingClient


@dataclass(frozen=True)
class ProjectRun:
    """The run whose id `mlflow run` passes to its program.

    `mlflow run` fails if its run is deleted, so a command that has another run to work on puts this one below that.
    """

    id: str

    @classmethod
    def find(cls, environ: Mapping[str, str] = os.environ) -> Self | None:
        """Return the run that `mlflow run` opened; None if there is none, or if it has been claimed."""
        run_id = environ.get(PROJECT_RUN_ID_ENV)
        return cls(run_id) if run_id else None

    @classmethod
    def find_below(cls, run_id: str) -> Self | None:
        """Return the run that `mlflow run` opened for work below another run, if it did.

        `mlflow run --run-id` may name that other run, which does not become the run of the work.
        """
        project_run = cls.find()
        if project_run and project_run.id == run_id:
            project_run.claim()
            return None
        return project_run

    def claim(self) -> str:
        """Take the run for this process's work and return its id.

        Neither MLflow's own functions nor processes that this one starts see it from then on.
        """
        os.environ.pop(PROJECT_RUN_ID_ENV, None)
        return self.id

    def check_unused(self, client: "TrackingClient") -> None:
        """Check that nothing has begun in the run: a program may pass its variable on to several commands.

        Raises:
            UsageError: Something has.
            NotFound: There is no such run.
        """
        run = client.get_run(self.id)
        if Tag.ROLE in run.data.tags:
            raise already_used(run)

    def is_claimed(self) -> bool:
        """Return whether work has begun in the run."""
        return os.environ.get(PROJECT_RUN_ID_ENV) != self.id


def already_used(run: "Run") -> UsageError:
    """Return the error for a run that a variable names, without anyone having asked for it to be resumed."""
    role, status = run.data.tags[Tag.ROLE], run.info.status
    return UsageError(
        f"{PROJECT_RUN_ID_ENV} must name a run in which nothing has begun, got {run.info.run_id} "
        f"({run.info.run_name}), which is {status} as a {role}: unset {PROJECT_RUN_ID_ENV} for a new run, or resume a "
        "training with resume=RUN_ID"
    )


@contextmanager
def close_if_unused(project_run: ProjectRun | None) -> Iterator[None]:
    """Name this process in the project's run, and close the run if an exception comes before anything claims it.

    Raises:
        UsageError: Something has begun in the run already.
    """
    if project_run is None:
        yield
        return
    from pipeline.tracking.client import TrackingClient
    from pipeline.tracking.ownership import claim_run, end_run, refuse_run

    client = TrackingClient()
    project_run.check_unused(client)
    claim_run(client, project_run.id)
    try:
        yield
    except BaseException as error:
        if not project_run.is_claimed():
            if isinstance(error, Stopped):
                end_run(client, project_run.id, RunOutcome.STOPPED, f"by {error}")
            else:
                refuse_run(client, project_run.id, str(error))
        raise


def fail_project_run(reason: str) -> None:
    """Close the project's run as failed for this reason, unless there is none or something has begun in it."""
    project_run = ProjectRun.find()
    if project_run is None:
        return
    from pipeline.tracking.client import TrackingClient
    from pipeline.tracking.ownership import refuse_run

    try:
        client = TrackingClient()
        if client.get_run(project_run.id).data.tags.keys().isdisjoint({Tag.ROLE, Tag.OUTCOME}):
            refuse_run(client, project_run.id, reason)
    except Exception:  # noqa: BLE001 - the store may be what was refused, and each kind of store raises its own
        return
