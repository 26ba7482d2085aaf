"""Fixtures of the tests of searches."""

import pytest

from tests.support.scripted import SMALL, make_search, mlflow_store


@pytest.fixture
def search(tmp_path):
    """Return a function that builds a search from a file's text and flags."""
    return lambda text=SMALL, *flags, name="mine": make_search(tmp_path, text, *flags, name=name)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Use a tracking store with an experiment `mine` for all tests of a file."""
    with mlflow_store(tmp_path_factory.mktemp("store")) as uri:
        yield uri
