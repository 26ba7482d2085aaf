"""The URL of a study's storage: where it comes from, and that a password is refused and never repeated."""

import pytest

from pipeline.search.storage_url import storage_url, validate_environment
from tests.support.errors import usage_error
from tests.support.scripted import SMALL


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:secret@host:5432/db",
        "postgresql://me:sec/ret@host/db",
        "redis://:secret@host",
        "mysql://me@host/db?charset=utf8&Passwd=secret",
    ],
)
def test_password_by_flag_is_refused_with_how_to_delete_the_run_that_recorded_it(search, monkeypatch, url):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123abc")
    error = usage_error(search, SMALL, "--storage", url)
    assert "secret" not in error
    assert "`mlflow runs delete --run-id 0123abc` and `mlflow gc --run-ids 0123abc`" in error


@pytest.mark.parametrize("url", ["postgresql://me@host/db", "sqlite:////home/a:b@c/optuna.db"])
def test_storage_without_a_password_is_accepted(search, url):
    assert search(SMALL, "--storage", url).settings.storage == url


def test_password_that_no_mlflow_run_has_recorded_is_refused_without_a_word_about_runs(search):
    error = usage_error(search, SMALL, "--storage", "postgresql://me:secret@host/db")
    assert error.endswith("with the whole URL in OPTUNA_STORAGE")


def test_storage_url_is_the_setting_or_the_environments_or_a_file_beside_mlflows(search, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ = {"OPTUNA_STORAGE": "postgresql://me:secret@host/db"}
    assert storage_url(search(SMALL, "--storage", "none").settings.storage, environ) == environ["OPTUNA_STORAGE"]
    assert storage_url("sqlite:///mine.db", environ) == "sqlite:///mine.db"
    assert storage_url(None, {}) == f"sqlite:///{tmp_path}/optuna.db"
    assert storage_url(None, {"MLFLOW_TRACKING_URI": "sqlite:////data/mlflow.db"}) == "sqlite:////data/optuna.db"
    assert storage_url(None, {"MLFLOW_TRACKING_URI": "http://host:5000"}) == f"sqlite:///{tmp_path}/optuna.db"


@pytest.mark.parametrize("value", ["secret", "postgresql://me:sec@ret@host/db"])
def test_environment_without_a_valid_url_is_refused_and_not_repeated(value):
    error = usage_error(validate_environment, {"OPTUNA_STORAGE": value})
    assert error.startswith("OPTUNA_STORAGE must ") and "sec" not in error
    validate_environment({"OPTUNA_STORAGE": "postgresql://me:secret@host/db"})
    validate_environment({})
