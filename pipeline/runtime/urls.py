"""URLs of MLflow's and Optuna's stores: secrets hidden and checked, timeouts, and errors that name a store."""

import re
from collections.abc import MutableMapping
from urllib.parse import unquote, urlsplit

from pipeline.runtime.errors import UsageError

# where a URL begins in a text, and that it ends at a space; what it consists of is parsed
URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>\S*)", re.IGNORECASE)
# a parameter on its own: libraries quote parts of a URL, and the connection strings of databases
PARAMETER = re.compile(r"(?<![\w%.-])(?P<name>[\w%.-]+)=(?P<value>[^\s&#;]+)")
MASK = "***"
# A parameter is secret if its name, without case and punctuation, contains one of these or is one of those.
SECRET_WORDS = (
    *("password", "passwd", "passphrase", "pwd", "secret", "token", "credential", "signature"),
    *("apikey", "accesskey", "accountkey", "privatekey", "authkey", "odbcconnect"),
)
SECRET_NAMES = {"auth", "key", "pass", "pw", "sas", "sig"}
# a parser takes what follows one of these in a password for the host, and shows it in its errors
TO_ESCAPE = "@/:#?[] "
TRACKING_URI = "MLFLOW_TRACKING_URI"
HTTP_TIMEOUTS = {  # retries after about 0, 1 and 2 s; seconds without a byte
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def mask_password(text: str) -> str:
    """Return a URL, or a text that holds some, with `***` for each password, token or other secret in them."""
    text = URL.sub(lambda url: f"{url['scheme']}://{_mask_rest(url['scheme'].lower(), url['rest'])}", text)
    return PARAMETER.sub(lambda part: f"{part['name']}={MASK}" if _is_secret(part["name"]) else part[0], text)


def _mask_rest(scheme: str, rest: str) -> str:
    """Return what follows `://` in a URL without its secrets."""
    userinfo, location = _split_userinfo(rest)
    user, colon, _ = userinfo.partition(":")
    if colon:
        userinfo = f"{user}:{MASK}"
    # before a database's host there is a name alone, before a server's a token
    elif userinfo and (scheme.rpartition("+")[2] in {"http", "https"} or ":" in unquote(userinfo)):
        userinfo = MASK
    location = "".join(map(_mask_parameter, re.split(r"([?&#])", location)))
    return f"{userinfo}@{location}" if userinfo else location


def _split_userinfo(rest: str) -> tuple[str, str]:
    """Split what follows `://` at the last @ that can end user and password, as these may hold unescaped ones.

    Where a colon comes before, that is the last @ of all: a path is hidden rather than a part of a password shown.
    """
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if not authority:
        return "", rest
    before, at, after = rest.rpartition("@")
    if at and ":" in before:
        return before, after
    before, _, _ = authority.rpartition("@")
    return before, rest[len(before) :].removeprefix("@")


def _mask_parameter(part: str) -> str:
    """Return `name=value`, or several with semicolons between, without secret values; any other text as it is."""
    name, equals, value = part.partition("=")
    if equals and _is_secret(name):
        return f"{name}={MASK}"
    if ";" in part:
        return ";".join(map(_mask_parameter, part.split(";")))
    # a URL within a URL
    decoded = unquote(value)
    return f"{name}={MASK}" if mask_password(decoded) != decoded else part


def _is_secret(name: str) -> bool:
    plain = re.sub("[^a-z0-9]", "", unquote(name).lower())
    return plain in SECRET_NAMES or any(word in plain for word in SECRET_WORDS)


def check_password_escaped(name: str, url: str) -> None:
    """Raise UsageError, without repeating any of the URL, if a password in it is not percent-encoded."""
    userinfo, _ = _split_userinfo(url.partition("://")[2])
    _, _, password = userinfo.partition(":")
    if set(password) & set(TO_ESCAPE):
        raise UsageError(f"{name} must have special characters of its password escaped: @ is %40, / is %2F, : is %3A")


def hide_credentials(environ: MutableMapping[str, str]) -> None:
    """Move the user and the password of an HTTP tracking server from its URI to the variables for them.

    MLflow prints the URI at the end of a run, and in its errors.

    Raises:
        UsageError: the password is not percent-encoded.
    """
    # a space before it would make it a path for MLflow
    uri = environ.get(TRACKING_URI, "").strip()
    if "://" not in uri and re.match("[^/@]+:[^/@]+@", uri):
        raise UsageError(
            f"{TRACKING_URI} must begin with its scheme, https:// for example: it has a password, but none"
        )
    check_password_escaped(TRACKING_URI, uri)
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise UsageError(f"{TRACKING_URI} must be a URL: {error}") from None
    if parts.scheme in {"http", "https"}:
        # in lower case, as MLflow and this program compare it
        uri = f"{parts.scheme}{uri[len(parts.scheme) :]}"
        # a token alone stays: MLflow has no variable for a user without a password
        if parts.password is not None:
            environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
            environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
            uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if uri:
        environ[TRACKING_URI] = uri


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
    # the URL on its own first: in a text it ends at its first space
    reason = message.replace(url, mask_password(url)) if url else message
    return UsageError(
        mask_password(f"{what} must be there and writable: {mask_password(url)}: {type(error).__name__}: {reason}")
    )
