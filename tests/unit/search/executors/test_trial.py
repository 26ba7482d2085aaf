"""What a trial does on a node beside its training."""

import time

import mlflow
import pytest

from pipeline.config.training import TrainingConfig
from pipeline.search.executors import trial
from pipeline.search.executors.base import TrialJob
from pipeline.tracking.outbox.records import LogBatch, Point
from pipeline.tracking.outbox.spool import Spool
from pipeline.tracking.tags import RunRef
from tests.support.scripted import mlflow_store


@pytest.mark.parametrize(("role", "sent"), [("trial", True), ("step", False)])
def test_what_an_earlier_trial_has_left_on_a_node_is_sent_while_the_next_one_trains(tmp_path, monkeypatch, role, sent):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with mlflow_store(tmp_path) as uri:
        client = mlflow.MlflowClient()
        run_id = client.create_run("1").info.run_id
        left = Spool(run_id, destination=uri)
        left.put(LogBatch(run_id, metrics=[Point("loss", 0.5, 1, 1)], one_point_a_step=True))

        def train(job, trial):
            until = time.monotonic() + (30 if sent else 0.5)
            while left.folder.exists() and time.monotonic() < until:
                time.sleep(0.05)

        monkeypatch.setattr(trial, "train_trial", train)
        job = TrialJob(1, TrainingConfig.build({"dataset": "digits"}), RunRef(uri, "another"), role)
        trial.train_on_node(job, None)
        assert [point.step for point in client.get_metric_history(run_id, "loss")] == [1] * sent
        assert left.folder.exists() != sent
