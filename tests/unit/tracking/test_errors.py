"""Which errors of stores mean that a store does not answer."""

import errno
import sqlite3

import pytest
import requests
import sqlalchemy
import urllib3
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos import databricks_pb2 as codes

from pipeline.runtime.errors import NotFound, Rejected, Unavailable
from pipeline.tracking.errors import http_status, is_unavailable, mlflow_errors


def answer(code):
    """Return what MLflow's client raises for an error that a server has answered."""
    return RestException({"error_code": code, "message": "no"})


def page(status):
    """Return what MLflow's client raises for an answer of a proxy, which is no JSON."""
    return MlflowException(f"API request to endpoint /api failed with error code {status} != 200. Response body: '<p>'")


def caused(error, cause):
    """Return an error that another one led to."""
    error.__cause__ = cause
    return error


def upload_failed(status):
    """Return what requests raises for the answer to an upload."""
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("no", response=response)


class ClientError(Exception):
    """An error as botocore's: its response is a dictionary."""

    def __init__(self, status):
        super().__init__("no")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (answer("RESOURCE_DOES_NOT_EXIST"), NotFound),
        (answer("NOT_FOUND"), NotFound),
        (answer("INVALID_PARAMETER_VALUE"), Rejected),
        (answer("RESOURCE_ALREADY_EXISTS"), Rejected),
        (answer("UNAUTHENTICATED"), Unavailable),
        (answer("REQUEST_LIMIT_EXCEEDED"), Unavailable),
        (answer("INTERNAL_ERROR"), Unavailable),
        (MlflowException("API request failed with error code 404", codes.ENDPOINT_NOT_FOUND), Unavailable),
        (MlflowException("API request failed: Connection refused"), Unavailable),
        *((page(status), Unavailable) for status in (404, 429, 500, 502, 503, 504)),
        *((page(status), Rejected) for status in (400, 413, 422)),
        # of MLflow's client, which asked nobody
        (MlflowException("Invalid metric name", codes.INVALID_PARAMETER_VALUE), Rejected),
        (MlflowException("the file MLmodel cannot be parsed"), Rejected),
    ],
)
def test_mlflow_errors_from_a_server_are_told_apart_by_whether_asking_again_may_help(error, expected):
    with pytest.raises(expected) as raised, mlflow_errors():
        raise error
    assert type(raised.value) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MlflowException("no", codes.INVALID_PARAMETER_VALUE), Rejected),
        (MlflowException("Python int too large to convert to SQLite INTEGER"), Rejected),
        (MlflowException("database is locked", codes.TEMPORARILY_UNAVAILABLE), Unavailable),
        (
            caused(MlflowException("gone", codes.BAD_REQUEST), sqlalchemy.exc.InterfaceError("", {}, Exception())),
            Unavailable,
        ),
    ],
)
def test_mlflow_errors_from_a_store_on_this_machine_are_an_outage_only_if_its_database_says_so(error, expected):
    with pytest.raises(expected) as raised, mlflow_errors():
        raise error
    assert type(raised.value) is expected


def test_mlflow_errors_let_other_exceptions_pass():
    with pytest.raises(OSError, match="disk"), mlflow_errors():
        raise OSError("disk")


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("no answer"),
        ConnectionRefusedError("refused"),
        TimeoutError("no answer"),
        OSError(errno.ETIMEDOUT, "timed out"),
        OSError(errno.EHOSTUNREACH, "no route"),
        requests.ConnectionError("refused"),
        requests.ReadTimeout("no answer"),
        caused(Exception("of a library"), urllib3.exceptions.ProtocolError("broken")),
        *(upload_failed(status) for status in (401, 403, 408, 425, 429, 500, 503)),
        ClientError(503),
        sqlalchemy.exc.OperationalError("", {}, sqlite3.OperationalError("database is locked")),
        MemoryError(),
    ],
    ids=repr,
)
def test_is_unavailable_of_an_outage(error):
    assert is_unavailable(error)


@pytest.mark.parametrize(
    "error",
    [
        Rejected("refused"),
        NotFound("no such run"),
        OSError(errno.ENOSPC, "full"),
        PermissionError(errno.EACCES, "denied"),
        FileNotFoundError("gone"),
        *(upload_failed(status) for status in (400, 402, 404, 409, 413, 426, 499)),
        ClientError(400),
        ValueError("no YAML"),
        AttributeError("of a library"),
        sqlalchemy.exc.IntegrityError("", {}, sqlite3.IntegrityError("unique")),
    ],
    ids=repr,
)
def test_is_unavailable_is_false_for_any_other_error(error):
    assert not is_unavailable(error)


def test_http_status_is_that_of_the_answer_behind_an_error():
    assert http_status(caused(Unavailable("no"), answer("INTERNAL_ERROR"))) == 500
    assert http_status(caused(Unavailable("no"), page(502))) == 502
    repeated = "API request to x failed with exception Max retries exceeded (too many 503 error responses)"
    assert http_status(caused(Unavailable("no"), MlflowException(repeated))) == 503
    assert http_status(upload_failed(413)) == 413
    assert http_status(caused(Exception(), ClientError(400))) == 400
    assert http_status(caused(Unavailable("no"), MlflowException("API request to x failed with exception y"))) is None


def test_error_that_is_its_own_cause_is_told_apart_too():
    error = ValueError("odd")
    error.__cause__ = KeyError("odd")
    error.__cause__.__cause__ = error
    assert not is_unavailable(error)


class OddError(Exception):
    """An error whose response has no status."""

    def __init__(self, response):
        super().__init__("odd")
        self.response = response


@pytest.mark.parametrize(
    "response", [{}, {"ResponseMetadata": {}}, {"ResponseMetadata": {"HTTPStatusCode": "503"}}, "503", None]
)
def test_http_status_of_a_response_without_one_is_that_of_the_cause(response):
    assert http_status(OddError(response)) is None
    assert http_status(caused(OddError(response), upload_failed(502))) == 502


def test_error_that_an_outage_led_to_is_an_outage_unless_the_traceback_hides_it():
    error = ValueError("odd")
    error.__context__ = ConnectionRefusedError("refused")
    assert is_unavailable(error)
    error.__suppress_context__ = True
    assert not is_unavailable(error)
    error.__cause__ = ConnectionRefusedError("refused")
    assert is_unavailable(error)
