"""What every test gets: no MLFLOW_* variable of the caller's, no call home, a cache folder of its own."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy

from pipeline.runtime.cpu import prefer_onednn, run_operations_serially
from tests.support.postgres import Postgres, running_postgres

if TYPE_CHECKING:
    import mlflow

    from tests.support.registered import Registered

CALLERS_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def pytest_configure() -> None:
    """Before any test module is imported, since importing MLflow reads its variables and may call home."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    prefer_onednn()  # as the entry points do: with other kernels a test's own run would have other last digits
    run_operations_serially()


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ours is new in each session; the tools' stay, as a new font list or package cache takes them long to make."""
    os.environ.setdefault("MPLCONFIGDIR", str(CALLERS_CACHE / "matplotlib"))
    os.environ.setdefault("UV_CACHE_DIR", str(CALLERS_CACHE / "uv"))
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that tests share; each makes a database of its own."""
    with pytest.MonkeyPatch.context() as patch, running_postgres() as server:
        patch.setenv("PGPASSWORD", server.environment["PGPASSWORD"])
        yield server


@pytest.fixture(scope="session")
def registered_once(tmp_path_factory: pytest.TempPathFactory) -> "Registered":
    """A registered model that tests share."""
    from tests.support.registered import registered  # which imports TensorFlow

    return registered(tmp_path_factory.mktemp("registered"))


@pytest.fixture
def registered_model(registered_once: "Registered") -> Iterator["Registered"]:
    """The same, with its tracking store as MLflow's."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(registered_once.uri)
    yield registered_once
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a tracking store with an experiment `mine`; it is MLflow's own for all tests of a file."""
    from tests.support.scripted import mlflow_store

    with mlflow_store(tmp_path_factory.mktemp("store")) as uri:
        yield uri


@pytest.fixture
def client(store: str) -> "mlflow.MlflowClient":
    """MLflow's client of that store."""
    import mlflow

    return mlflow.MlflowClient()


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes the connections of the databases that a test opens, which a process leaves to its end."""
    engines = []
    create = sqlalchemy.engine.create_engine

    def noted(*given: object, **more: object) -> sqlalchemy.Engine:
        engines.append(create(*given, **more))
        return engines[-1]

    monkeypatch.setattr(sqlalchemy.engine, "create_engine", noted)
    yield
    for engine in engines:
        engine.dispose()
