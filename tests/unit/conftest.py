"""Fixtures of unit tests that log runs: an experiment for each test, in the store of its file."""

import pytest

from tests.support.runs import Store


@pytest.fixture
def experiment(client, request, tmp_path):
    """Create an experiment named after the test; return it as a Store, and its name."""
    name = request.node.name[:200]
    return Store(client, client.create_experiment(name, artifact_location=str(tmp_path / "artifacts"))), name
