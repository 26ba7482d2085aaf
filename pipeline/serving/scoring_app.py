"""The web application of `mlflow models serve`, with a shorter way for the usual requests, readiness and metrics.

MLflow's own handling of a request with one small image takes 4.8 ms of a core (2 GHz): its middleware 1.9, pandas and
the enforcement of the signature 2.4. Requests in the usual forms are answered here without these, with the same bodies;
all others are passed on to MLflow. Served models contain a copy of this file.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import fastapi
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import AnyType

DIRECT_VARIABLE = "CONVMIXER_SERVING_DIRECT"
SERVER_MODULE = "mlflow.pyfunc.scoring_server.app"
JSON = "application/json"
# What the signature of packaging.py says of requests
SCHEMA = Schema([ColSpec(AnyType(), "image", required=False)])  # type: ignore[no-untyped-call]
# How long a probe of the readiness waits for an answer
READY_SECONDS = 5.0

Answer = tuple[int, str, bytes]  # status, content type, body


class Metrics(Protocol):
    """What counts requests; see serving_metrics.py."""

    def count_request(self, status: int, seconds: float, error: str) -> None: ...
    def text(self) -> Answer: ...


class Service:
    """Answers requests with a model.

    Args:
        classify: Images, arrays or texts, -> answers; raises MlflowException, whose `kind` is counted.
        check: Raises an error if the network does not answer an image as it did at the start.
        runtime: What runs the network, for people.
        metrics: Counts the requests.
    """

    def __init__(
        self,
        classify: Callable[[Sequence[Any]], list[dict[str, Any]]],
        check: Callable[[], None],
        *,
        runtime: str,
        metrics: Metrics,
    ) -> None:
        self._classify, self._check, self._runtime, self._metrics = classify, check, runtime, metrics
        self._timeout = MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get()  # type: ignore[no-untyped-call]
        self._is_direct = os.environ.get(DIRECT_VARIABLE) != "0"

    def install(self) -> None:
        """Make MLflow's server, which imports its application while it loads the model, answer with this service.

        MLflow offers no other way to add an address to its server. Does nothing where a model is loaded otherwise.
        """
        if SERVER_MODULE not in sys.modules:
            return
        service, original = self, fastapi.FastAPI

        class Application(original):  # type: ignore[misc,valid-type]
            def __init__(self, *arguments: Any, **options: Any) -> None:
                fastapi.FastAPI = original  # type: ignore[misc]
                super().__init__(*arguments, **options)

            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                await service.handle(scope, receive, send, super().__call__)

        fastapi.FastAPI = Application  # type: ignore[misc]

    async def handle(self, scope: Any, receive: Any, send: Any, mlflow: Callable[..., Any]) -> None:
        """Answer a request of the ASGI protocol, or pass it on to MLflow's application."""
        match scope["type"] == "http" and (scope["method"], scope["path"]):
            case ("POST", "/invocations"):
                await self._score(scope, receive, send, mlflow)
            case ("GET", "/ready"):
                await _send(send, await self._readiness())
            case ("GET", "/metrics"):
                # without a thread, which would have to be free
                await _send(send, self._metrics.text())
            case _:
                await mlflow(scope, receive, send)

    async def _readiness(self) -> Answer:
        """Return status 200 if the network answers an image in time, and as it did at the start, else 503."""
        reason = ""
        try:
            await asyncio.wait_for(asyncio.to_thread(self._check), READY_SECONDS)
        except TimeoutError:
            reason = f"no answer within {READY_SECONDS:g} s"
        except Exception as error:  # noqa: BLE001 - whatever fails, the server is not ready
            reason = " ".join(f"{type(error).__name__}: {error}".split())
        body = {"ready": not reason, "runtime": self._runtime} | ({"reason": reason} if reason else {})
        return 503 if reason else 200, JSON, json.dumps(body).encode()

    async def _score(self, scope: Any, receive: Any, send: Any, mlflow: Callable[..., Any]) -> None:
        """Answer a request to classify images, and count it."""
        answer, kind, body, started = None, "", b"", time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                received = await _read(receive)
                if received is None:
                    return
                body, started = received, time.perf_counter()
                if self._is_direct and _is_json(scope["headers"]):
                    answer, kind = await asyncio.to_thread(self._answer, body)
        except TimeoutError:
            # as MLflow's server
            answer = 504, JSON, b"Request processing time exceeded limit"
        # what the server answers for an error that MLflow's application raises
        status = 500
        try:
            if answer is None:
                status = await _pass_on(scope, body, receive, send, mlflow)
            else:
                status = answer[0]
                await _send(send, answer)
        finally:
            if status >= 400 and not kind:
                kind = {415: "content_type", 504: "timeout"}.get(status, "request" if status < 500 else "internal")
            self._metrics.count_request(status, time.perf_counter() - started, kind)

    def _answer(self, body: bytes) -> tuple[Answer | None, str]:
        """Return the answer to a body, and the kind of its error; None for what MLflow is to answer."""
        try:
            images = images_of(json.loads(body))
        except (ValueError, RecursionError):
            images = None
        if images is None:
            return None, ""
        try:
            predictions = self._classify(images)
        except MlflowException as error:
            refusal = _refusal(error, body)
            return refusal, getattr(error, "kind", "request") if refusal else ""
        except Exception:  # noqa: BLE001 - MLflow's handler meets the same error, and answers it
            return None, ""
        return (200, JSON, json.dumps({"predictions": predictions}).encode()), ""


