"""URLs of MLflow's and Optuna's stores: shown without passwords, which have to be escaped; and who can reach them."""

import re
from collections.abc import MutableMapping
from urllib.parse import unquote, urlsplit

from pipeline.runtime.errors import UsageError

IN_AUTHORITY = re.compile(r"(://[^:/]*:)(.+)@")  # to the last @, as passwords hold some that nobody has escaped
IN_QUERY = re.compile(r"([?&][^=&]*(?:password|passwd|pwd)[^=&]*=)[^&]+", re.IGNORECASE)
TO_ESCAPE = "@/:#?[]"  # in a password: what reads a URL takes the rest of it for a host, and names that in its errors
TRACKING_URI = "MLFLOW_TRACKING_URI"
WAITING = {  # retries after about 0, 1 and 2 s; seconds without a byte
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def mask_password(url: str) -> str:
    """The URL with `***` for a password."""
    return IN_QUERY.sub(r"\1***", IN_AUTHORITY.sub(r"\1***@", url))


def check_password_escaped(name: str, url: str) -> None:
    """Raise UsageError, which repeats nothing of the URL, where a password in it is not percent-encoded."""
    found = IN_AUTHORITY.search(url)
    if found and set(found[2]) & set(TO_ESCAPE):
        raise UsageError(f"{name} must have special characters of its password escaped: @ is %40, / is %2F, : is %3A")


def hide_credentials(environ: MutableMapping[str, str]) -> None:
    """Move user and password of an HTTP tracking server from its URI to where MLflow looks for them first.

    MLflow prints that URI at the end of a run, and in its errors.

    Raises:
        UsageError: the password is not escaped.
    """
    uri = environ.get(TRACKING_URI, "")
    check_password_escaped(TRACKING_URI, uri)
    parts = urlsplit(uri) if uri.startswith(("http://", "https://")) else None
    if parts is None or parts.password is None:
        return
    environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    environ[TRACKING_URI] = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def set_http_timeouts(environ: MutableMapping[str, str]) -> None:
    """Have MLflow's client wait seconds, not the minutes that are its default, for a server that does not answer.

    What is set already stays. Runs keep what they cannot send and try again by themselves.
    """
    for name, value in WAITING.items():
        environ.setdefault(name, value)


def on_one_machine(tracking_uri: str) -> bool:
    """Whether runs that are kept there are seen from their own machine alone."""
    scheme = urlsplit(tracking_uri).scheme
    return scheme in ("", "file") or scheme.startswith("sqlite")


def storage_error(what: str, url: str, error: Exception) -> UsageError:
    """What to raise for a store that cannot be opened, whatever its library raised."""
    said = re.split(r" \[SQL: | \(Background on ", " ".join(str(error).split()))[0]  # of SQLAlchemy's, the statement
    reason = f"{type(error).__name__}: {said}"
    return UsageError(
        f"{what} must be there and writable: {mask_password(url)}: {reason.replace(url, mask_password(url))}"
    )
