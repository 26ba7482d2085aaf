"""Fixtures of all tests: no MLFLOW_* variables, no telemetry, a cache folder for the session, shared stores."""

import gc
import os
import sqlite3
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy

from pipeline.runtime.cpu import run_operations_serially
from pipeline.runtime.environment import set_environment
from tests.support.postgres import Postgres, running_postgres

if TYPE_CHECKING:
    import mlflow

    from tests.support.registered_model import Registered

# By seconds on two cores; the first two have slow tests alone
LONGEST_FILES = (
    *("integration/test_fresh_machine.py", "integration/test_container_roots.py"),
    *("integration/test_search.py", "unit/training/test_fit.py", "integration/test_train.py"),
    *("integration/test_resume.py", "integration/test_devices.py", "unit/search/executors/test_local.py"),
    *("unit/commands/test_evaluate.py", "unit/search/executors/test_trial.py", "unit/training/test_folds.py"),
    *("integration/test_user_configuration.py", "integration/test_secrets.py", "unit/search/test_session.py"),
)
CALLERS_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def set_test_environment() -> None:
    """Set the environment before anything imports MLflow, which reads its variables and may send telemetry."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # As the entry points do: with other kernels a run in a test's own process would differ in its last digits
    set_environment(os.environ)
    run_operations_serially()
    # The million objects that the imports create stay, and looking for garbage among them takes a seventh of the time
    gc.disable()


# pytest_configure would be late: other conftest.py files, which import MLflow, are imported before it
set_test_environment()


@sqlalchemy.event.listens_for(sqlalchemy.pool.Pool, "connect")
def close_with_its_pool(connection: sqlite3.Connection, record: sqlalchemy.pool.ConnectionPoolEntry) -> None:
    """Close a connection once its pool is forgotten: since Python 3.13 sqlite3 warns of one that is open then.

    Neither MLflow nor Optuna closes the connections of a store; a process has one store and keeps it to its end.
    """
    weakref.finalize(record, connection.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest: the last file of two workers that run side by side should be short."""
    ranks = {Path(__file__).parent / file: rank for rank, file in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but not among what the imports have created."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Use a new cache folder in each session, but the user's for fonts and packages, which take long to collect."""
    os.environ.setdefault("MPLCONFIGDIR", str(CALLERS_CACHE / "matplotlib"))
    os.environ.setdefault("UV_CACHE_DIR", str(CALLERS_CACHE / "uv"))
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def float32() -> None:
    """Begin each test with Keras' own precision: a training leaves that of the processor, such as bfloat16."""
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Yield a PostgreSQL server that tests share; each creates a database of its own."""
    with pytest.MonkeyPatch.context() as patch, running_postgres() as server:
        patch.setenv("PGPASSWORD", server.environment["PGPASSWORD"])
        yield server


@pytest.fixture(scope="session")
def registered_once(tmp_path_factory: pytest.TempPathFactory) -> "Registered":
    """Return a registered model that tests share."""
    # It imports TensorFlow, which most tests do not need
    from tests.support.registered_model import register_model

    return register_model(tmp_path_factory.mktemp("registered"))


@pytest.fixture
def registered_model(registered_once: "Registered") -> Iterator["Registered"]:
    """Yield the same, with its tracking store as MLflow's."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(registered_once.uri)
    yield registered_once
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URI of a tracking store with an experiment `mine`, which all tests of a file use."""
    from tests.support.scripted import mlflow_store

    with mlflow_store(tmp_path_factory.mktemp("store")) as uri:
        yield uri


@pytest.fixture
def client(store: str) -> "mlflow.MlflowClient":
    """Return MLflow's client of that store."""
    import mlflow

    return mlflow.MlflowClient()


@pytest.fixture
def close_databases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the connections to databases that a test opens, which a process leaves open to its end."""
    engines = []
    create = sqlalchemy.engine.create_engine

    def create_and_record(*arguments: object, **options: object) -> sqlalchemy.Engine:
        engines.append(create(*arguments, **options))
        return engines[-1]

    monkeypatch.setattr(sqlalchemy.engine, "create_engine", create_and_record)
    yield
    for engine in engines:
        engine.dispose()
