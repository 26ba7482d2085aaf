"""Fixtures of unit tests that log runs: a tracking store for each file, an experiment for each test."""

import mlflow
import pytest

from tests.support.runs import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Create a tracking store once for each file, as its tables take seconds; each test has its own experiment."""
    folder = tmp_path_factory.mktemp("store")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    yield folder
    mlflow.set_tracking_uri(before)


@pytest.fixture
def experiment(store, request):
    """Create an experiment named after the test; return it as a Store, and its name."""
    client = mlflow.MlflowClient()
    name = request.node.name[:200]
    return Store(client, client.create_experiment(name, artifact_location=str(store / "artifacts"))), name
