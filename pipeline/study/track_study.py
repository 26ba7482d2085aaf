"""What a study leaves in MLflow: one parent run, a child a trial; for drivers, which import no TensorFlow."""

import logging
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack

import mlflow
import pandas as pd
from matplotlib.figure import Figure
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from pipeline.lifetime import liveness, ownership
from pipeline.lifetime.ownership import PARENT, TAG_CHARACTERS
from pipeline.store_urls import unusable
from pipeline.workers.jobs import Ended, Outcome, RunRef, ending_tags

STATUS = {Outcome.FINISHED: "FINISHED", Outcome.PRUNED: "KILLED", Outcome.STOPPED: "KILLED"}  # else FAILED


class StudyRun:
    """The one run of a study, whether it is begun or gone on with, and the runs under it."""

    def __init__(self, study: str, *, known: str | None, trials: int) -> None:
        """Open the study's run.

        A run that `mlflow run` opened for a study which has one already becomes a child of that: `mlflow run` fails if
        its run is deleted.

        Args:
            known: id of the run that the study has had so far.
            trials: how many it has finished, for the name of such a child.
        """
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client = mlflow.MlflowClient()
        self._study = study
        self._life = ExitStack()
        given = os.environ.pop(ownership.OPENED, None)
        known = known if known and self._is_there(known) else None
        try:
            active = mlflow.start_run(run_id=known or given, log_system_metrics=True)
        except Exception as error:  # noqa: BLE001 - each kind of store raises its own
            raise unusable("the tracking store", mlflow.get_tracking_uri(), error) from None
        self.id: str = active.info.run_id
        self._own = {self.id, given}
        self._of: dict[str, str] = {}  # tags of all that it opens
        self.experiment_id: str = active.info.experiment_id
        self.artifacts: str = active.info.artifact_uri
        self.tracking_uri: str = mlflow.get_tracking_uri()
        if given and known and given != known:
            ownership.nest(self._client, given, parent=self.id, name=f"resumed after {trials} trials")
            self._client.set_tag(given, "study", study)

    def own(self) -> list[str]:
        """Say, from now to its close, that the study's own run is this process's.

        Returns:
            A line for each other run of the experiment that has lost its process: those of this host are closed.
        """
        ownership.claim(self._client, self.id)
        # a second driver, which the study's lease knows of before
        beating = ownership.beating(self._client, self.id, taken=lambda process: None)
        self._life.enter_context(beating)
        return liveness.lost(self._client, self.experiment_id)

    def name(self, name: str) -> None:
        self._client.set_tag(self.id, "mlflow.runName", name)

    def tags(self, tags: Mapping[str, str]) -> None:
        ownership.tell(self._client, self.id, tags)

    def params(self, settings: Mapping[str, str]) -> None:
        """Log the settings that no earlier call, and not `mlflow run`, has logged."""
        there = self._client.get_run(self.id).data.params
        new = [Param(name, value[:TAG_CHARACTERS]) for name, value in settings.items() if name not in there]
        self._client.log_batch(self.id, params=new)

    def metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    def figure(self, path: str, figure: Figure) -> None:
        self._client.log_figure(self.id, figure, path)

    def table(self, path: str, table: pd.DataFrame) -> None:
        self._client.log_text(self.id, table.to_csv(index=False), path)

    def text(self, path: str, text: str) -> None:
        self._client.log_text(self.id, text, path)

    def child(self, name: str, *, role: str, tags: Mapping[str, str], under: str | None = None) -> RunRef:
        """Open a run below the study's own, or below another of its runs."""
        run = self._client.create_run(
            self.experiment_id,
            run_name=name,
            tags={
                PARENT: under or self.id,
                "study": self._study,
                "role": role,
                "trial.state": "running",
                **self._of,
                **tags,
            },
        )
        return RunRef(self.tracking_uri, run.info.run_id)

    def close_child(self, run_id: str, ended: Ended) -> None:
        """Close a trial's run as it ended; it may have done so itself, if it lived to."""
        if self._client.get_run(run_id).info.status == "RUNNING":
            self._client.set_terminated(run_id, STATUS.get(ended.outcome, "FAILED"))
        for name, value in ending_tags(ended.outcome).items():
            self._client.set_tag(run_id, name, value)
        if ended.reason:
            self._client.set_tag(run_id, "ended.reason", ended.reason[:TAG_CHARACTERS])
        if ended.output_tail and ended.outcome not in STATUS:
            self._client.log_text(run_id, ended.output_tail, "output.txt")

    def measure(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Log figures of a run below the study's own."""
        for name, value in metrics.items():
            self._client.log_metric(run_id, name, value)

    def finish_child(self, run_id: str, outcome: Outcome) -> None:
        """Close a run that trained nothing itself."""
        for name, value in ending_tags(outcome).items():
            self._client.set_tag(run_id, name, value)
        self._client.set_terminated(run_id, STATUS.get(outcome, "FAILED"))

    def close_lost(self) -> int:
        """Close as FAILED the runs below this one that a driver left open; returns how many."""
        finals = self._below(self.id, "tags.role = 'final'")
        lost = [run_id for parent in [self.id, *finals] for run_id in self._below(parent, "status = 'RUNNING'")]
        lost = [run_id for run_id in lost if run_id not in self._own]
        for run_id in lost:
            self._close_lost(run_id)
        return len(lost)

    def _close_lost(self, run_id: str) -> None:
        self._client.set_tag(run_id, "trial.state", "lost")
        ownership.end(self._client, run_id, "failed", "the search's driver was gone")

    def _below(self, run_id: str, where: str) -> list[str]:
        """Ids of a run's own children; the study's name would find those of another storage too."""
        mine = f"tags.`{PARENT}` = '{run_id}' and {where}"
        found = self._client.search_runs([self.experiment_id], filter_string=mine, max_results=1000)
        return [run.info.run_id for run in found]

    def close(self, status: str, ended: str, reason: str) -> None:
        """Close the study's own run."""
        self._life.close()
        ownership.tell(self._client, self.id, {"ended": ended, "ended.reason": reason})
        mlflow.end_run(status)

    def _is_there(self, run_id: str) -> bool:
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException:
            return False
