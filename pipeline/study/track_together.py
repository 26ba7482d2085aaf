"""What a study leaves in MLflow that several drivers hold: its run, which is nobody's own, and one of each driver's."""

import logging
import os
from contextlib import ExitStack

import mlflow

from pipeline.lifetime import liveness, ownership
from pipeline.lifetime.ownership import PARENT
from pipeline.store_urls import unusable
from pipeline.study.track_study import StudyRun


class JoinedRun(StudyRun):
    """The run of a study as one of several drivers sees it; `mlflow run`'s own run becomes the driver's below it."""

    def __init__(self, study: str, *, known: str | None, driver: str) -> None:
        """Open the study's run, unless it is there, and a run of this driver's below it.

        Args:
            known: id of the run that the study has had so far.
            driver: id of this driver among the study's.
        """
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client = mlflow.MlflowClient()
        self._study = study
        self._life = ExitStack()
        self._of = {"driver": driver}
        try:
            active = mlflow.start_run(run_id=os.environ.pop(ownership.OPENED, None), log_system_metrics=True)
            known = known if known and self._is_there(known) else None
            run = self._client.get_run(known) if known else self._client.create_run(active.info.experiment_id)
        except Exception as error:  # noqa: BLE001 - each kind of store raises its own
            raise unusable("the tracking store", mlflow.get_tracking_uri(), error) from None
        self.id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.artifacts: str = run.info.artifact_uri
        self.tracking_uri: str = mlflow.get_tracking_uri()
        self._mine: str = active.info.run_id
        self._own = {self.id, self._mine}
        mine = {PARENT: self.id, "role": "driver", "study": study, "mlflow.runName": f"driver {driver}", **self._of}
        ownership.tell(self._client, self._mine, mine)
        ownership.reopen(self._client, run)

    def own(self) -> list[str]:
        """Say, from now to its close, that this driver's run is this process's; returns as StudyRun's does."""
        ownership.claim(self._client, self._mine)
        beating = ownership.beating(self._client, self._mine, taken=lambda process: None)
        self._life.enter_context(beating)
        return liveness.lost(self._client, self.experiment_id)

    def close_driver(self, driver: str) -> None:
        """Close what a driver that is gone left open."""
        where = f"tags.driver = '{driver}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([self.experiment_id], filter_string=where, max_results=1000):
            self._close_lost(run.info.run_id)

    def close(self, status: str, ended: str, reason: str) -> None:
        """Close the study's run, and this driver's."""
        ownership.end(self._client, self.id, ended, reason)
        self.leave(status, ended, reason)

    def leave(self, status: str, ended: str, reason: str) -> None:
        """Close this driver's run; the study's is the others' to close."""
        self._life.close()
        ownership.tell(self._client, self._mine, {"ended": ended, "ended.reason": reason})
        mlflow.end_run(status)
