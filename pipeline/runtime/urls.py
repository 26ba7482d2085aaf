"""URLs of MLflow's and Optuna's stores: passwords hidden and checked, timeouts, and errors that name a store."""

import re
from collections.abc import MutableMapping
from urllib.parse import unquote, urlsplit

from pipeline.runtime.errors import UsageError

IN_AUTHORITY = re.compile(r"(://[^:/]*:)(.+)@")  # up to the last @, as a password may hold unescaped ones
IN_QUERY = re.compile(r"([?&][^=&]*(?:password|passwd|pwd)[^=&]*=)[^&]+", re.IGNORECASE)
# a parser takes what follows one of these in a password for the host, and shows it in its errors
TO_ESCAPE = "@/:#?[]"
TRACKING_URI = "MLFLOW_TRACKING_URI"
HTTP_TIMEOUTS = {  # retries after about 0, 1 and 2 s; seconds without a byte
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def mask_password(url: str) -> str:
    """Return the URL with `***` for a password."""
    return IN_QUERY.sub(r"\1***", IN_AUTHORITY.sub(r"\1***@", url))


def check_password_escaped(name: str, url: str) -> None:
    """Raise UsageError, without repeating any of the URL, if a password in it is not percent-encoded."""
    match = IN_AUTHORITY.search(url)
    if match and set(match[2]) & set(TO_ESCAPE):
        raise UsageError(f"{name} must have special characters of its password escaped: @ is %40, / is %2F, : is %3A")


def hide_credentials(environ: MutableMapping[str, str]) -> None:
    """Move the user and the password of an HTTP tracking server from its URI to the variables for them.

    MLflow prints the URI at the end of a run, and in its errors.

    Raises:
        UsageError: the password is not percent-encoded.
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
    """Make MLflow's client wait seconds for a server that does not answer, instead of its default of minutes.

    Variables that are set already stay. Runs keep what they cannot send, and retry by themselves.
    """
    for name, value in HTTP_TIMEOUTS.items():
        environ.setdefault(name, value)


def on_one_machine(tracking_uri: str) -> bool:
    """Return whether this tracking store can be reached from its own machine only."""
    scheme = urlsplit(tracking_uri).scheme
    return scheme in ("", "file") or scheme.startswith("sqlite")


def storage_error(what: str, url: str, error: Exception) -> UsageError:
    """Return the UsageError to raise for a store that cannot be opened, whatever its library raised."""
    # without the SQL statement that SQLAlchemy adds
    message = re.split(r" \[SQL: | \(Background on ", " ".join(str(error).split()))[0]
    reason = f"{type(error).__name__}: {message}"
    return UsageError(
        f"{what} must be there and writable: {mask_password(url)}: {reason.replace(url, mask_password(url))}"
    )