def _refusal(error: MlflowException, body: bytes) -> Answer | None:
    """Return what MLflow answers for an error in its model, which begins with the request as MLflow shows it.

    None for a body that MLflow refuses to parse, such as lists nested some hundred deep, and is to answer itself.
    """
    try:
        data = scoring_server._parse_json_data(body, None, SCHEMA).data  # type: ignore[no-untyped-call]
        error.message = f"Failed to predict data '{data}'. \nError: {error.message}"
    except Exception:  # noqa: BLE001 - MLflow's handler meets the same error, and answers it
        return None
    return error.get_http_status_code(), JSON, error.serialize_as_json().encode()  # type: ignore[no-untyped-call]


def images_of(request: Any) -> list[Any] | None:
    """Return the images of a request in one of the usual forms; None for any other, and for what is no request.

    The forms are `{"dataframe_split": {"columns": ["image"], "data": [[...], ...]}}`, `{"dataframe_records":
    [{"image": ...}, ...]}` and `{"inputs": {"image": [...]}}`, of texts and arrays.
    """
    match request:
        case {"dataframe_split": {"columns": ["image"], "data": [_, *_] as rows} as split} if len(request) == 1:
            has_more = len(split) > 2
            cells = [row[0] if isinstance(row, list) and len(row) == 1 else None for row in rows]
        case {"dataframe_records": [_, *_] as rows} if len(request) == 1:
            has_more = False
            cells = [row.get("image") if isinstance(row, dict) and len(row) == 1 else None for row in rows]
        case {"inputs": {"image": [_, *_] as cells} as columns} if len(request) == 1:
            has_more = len(columns) > 1
        case _:
            return None
    return None if has_more or not all(map(_is_image, cells)) else cells


def _is_image(cell: Any) -> bool:
    """Return whether MLflow hands on a cell as it is."""
    return isinstance(cell, str) or (isinstance(cell, list) and bool(cell) and isinstance(cell[0], list))


def _is_json(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    types = [value for name, value in headers if name == b"content-type"]
    return len(types) == 1 and types[0].replace(b" ", b"").lower() in (
        b"application/json",
        b"application/json;charset=utf-8",
    )


async def _read(receive: Any) -> bytes | None:
    """Return the body of a request, or None if the client has left."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _pass_on(scope: Any, body: bytes, receive: Any, send: Any, mlflow: Callable[..., Any]) -> int:
    """Let MLflow answer a request whose body has been read, and return the status.

    Lists and objects that are nested too deeply make MLflow's parser, or what comes after it, raise RecursionError, and
    its application answers with status 500 before it passes the error on. Here the answer is status 400, so whatever
    has status 500 is held back until the application has ended.
    """
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    status = 500
    failure = []

    async def receive_again() -> Any:
        return messages.pop() if messages else await receive()

    async def send_on(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        if status == 500:
            failure.append(message)
        else:
            await send(message)

    try:
        await mlflow(scope, receive_again, send_on)
    except RecursionError:
        failure.clear()
        status = 400
        await _send(send, _nested_too_deeply())
    finally:
        for message in failure:
            await send(message)
    return status


def _nested_too_deeply() -> Answer:
    error = MlflowException.invalid_parameter_value(
        "the lists and objects of a request must be nested at most a few hundred deep, got more; "
        "an image is an array (height, width, channels) or a file as base64 text"
    )
    return error.get_http_status_code(), JSON, error.serialize_as_json().encode()


async def _send(send: Any, answer: Answer) -> None:
    status, kind, body = answer
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", kind.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
