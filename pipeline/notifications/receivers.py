"""Receivers of events: a webhook, which gets them as JSON by HTTP POST, and a command, which gets them as input."""

import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import cache_folder, make_private
from pipeline.runtime.parent_watch import PROJECT_RUN_ID_ENV
from pipeline.runtime.text import one_line, shown

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

FOLDER = "notifications"  # in the cache
URL, COMMAND = "notify_url", "notify_command"  # flags
VARIABLES = {URL: "CONVMIXER_NOTIFY_URL", COMMAND: "CONVMIXER_NOTIFY_COMMAND"}
NOBODY = "none"
URL_RULE = "an http:// or https:// address without a user, a password or spaces"
SECONDS = 10.0  # without a byte of a webhook
COMMAND_SECONDS = 60.0  # for one event
OUTPUT = "output.txt"  # what the command wrote at its last event
# answers below 500 after which the same request may succeed
TRANSIENT_STATUSES = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


class Away(Exception):
    """A receiver did not take an event, and may take it later."""


class Refused(Exception):
    """A receiver does not take this event, later either."""


class Receiver(ABC):
    """What takes events.

    Attributes:
        name: For messages; holds no secret.
        folder: What waits for it on this machine; named after a digest, as the address of a webhook is a secret.
    """

    def __init__(self, name: str, identity: str) -> None:
        self.name = name
        self.folder: Path = cache_folder(FOLDER, hashlib.sha256(identity.encode()).hexdigest()[:32])

    @abstractmethod
    def deliver(self, event: Mapping[str, object]) -> None:
        """Deliver an event.

        Raises:
            Away: Not now.
            Refused: Never.
        """


class Webhook(Receiver):
    """A web address that takes events as JSON.

    Redirects are not followed: the method of a request changes to GET with most of them, and the event would be lost.

    Raises:
        UsageError: The address cannot be used; the message repeats none of it.
    """

    def __init__(self, url: str, *, origin: str = URL) -> None:
        parts = _split_url(url)
        if parts is None:
            raise UsageError(f"{origin} must be {URL_RULE}; what it is now is not shown, as it may be a secret")
        self._url = url
        super().__init__(f"{parts.scheme}://{parts.netloc}", url)

    def deliver(self, event: Mapping[str, object]) -> None:
        # imported here, as most commands send nothing
        from urllib.error import HTTPError, URLError
        from urllib.request import Request

        body = json.dumps({**event, "text": escape_for_slack(str(event["text"]))}).encode()
        request = Request(self._url, body, {"Content-Type": "application/json", "User-Agent": "convmixer"})  # noqa: S310
        # No message holds what the receiver answers, which may repeat its address
        try:
            with _opener().open(request, timeout=SECONDS):
                return
        except HTTPError as error:
            error.close()
            status = error.code
        except URLError as error:
            raise Away(one_line(error.reason)) from None
        except (OSError, http.client.HTTPException) as error:
            raise Away(type(error).__name__) from None
        answer = f"HTTP {status} {_phrase(status)}".rstrip()
        if status >= 500 or status in TRANSIENT_STATUSES:
            raise Away(answer)
        if 300 <= status < 400:
            raise Refused(f"{answer}: give the address that it leads to")
        raise Refused(answer)


class Command(Receiver):
    """A program that gets an event, a line of JSON, on its standard input; a new process for each, without a shell.

    It runs in a session of its own, so that Ctrl-C does not reach it, and what it writes goes to a file.

    Raises:
        UsageError: There is no such program.
    """

    def __init__(self, command: str, *, origin: str = COMMAND, seconds: float = COMMAND_SECONDS) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError:
            self._words = []
        program = self._words[0] if self._words else ""
        if shutil.which(program) is None:
            # an address that is meant for the other flag may be a secret
            got = "an address" if "://" in program else shown(program)
            raise UsageError(
                f"{origin} must begin with a program that exists, and its quotes must be closed, got {got}"
            )
        self._seconds = seconds
        super().__init__(f"the command {one_line(os.path.basename(program), most=80)}", command)

    def deliver(self, event: Mapping[str, object]) -> None:
        try:
            with open(make_private(self.folder) / OUTPUT, "wb") as output:
                process = subprocess.Popen(
                    self._words, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
                )
        except OSError as error:
            raise Away(one_line(error.strerror)) from None
        try:
            process.communicate(f"{json.dumps(event)}\n".encode(), timeout=self._seconds)
        except subprocess.TimeoutExpired:
            raise Away(f"it took more than {self._seconds:g} s") from None
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            raise Away(f"exit code {process.returncode}; its output is in {self.folder / OUTPUT}")


def find_receivers(environ: Mapping[str, str], given: Mapping[str, str] | None = None) -> list[Receiver]:
    """Return the receivers that flags name, or else variables of the environment.

    Args:
        environ: The variables.
        given: The flags.

    Raises:
        UsageError: One cannot be used, or a webhook is given to `mlflow run`, which shows it to all.
    """
    given = given or {}
    if given.get(URL, NOBODY) != NOBODY and PROJECT_RUN_ID_ENV in environ:
        raise UsageError(
            f"{URL} must not be given to `mlflow run`, which stores and shows every -P, and has done so with this one: "
            f"get a new address, and put it into {VARIABLES[URL]}"
        )
    receivers: list[Receiver] = []
    for flag, kind in ((URL, Webhook), (COMMAND, Command)):
        value = given.get(flag, environ.get(VARIABLES[flag], "")).strip()
        if value not in {"", NOBODY}:
            receivers.append(kind(value, origin=flag if flag in given else VARIABLES[flag]))
    return receivers


def take_receivers(environ: MutableMapping[str, str], given: Mapping[str, str]) -> list[Receiver]:
    """Do as `find_receivers`, and remove the address from the environment, so that no process started later sees it."""
    try:
        return find_receivers(environ, given)
    finally:
        environ.pop(VARIABLES[URL], None)


def escape_for_slack(text: str) -> str:
    """Return text in which Slack sees no link and no mention, such as `<!channel>` in the name of a run."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _split_url(url: str) -> SplitResult | None:
    """Return the parts of an address that can be used, or None."""
    if not re.fullmatch(r"[!-~]+", url):
        return None
    try:
        parts = urlsplit(url)
        # raises ValueError for a port that is none
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if usable and parts.scheme in {"http", "https"} and "@" not in parts.netloc else None


def _phrase(status: int) -> str:
    with suppress(ValueError):
        return HTTPStatus(status).phrase
    return ""


def _opener() -> "OpenerDirector":
    """Return what opens addresses as urllib does, with certificates checked and proxies, but follows no redirects."""
    from urllib.request import HTTPRedirectHandler, build_opener

    class NoRedirects(HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    return build_opener(NoRedirects)
