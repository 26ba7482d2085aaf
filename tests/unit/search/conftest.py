"""Fixtures of the tests of searches."""

import pytest

from tests.support.scripted import mlflow_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Use a tracking store with an experiment `mine` for all tests of a file."""
    with mlflow_store(tmp_path_factory.mktemp("store")) as uri:
        yield uri
