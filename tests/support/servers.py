"""Servers that tests start, stop and kill: MLflow's, a proxy before it that fails as networks do, and a model's."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import requests

from tests.support.ports import free_port
from tests.support.stores import empty_database

READY_SECONDS = 120
# A model's server imports TensorFlow, or much else.
SERVE_SECONDS = 300


class Server:
    """`mlflow server` on 127.0.0.1 with its artifacts in a folder; its runs are there too, or in `store`."""

    def __init__(self, folder, *, store=None):
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        if store is None:
            shutil.copy(empty_database(), f"{folder}/server.db")
            store = f"sqlite:///{folder}/server.db"
        self._store = store
        self._process = None

    @property
    def is_running(self):
        return self._process is not None

    def start(self):
        """Start the server, and wait until it answers."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self._store, "--workers", "1"]
        command += ["--artifacts-destination", f"{self._folder}/served"]
        self._process = subprocess.Popen(
            command,
            env=variables | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            with suppress(requests.RequestException):
                if requests.get(f"{self.uri}/health", timeout=5).ok:
                    return
            time.sleep(0.2)
        raise AssertionError("mlflow server did not start")

    def end(self, number=signal.SIGTERM):
        """End the server and its workers with a signal; SIGKILL acts as a crash does."""
        if self._process is None:
            return
        processes = [*psutil.Process(self._process.pid).children(recursive=True), psutil.Process(self._process.pid)]
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:
            process.kill()
        self._process.wait()
        self._process = None


@contextmanager
def server(folder, *, store=None):
    """Start a server, and end it."""
    running = Server(folder, store=store)
    try:
        running.start()
        yield running
    finally:
        running.end(signal.SIGKILL)


class Proxy:
    """Forwards requests to a server, unless `fault` returns something else.

    `fault` is called with method and path. It returns "away" (the connection is closed), "500", "lost" (the request
    arrives and its answer does not), a number of seconds to wait before forwarding, or None.

    Attributes:
        passed: method and path of each request that the server has answered.
    """

    def __init__(self, to):
        self.fault = lambda method, path: None
        self.passed = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.fault(self.command, self.path)
                if fault == "away":
                    return self._cut()
                if fault == "500":
                    return self._answer(500, b"the proxy has no server", [])
                if isinstance(fault, int | float):
                    time.sleep(fault)
                connection = HTTPConnection("127.0.0.1", to, timeout=60)
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                proxy.passed.append((self.command, self.path))
                if fault == "lost":
                    return self._cut()
                return self._answer(answer.status, content, answer.getheaders())

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

            def _cut(self):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def _answer(self, status, content, headers):
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in {"transfer-encoding", "content-length", "connection", "server", "date"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address):
                """Ignore a client that has closed its connection."""

        self._http = Listener(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def serve_model(model, env, folder):
    """Run `mlflow models serve` in a folder, and yield the URL that it answers at."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env=env,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + SERVE_SECONDS
        while True:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < until, "the server does not answer"
            with suppress(requests.RequestException):
                if requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).ok:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.terminate()
        psutil.wait_procs(family, timeout=10)
        process.wait()
