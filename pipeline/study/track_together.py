"""What a study leaves in MLflow that several drivers hold: its run, which is nobody's own, and one of each driver's."""

import logging
import os
from contextlib import ExitStack

import mlflow

from pipeline.lifetime import ownership
from pipeline.lifetime.ancestors import OPENED
from pipeline.lifetime.ownership import PARENT
from pipeline.lifetime.process import this_process
from pipeline.study.track_study import DRIVER_GONE, StudyRun, ending, patience


class JoinedRun(StudyRun):
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
        self._of = {"driver": driver}
        with ownership.answering():
            mine = ownership.begin(self._client, os.environ.pop(OPENED, None))
            known = known if known and self._is_there(known) else None
            self._found = self._client.get_run(known or self._client.create_run(mine.info.experiment_id).info.run_id)
            self.id: str = self._found.info.run_id
            tags = {PARENT: self.id, "role": "driver", "study": study, "mlflow.runName": f"driver {driver}", **self._of}
            ownership.tell(self._client, mine.info.run_id, tags)
            ownership.reopen(self._client, self._found)
        self._own = {self.id, mine.info.run_id}
        self._begin(mine.info.run_id)

    def close_driver(self, driver: str) -> None:
        """Close what a driver that is gone left open."""
        where = f"tags.driver = '{driver}' and attributes.status = 'RUNNING'"
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
