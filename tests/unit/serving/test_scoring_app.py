"""The application around MLflow's, asked by messages of the ASGI protocol; over HTTP see test_pyfunc_model.py."""

import asyncio
import json
import threading

import fastapi
import pytest
from mlflow.exceptions import MlflowException

from pipeline.serving import scoring_app
from pipeline.serving.scoring_app import Service, images_of

IMAGE = [[[1]]]
BODY = {"dataframe_split": {"columns": ["image"], "data": [["text"]]}}


class Counted:
    """Metrics in a list."""

    def __init__(self):
        self.requests = []

    def count_request(self, status, seconds, error):
        assert seconds >= 0
        self.requests.append((status, error))

    def text(self):
        return 200, "text/plain", b"numbers"


def echo(images):
    return [{"class": image} for image in images]


def build(classify=echo, check=lambda: None):
    service = Service(classify, check, runtime="a runtime", metrics=Counted())
    return service, service._metrics.requests


async def mlflow(scope, receive, send):
    """Answer with the body, as an application that is asked instead."""
    message = await receive()
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b"MLflow got " + message["body"]})


def failing_mlflow(error):
    """Return an application that answers 500 and raises an error, as Starlette's do whatever is raised in them."""

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"Internal Server Error"})
        raise error

    return application


def ask(service, body=b"", *, path="/invocations", method="POST", kind="application/json", parts=1, application=mlflow):
    """Return status and body of the answer to a request whose body arrives in parts."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = -(-len(body) // parts) or 1
    messages = [
        {"type": "http.request", "body": body[start : start + size], "more_body": start + size < len(body)}
        for start in range(0, max(len(body), 1), size)
    ]
    sent = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"content-type", kind.encode())]}
    asyncio.run(service.handle(scope, receive, send, application))
    return (sent[0]["status"], b"".join(message.get("body", b"") for message in sent)) if sent else None


@pytest.mark.parametrize(
    ("request_body", "images"),
    [
        (BODY, ["text"]),
        ({"dataframe_split": {"columns": ["image"], "data": [["a"], [IMAGE]]}}, ["a", IMAGE]),
        ({"dataframe_records": [{"image": "a"}, {"image": "b"}]}, ["a", "b"]),
        ({"inputs": {"image": ["a", IMAGE]}}, ["a", IMAGE]),
    ],
)
def test_images_of_a_usual_form_returns_its_images(request_body, images):
    assert images_of(request_body) == images


@pytest.mark.parametrize(
    "request_body",
    [
        None,
        [],
        {},
        {"instances": ["a"]},
        {"inputs": ["a"]},
        {"inputs": {"image": "a"}},
        {"inputs": {"image": []}},
        {"inputs": {"image": ["a"], "other": ["a"]}},
        {"inputs": {"image": ["a"]}, "params": {"p": 1}},
        {"inputs": {"image": [["a", "b"]]}},
        {"dataframe_records": []},
        {"dataframe_records": [{"image": "a"}, {"image": "a", "other": 1}]},
        {"dataframe_records": [{"image": "a"}, {}]},
        {"dataframe_split": {"columns": ["image"], "data": []}},
        {"dataframe_split": {"columns": ["image"], "data": [["a"], ["a", "b"]]}},
        {"dataframe_split": {"columns": ["image"], "data": [["a"]], "index": [3]}},
        {"dataframe_split": {"columns": ["picture"], "data": [["a"]]}},
        # pandas makes other numbers of these
        {"dataframe_split": {"columns": ["image"], "data": [[7], [None]]}},
        {"dataframe_split": {"columns": ["image"], "data": [["a"]]}, "messages": []},
    ],
    ids=str,
)
def test_images_of_anything_else_returns_none(request_body):
    assert images_of(request_body) is None


@pytest.mark.parametrize("parts", [1, 5])
def test_handle_of_a_usual_request_answers_as_mlflow_does_without_asking_it(parts):
    service, counted = build()
    assert ask(service, BODY, parts=parts) == (200, b'{"predictions": [{"class": "text"}]}')
    assert counted == [(200, "")]


@pytest.mark.parametrize("kind", ["text/csv", "application/json; charset=latin-1", "application/vnd.apache.parquet"])
def test_handle_of_another_content_type_passes_the_whole_body_on(kind):
    service, counted = build()
    assert ask(service, BODY, kind=kind, parts=3) == (418, b"MLflow got " + json.dumps(BODY).encode())
    assert counted == [(418, "request")]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"inputs": ["a"]}', b"[" * 200_000], ids=len)
def test_handle_of_a_body_of_another_form_passes_it_on(body):
    service, _ = build()
    assert ask(service, body) == (418, b"MLflow got " + body)


def test_handle_of_a_refused_image_answers_mlflows_error_and_counts_its_kind():
    def refuse(images):
        error = MlflowException.invalid_parameter_value("image 1 is strange")
        error.kind = "file"
        raise error

    service, counted = build(refuse)
    status, body = ask(service, BODY)
    assert (
        status == 400
        and json.loads(body).items()
        >= {
            "error_code": "INVALID_PARAMETER_VALUE",
            "message": "Failed to predict data '  image\n0  text'. \nError: image 1 is strange",
        }.items()
    )
    assert counted == [(400, "file")]


def test_handle_of_a_refused_image_that_mlflow_cannot_parse_lets_mlflow_answer_and_is_counted():
    """MLflow's parser of `inputs` recurses into lists; what it raises must not reach the server as an error of ours."""

    def refuse(images):
        error = MlflowException.invalid_parameter_value("image 1 is strange")
        error.kind = "array"
        raise error

    service, counted = build(refuse)
    body = b'{"inputs": {"image": [' + b"[" * 600 + b"]" * 600 + b"]}}"
    assert ask(service, body) == (418, b"MLflow got " + body)
    assert counted == [(418, "request")]


