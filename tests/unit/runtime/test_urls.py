"""URLs of stores: passwords hidden and checked, timeouts, and the error for a store that cannot be opened."""

import pytest

from pipeline.runtime.errors import UsageError
from pipeline.runtime.urls import (
    check_password_escaped,
    hide_credentials,
    mask_password,
    set_http_timeouts,
    storage_error,
)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me@host/db", None),
        ("postgresql://host:5432/db", None),
        ("sqlite:////home/a:b@c/optuna.db", None),
        ("postgresql://host/db?sslmode=require&passfile=/home/me/.pgpass", None),
        ("https://ann:s3cret@host/x", "https://ann:***@host/x"),
        ("postgresql+psycopg://me:secret@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("postgresql://me:sec/ret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:secr@secret@host/db", "postgresql://me:***@host/db"),
        ("redis://:secret@host", "redis://:***@host"),
        ("mysql://me@host/db?charset=utf8&Passwd=secret", "mysql://me@host/db?charset=utf8&Passwd=***"),
        ("postgresql://host/db?password=secret&sslmode=x", "postgresql://host/db?password=***&sslmode=x"),
    ],
)
def test_mask_password_hides_it_wherever_a_url_may_hold_it(url, shown):
    assert mask_password(url) == (shown or url)


def test_hide_credentials_moves_user_and_password_to_their_variables():
    environ = {"MLFLOW_TRACKING_URI": "https://ann:s3%40cret@host:5000/x", "MLFLOW_TRACKING_PASSWORD": "older"}
    hide_credentials(environ)
    assert environ == {
        "MLFLOW_TRACKING_URI": "https://host:5000/x",
        "MLFLOW_TRACKING_USERNAME": "ann",
        "MLFLOW_TRACKING_PASSWORD": "s3@cret",
    }


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "sqlite:////a:b@c.db", "postgresql://me:secret@host/db", "", "http://[::1]:5000", "x y"]
)
def test_hide_credentials_leaves_other_stores_alone(uri):
    environ = {"MLFLOW_TRACKING_URI": uri}
    hide_credentials(environ)
    assert environ == {"MLFLOW_TRACKING_URI": uri}


@pytest.mark.parametrize("password", ["sec/ret", "sec@ret", "sec:ret", "sec#ret", "sec?ret"])
def test_check_password_escaped_refuses_without_repeating_the_password(password):
    """Else the database's driver names the part of it that it takes for a host or a port."""
    with pytest.raises(
        UsageError, match="^OPTUNA_STORAGE must have special characters .* escaped: @ is %40"
    ) as refused:
        check_password_escaped("OPTUNA_STORAGE", f"postgresql://me:{password}@host/db")
    assert "sec" not in str(refused.value)
    with pytest.raises(UsageError, match="^MLFLOW_TRACKING_URI must have"):
        hide_credentials({"MLFLOW_TRACKING_URI": f"http://me:{password}@host"})


def test_storage_error_is_one_line_without_the_password():
    url = "postgresql://me:secret@host/db"
    message = str(storage_error("the store", url, ValueError(f"cannot\nopen {url} [SQL: CREATE TABLE x]")))
    assert message == (
        "the store must be there and writable: postgresql://me:***@host/db: "
        "ValueError: cannot open postgresql://me:***@host/db"
    )


def test_set_http_timeouts_leaves_what_is_set():
    environ = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "7"}
    set_http_timeouts(environ)
    assert environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    assert int(environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) < 7, "MLflow's default, which takes minutes"
