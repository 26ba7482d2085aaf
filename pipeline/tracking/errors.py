"""Errors of MLflow and of the stores below it, and which of them mean that a store does not answer.

That a store is unavailable is a closed list: no connection, a time-out, an answer that says so, a database that is
locked or unreachable. Any other error concerns the one call that raised it, and the same call would raise it again.
"""

import errno
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import requests
import sqlalchemy.exc
import urllib3.exceptions
from mlflow.exceptions import MlflowException, RestException

from pipeline.runtime.errors import NotFound, Rejected, TrackingError, Unavailable

NO_SUCH_RESOURCE = {"NOT_FOUND", "RESOURCE_DOES_NOT_EXIST"}
# HTTP statuses below 500 that may change: a password that has expired can be renewed, for example
TRANSIENT_STATUSES = {401, 403, 408, 425, 429}
# what a proxy answers whose server is not there yet
TRANSIENT_PROXY_STATUSES = TRANSIENT_STATUSES | {404}
# how MLflow begins the errors of requests to which no MLflow server has answered
NO_ANSWER = "API request"
# the status in such an error, if something else has answered, such as a proxy
STATUS = re.compile(r"failed with error code (\d{3})|too many (\d{3}) error responses")
NO_CONNECTION = (
    ConnectionError,
    TimeoutError,
    socket.gaierror,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.HTTPError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.DisconnectionError,
    sqlalchemy.exc.TimeoutError,
)
# of network file systems; ETIMEDOUT and ECONN* are TimeoutError and ConnectionError
NO_CONNECTION_ERRNOS = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ESTALE}


@contextmanager
def mlflow_errors() -> Iterator[None]:
    """Raise NotFound, Rejected or Unavailable in place of what MLflow raises.

    Other exceptions pass unchanged: those of a local disk, and of libraries below some artifact stores.
    """
    try:
        yield
    except MlflowException as error:
        raise _translated(error) from error


def is_unavailable(error: Exception) -> bool:
    """Return whether a call failed as a store did not answer, or this machine's memory did not suffice."""
    if isinstance(error, TrackingError):
        return isinstance(error, Unavailable)
    return isinstance(error, MemoryError) or _has_no_connection(error) or _is_transient(http_status(error))


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of the answer that caused an error, or None if there was no answer."""
    for cause in _causes(error):
        if isinstance(cause, RestException):
            return int(cause.get_http_status_code())  # type: ignore[no-untyped-call]
        is_request = isinstance(cause, MlflowException | requests.RequestException)
        if is_request and (match := STATUS.search(str(cause))):
            return int(match[1] or match[2])
        # botocore's response is a dictionary, that of others an object
        response = getattr(cause, "response", None)
        found = (
            response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(response, Mapping)
            else getattr(response, "status_code", None)
        )
        if isinstance(found, int):
            return found
    return None


def _translated(error: MlflowException) -> TrackingError:
    if error.error_code in NO_SUCH_RESOURCE:
        return NotFound(error)
    return Unavailable(error) if _is_outage(error) else Rejected(error)


def _is_outage(error: MlflowException) -> bool:
    if isinstance(error, RestException):
        return _is_transient(http_status(error))
    if str(error).startswith(NO_ANSWER):
        return _is_transient(http_status(error) or 503, TRANSIENT_PROXY_STATUSES)
    # a database's own errors are the cause; MLflow gives a status of 500 to whatever else is raised
    return _has_no_connection(error) or error.error_code == "TEMPORARILY_UNAVAILABLE"


def _is_transient(status: int | None, transient: set[int] = TRANSIENT_STATUSES) -> bool:
    return status is not None and (status >= 500 or status in transient)


def _has_no_connection(error: BaseException) -> bool:
    return any(
        isinstance(cause, NO_CONNECTION) or (isinstance(cause, OSError) and cause.errno in NO_CONNECTION_ERRNOS)
        for cause in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it, as a traceback would show them."""
    following: BaseException | None = error
    seen: set[int] = set()
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
