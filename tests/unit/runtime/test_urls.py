"""What of a store's URL may be seen, and by whom."""

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
def test_a_password_is_masked_wherever_a_url_may_hold_it(url, shown):
    assert mask_password(url) == (shown or url)


def test_user_and_password_of_a_server_go_to_where_mlflow_reads_them_and_never_prints_them():
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
def test_other_stores_keep_their_uri(uri):
    environ = {"MLFLOW_TRACKING_URI": uri}
    hide_credentials(environ)
    assert environ == {"MLFLOW_TRACKING_URI": uri}


@pytest.mark.parametrize("password", ["sec/ret", "sec@ret", "sec:ret", "sec#ret", "sec?ret"])
def test_a_password_that_would_be_taken_for_part_of_the_host_is_refused_unseen(password):
    """Else the database's driver names the part of it that it takes for a host or a port."""
    with pytest.raises(
        UsageError, match="^OPTUNA_STORAGE must have special characters .* escaped: @ is %40"
    ) as refused:
        check_password_escaped("OPTUNA_STORAGE", f"postgresql://me:{password}@host/db")
    assert "sec" not in str(refused.value)
    with pytest.raises(UsageError, match="^MLFLOW_TRACKING_URI must have"):
        hide_credentials({"MLFLOW_TRACKING_URI": f"http://me:{password}@host"})


def test_what_a_library_says_of_a_url_is_told_without_the_password_and_on_one_line():
    url = "postgresql://me:secret@host/db"
    said = str(storage_error("the store", url, ValueError(f"cannot\nopen {url} [SQL: CREATE TABLE x]")))
    assert said == (
        "the store must be there and writable: postgresql://me:***@host/db: "
        "ValueError: cannot open postgresql://me:***@host/db"
    )


def test_mlflows_client_waits_seconds_for_a_server_unless_it_was_told_otherwise():
    environ = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "7"}
    set_http_timeouts(environ)
    assert environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    assert int(environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) < 7, "MLflow's default, which takes minutes"
