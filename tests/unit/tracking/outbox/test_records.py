"""What is sent to a real MLflow store at the moment at which another process sends it too."""

import mlflow
import pytest
from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from pipeline.runtime.errors import TrackingError
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.outbox.records import LogBatch, Point
from tests.support.scripted import mlflow_store


class Overtaken(mlflow.MlflowClient):
    """Between its look and its writing another process logs params, as MLflow's store then says."""

    def __init__(self, *others):
        super().__init__()
        self.others = list(others)

    def log_batch(self, run_id, *arguments, **more):
        if self.others:
            super().log_batch(run_id, params=[Param(*one) for one in self.others])
            self.others = []
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: params.key, params.run_uuid")
        super().log_batch(run_id, *arguments, **more)


@pytest.fixture
def run_id(tmp_path):
    with mlflow_store(tmp_path):
        yield mlflow.MlflowClient().create_run("0").info.run_id


def batch(run_id, **params):
    return LogBatch(run_id, params=params, metrics=[Point("loss", 0.5, 1, 1)])


def test_params_that_another_process_logs_at_the_same_moment_are_sent_all_the_same(run_id):
    batch(run_id, trials="5", hours="none").send(TrackingClient(Overtaken(("trials", "5"))))
    run = mlflow.get_run(run_id)
    assert run.data.params == {"trials": "5", "hours": "none"}
    assert len(mlflow.MlflowClient().get_metric_history(run_id, "loss")) == 1


def test_params_that_another_process_logs_otherwise_are_refused(run_id):
    with pytest.raises(TrackingError, match="UNIQUE constraint failed"):
        batch(run_id, trials="5").send(TrackingClient(Overtaken(("trials", "6"))))


@pytest.mark.parametrize(
    ("once", "values", "kept"),
    [(True, (0.5, 0.5), [0.5]), (True, (0.5, 0.6), [0.5]), (False, (0.5, 0.5), [0.5]), (False, (0.5, 0.6), [0.5, 0.6])],
)
def test_a_figure_that_is_told_again_by_whoever_goes_on_is_kept_once(run_id, once, values, kept):
    client = TrackingClient()
    for time, value in enumerate(values):
        LogBatch(run_id, metrics=[Point("test_accuracy", value, time, 0)], one_point_a_step=once).send(client)
    assert [point.value for point in client.get_metric_history(run_id, "test_accuracy")] == kept