def test_handle_of_an_unexpected_error_lets_mlflow_answer():
    service, _ = build(lambda images: 1 / 0)
    assert ask(service, BODY)[0] == 418


def test_handle_of_an_error_in_mlflow_counts_the_500_that_the_server_answers():
    service, counted = build()
    with pytest.raises(ZeroDivisionError):
        ask(service, b"{", application=failing_mlflow(ZeroDivisionError()))
    assert counted == [(500, "internal")]


def test_handle_of_json_nested_too_deeply_for_mlflow_is_refused_in_one_line_and_counted():
    service, counted = build()
    status, body = ask(service, b"[" * 100_000, application=failing_mlflow(RecursionError()))
    message = json.loads(body)["message"]
    assert status == 400 and counted == [(400, "request")]
    assert message.startswith("the lists and objects of a request must be nested at most") and message.isprintable()


def test_handle_of_a_request_that_takes_too_long_answers_504_as_mlflow_does():
    release = threading.Event()
    service, counted = build(lambda images: release.wait(30) and [])
    service._timeout = 0.05
    # asyncio.run waits for the thread
    threading.Timer(0.5, release.set).start()
    assert ask(service, BODY) == (504, b"Request processing time exceeded limit")
    assert counted == [(504, "timeout")]


def test_handle_of_a_body_that_does_not_arrive_in_time_answers_504():
    service, counted = build()
    service._timeout = 0.05
    sent = []

    async def receive():
        await asyncio.sleep(30)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/invocations", "headers": []}
    asyncio.run(service.handle(scope, receive, send, mlflow))
    assert sent[0]["status"] == 504 and counted == [(504, "timeout")]


def test_handle_of_a_client_that_leaves_answers_nothing():
    service, counted = build()
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/invocations", "headers": []}
    asyncio.run(service.handle(scope, receive, sent.append, mlflow))
    assert sent == [] and counted == []


def test_handle_without_direct_answers_passes_everything_on(monkeypatch):
    monkeypatch.setenv("CONVMIXER_SERVING_DIRECT", "0")
    service, counted = build()
    assert ask(service, BODY)[0] == 418 and counted == [(418, "request")]


def test_handle_of_ready_says_what_runs_the_network():
    service, _ = build()
    status, body = ask(service, path="/ready", method="GET")
    assert status == 200 and json.loads(body) == {"ready": True, "runtime": "a runtime"}


def test_handle_of_ready_answers_503_with_the_reason_if_the_network_fails_or_hangs(monkeypatch):
    service, _ = build(check=lambda: 1 / 0)
    status, body = ask(service, path="/ready", method="GET")
    assert status == 503 and json.loads(body)["reason"] == "ZeroDivisionError: division by zero"
    monkeypatch.setattr(scoring_app, "READY_SECONDS", 0.05)
    release = threading.Event()
    service, _ = build(check=lambda: release.wait(30))
    threading.Timer(0.5, release.set).start()
    status, body = ask(service, path="/ready", method="GET")
    assert status == 503 and json.loads(body)["reason"] == "no answer within 0.05 s"


def test_handle_of_metrics_and_of_other_addresses():
    service, counted = build()
    assert ask(service, path="/metrics", method="GET") == (200, b"numbers")
    assert ask(service, b"x", path="/ping", method="GET") == (418, b"MLflow got x")
    assert counted == []


def test_install_outside_of_mlflows_server_changes_nothing():
    before = fastapi.FastAPI
    build()[0].install()
    assert fastapi.FastAPI is before
