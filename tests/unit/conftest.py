"""A store of its own for what compares runs."""

import mlflow
import pytest

from tests.support.runs import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Made once a file, as its tables take seconds; the tests' runs are apart by experiment."""
    folder = tmp_path_factory.mktemp("store")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    yield folder
    mlflow.set_tracking_uri(before)


@pytest.fixture
def experiment(store, request):
    """An experiment named after the test, in which it makes its runs."""
    client = mlflow.MlflowClient()
    name = request.node.name[:200]
    return Store(client, client.create_experiment(name, artifact_location=str(store / "artifacts"))), name
