"""Fixtures of unit tests: an experiment for each test in the store of its file, and what AutoGraph converts."""

import pytest

from tests.support.runs import Store


@pytest.fixture
def experiment(client, request, tmp_path):
    """Create an experiment named after the test; return it as a Store, and its name."""
    name = request.node.name[:200]
    return Store(client, client.create_experiment(name, artifact_location=str(tmp_path / "artifacts"))), name


@pytest.fixture
def converted(monkeypatch):
    """Return a list that receives the names of the functions that TensorFlow's AutoGraph is asked to convert."""
    from tensorflow.python.autograph.impl import api

    names, convert = [], api._convert_actual

    def convert_and_record(function, context):
        names.append(function.__qualname__)
        return convert(function, context)

    monkeypatch.setattr(api, "_convert_actual", convert_and_record)
    return names
