"""A run that tests of commands share; each file has a copy of its store and of its artifacts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

SMOKE = "smoke"  # the experiment's name, and the registered model's


@pytest.fixture(scope="session")
def smoke_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the recipe `smoke` and register its model; return the folder of the tracking store."""
    # They take seconds to import, which most tests here do not need
    import mlflow

    from pipeline.commands.main import run
    from tests.support.stores import tracking_store

    folder = tmp_path_factory.mktemp("smoke")
    with tracking_store(folder, SMOKE):
        mlflow.set_experiment(SMOKE)
        assert run(["train", "smoke", "--register_as", SMOKE]) == 0
    return folder


@pytest.fixture(scope="module")
def uri(smoke_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URI of a tracking store with that run, which all tests of a file use."""
    import mlflow

    from tests.support.stores import copied_store

    with copied_store(smoke_folder, tmp_path_factory.mktemp("tracking")) as uri:
        mlflow.set_experiment(SMOKE)
        yield uri


@pytest.fixture(scope="module")
def run_id(uri: str) -> str:
    """Return the id of that run."""
    import mlflow

    (run,) = mlflow.search_runs(experiment_names=[SMOKE], output_format="list")
    return run.info.run_id
