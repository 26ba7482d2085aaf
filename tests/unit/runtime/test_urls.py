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
        ("http://TOKEN@host:5000", "http://***@host:5000"),
        ("git+https://TOKEN@host/me/repository.git", "git+https://***@host/me/repository.git"),
        ("HTTP://ann:s3cret@host", "HTTP://ann:***@host"),
        (" https://ann:s3cret@host", " https://ann:***@host"),
        ("https://ann%3As3cret@host", "https://***@host"),
        ("postgresql://ann%3As3cret@host/db", "postgresql://***@host/db"),
        ("https://ann:it's@[::1]:5000/x", "https://ann:***@[::1]:5000/x"),
        ("postgresql://me:secret@one:5432,two:5432/db", "postgresql://me:***@one:5432,two:5432/db"),
        (
            "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7Bx%7D%3BUID%3Dsa%3BPWD%3Dsecret&x=1",
            "mssql+pyodbc:///?odbc_connect=***&x=1",
        ),
        ("jdbc:sqlserver://host;user=sa;password=secret;x=1", "jdbc:sqlserver://host;user=sa;password=***;x=1"),
        ("postgresql://host/db?sslpassword=secret", "postgresql://host/db?sslpassword=***"),
        ("postgresql://host/db?pass%77ord=secret", "postgresql://host/db?pass%77ord=***"),
        (
            "https://host/x?sig=s3cret&X-Amz-Signature=s3cret#token=s3cret",
            "https://host/x?sig=***&X-Amz-Signature=***#token=***",
        ),
        (
            "s3://bucket?aws_secret_access_key=s3cret&AccountKey=s3cret",
            "s3://bucket?aws_secret_access_key=***&AccountKey=***",
        ),
        ("https://host/?next=http%3A%2F%2Fann%3As3cret%40other", "https://host/?next=***"),
        ("http://127.0.0.1:5000/#/experiments/1", None),
        ("https://host/@scope/x", None),
        ("models:/digits@champion", None),
        ("Max retries exceeded with url: /?token=s3cret/api", "Max retries exceeded with url: /?token=***"),
        ("host=db user=me password=s3cret port=1", "host=db user=me password=*** port=1"),
        ("kernel_size=5 patch_size=2 MLFLOW_TRACKING_URI=x", None),
        (
            "neither http://ann:s3cret@host nor 'postgresql://me:secret@host/db' answers",
            "neither http://ann:***@host nor 'postgresql://me:***@host/db' answers",
        ),
    ],
)
def test_mask_password_hides_it_wherever_a_url_may_hold_it(url, shown):
    assert mask_password(url) == (shown or url)
    assert "s3cret" not in mask_password(url)


@pytest.mark.parametrize("uri", [" https://ann:s3%40cret@host:5000/x\n", "HTTPS://ann:s3%40cret@host:5000/x"])
def test_hide_credentials_reads_a_uri_as_a_parser_does(uri):
    environ = {"MLFLOW_TRACKING_URI": uri}
    hide_credentials(environ)
    assert environ == {
        "MLFLOW_TRACKING_URI": "https://host:5000/x",
        "MLFLOW_TRACKING_USERNAME": "ann",
        "MLFLOW_TRACKING_PASSWORD": "s3@cret",
    }


def test_hide_credentials_writes_the_scheme_in_lower_case():
    environ = {"MLFLOW_TRACKING_URI": "HTTP://Host:5000"}
    hide_credentials(environ)
    assert environ == {"MLFLOW_TRACKING_URI": "http://Host:5000"}


@pytest.mark.parametrize("uri", ["ann:s3cret@host:5000", "http://[::1"])
def test_hide_credentials_refuses_what_is_no_url_without_repeating_it(uri):
    with pytest.raises(UsageError, match="^MLFLOW_TRACKING_URI must be") as refused:
        hide_credentials({"MLFLOW_TRACKING_URI": uri})
    assert "s3cret" not in str(refused.value)


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


@pytest.mark.parametrize("password", ["sec/ret", "sec@ret", "sec:ret", "sec#ret", "sec?ret", "sec ret"])
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
